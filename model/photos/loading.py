"""Data sets of photos, and their batches, which other processes decode."""

import functools
import itertools
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.photos.preprocess import SIZE, ImageError, open_image
from model.randomness import generator


class Photos(Dataset):
    """Photos as they are evaluated: index -> (input, label, None), or (None, label, what is wrong with the file).

    Args:
        images: each photo's path and label: its class, or another number that tells it from the others in a batch.
        transform: makes one input (3, 227, 227) of a PIL image, or (crops, 3, 227, 227).
    """

    def __init__(self, images: Sequence[tuple[str | Path, int]], transform: Callable, crops: int = 1):
        self.images, self.transform = images, transform
        self.bytes = crops * 3 * SIZE * SIZE * 4  # per photo

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, int, str | None]:
        path, label = self.images[index]
        try:
            return self.transform(open_image(path)).numpy(), label, None
        except ImageError as error:
            return None, label, str(error)


class Order:
    """A batch sampler for training: this rank's share of every global batch, from step ``first`` to before ``last``.

    An epoch is a permutation of the images, cut into batches, without the rest. Ranks take consecutive shares, so the
    global batches do not depend on their number. Yields lists of (epoch, image), which decide an image's augmentation.

    ``classes`` has each image's class, if each class is to come equally often. Then an epoch is as long, but has more
    of a small class, each image with its number of repetitions: (epoch, image, repetition); and less of a large class,
    another part in each epoch.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        seed: int,
        first: int,
        last: int,
        rank: int = 0,
        ranks: int = 1,
        classes: Sequence[int] | None = None,
    ):
        self.images, self.batch, self.seed, self.first, self.last = images, batch, seed, first, last
        self.members = None if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        self.share, self.start = batch // ranks, batch // ranks * rank

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        order, ordered = np.zeros((0, 1), int), -1  # (images, 1 or 2): each image, and its repetition; and their epoch
        for step in range(self.first, self.last):
            epoch, place = divmod(step, self.images // self.batch)
            if epoch != ordered:
                order, ordered = self._order(generator("order", self.seed, epoch)), epoch
            start = place * self.batch + self.start
            yield [(epoch, *image) for image in order[start : start + self.share].tolist()]

    def _order(self, random: np.random.Generator) -> np.ndarray:
        if self.members is None:
            return random.permutation(self.images)[:, None]
        # In each round every class has a turn, and the classes come in another order.
        rounds = -(-self.images // len(self.members))
        turns = random.permuted(np.tile(np.arange(len(self.members)), (rounds, 1)), axis=1)
        chosen = np.empty((len(self.members), rounds, 2), int)
        for places, members in zip(chosen, self.members, strict=True):
            repetitions = -(-rounds // len(members))
            places[:, 0] = np.concatenate([random.permutation(members) for _ in range(repetitions)])[:rounds]
            places[:, 1] = np.arange(rounds) // len(members)
        return chosen[turns, np.arange(rounds)[:, None]].reshape(-1, 2)[: self.images]


def load(photos: Photos, batch: int, workers: int, device: torch.device, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Returns batches of every ``ranks``-th photo from ``rank`` on, in order: (inputs, labels, errors).

    Inputs and labels are of the photos that could be read. Errors has a message or None for each photo of the batch.
    """
    mine = range(rank, len(photos), ranks)
    batches = [list(mine[start : start + batch]) for start in range(0, len(mine), batch)]
    # A batch is decoded by one process, so a single batch needs no other one.
    return loader(photos, batches, min(workers, len(batches)) if len(batches) > 1 else 0, device, batch * photos.bytes)


def loader(
    dataset: Dataset, batches: Iterable[list], workers: int, device: torch.device, batch_bytes: int
) -> DataLoader:
    """Returns batches that ``workers`` other processes decode.

    Args:
        dataset: gives tuples whose first element is None for an image that cannot be read, and whose last is errors.
        batches: the indices of each batch.
        batch_bytes: the size of a batch. Tensors travel through /dev/shm, which is small in containers. If the batches
            on their way do not fit in there, they travel as arrays, which is slower.
    """
    room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=functools.partial(_collate, room < 2 * (2 * workers + 1) * batch_bytes),
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
    )


def _collate(arrays: bool, samples: list[tuple]) -> list:
    """Stacks each column of a batch, without the samples that have no image; the last column stays a tuple of all."""
    *columns, errors = zip(*samples, strict=True)
    whole = [image is not None for image in columns[0]]
    stacked = [np.array(list(itertools.compress(column, whole))) for column in columns]
    return [*(stacked if arrays else map(torch.from_numpy, stacked)), errors]


def start_worker(_: int) -> None:
    """Prepares a process that decodes. Ctrl-C reaches all processes, but the one that computes ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _print_unless_hung_up  # in multiprocessing's thread that hands tensors over


def _print_unless_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Prints an exception as usual, unless the other process has ended and so closed the connection."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
