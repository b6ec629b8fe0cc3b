"""The training loop: :meth:`Trainer.fit`. The methods below it stand in the order in which it calls them."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from kernels.errors import AlexNetError
from kernels.tools.workloads import torch_dtype
from model.device import batch_fits, choose_device, device_name
from model.photos.augmentation import Crops, to_input
from model.photos.loading import Order, Photos, loader
from model.photos.preprocess import SIZE
from model.training import checkpoint
from model.training.accuracy import measure_accuracy
from model.training.config import TrainingConfig
from model.training.distributed import Ranks
from model.training.log import Row
from model.training.progress import Progress
from model.training.signals import collect_signals
from model.training.start import Start, find_start
from model.training.step import RATES, TrainStep, make_optimizer, rate
from model.weights import Weights
from model.weights.common import describe


class Trainer:
    """Trains the network on a folder of photos: ``Trainer(TrainingConfig("photos/", epochs=3)).fit()``.

    In ``config.out`` it writes ``last.safetensors``, the newest checkpoint, ``best.safetensors``, the weights of the
    best validation, ``log.csv`` and ``curves.png``. ``initial`` are weights to start from, in place of those that
    ``config.weights`` names. Raises AlexNetError if the run cannot start.

    A resumed run goes on exactly where its checkpoint was written, since all random numbers are a function of the seed
    and the step (:mod:`model.randomness`). It ends with the same weights, if the device computes the same twice.
    """

    def __init__(self, config: TrainingConfig, initial: Weights | None = None):
        if initial:
            config = replace(config, weights=initial.name)
        self.config = config
        self.device = choose_device(config.device)
        self.ranks = ranks = Ranks(self.device)
        self.last, self.best = Path(config.out) / "last.safetensors", Path(config.out) / "best.safetensors"
        with self.problems_named():
            if len(set(ranks.gather(self.last.exists()))) > 1:
                ranks.stop(f"{self.last} is not there for every rank: out must be a folder that all machines share")
            start: Start = ranks.agree(lambda: find_start(config, ranks, initial))
            self.photos, self.validation, self.net, self.preprocess, self.position, tensors = start
            self.net.to(self.device)
            self.per_epoch = len(self.photos.images) // config.batch
            self.steps = self.per_epoch * config.epochs
            self.rate = RATES[config.optimizer] if config.lr is None else config.lr
            optimizer, dtype = make_optimizer(self.net, config.optimizer, self.rate), torch_dtype(config.dtype)
            self.train_step = TrainStep(self.net, optimizer, dtype, config.seed, ranks.rank, ranks.size)
            if self.position.scaler is not None:
                self.train_step.restore(tensors, self.position.scaler)
            self.progress = Progress(config, ranks, self.position.step, self.per_epoch)
        self.waiting: deque[tuple[int, float, torch.Tensor]] = deque()  # steps whose metrics are not read yet
        self.stopping = False

    def fit(self) -> bool:
        """Trains to the last step, or until Ctrl-C or SIGTERM, and saves; returns whether all steps are done.

        Raises AlexNetError if the run cannot go on. The last checkpoint stays.
        """
        config, ranks = self.config, self.ranks
        self.progress.say(self.introduction())
        with self.problems_named(), self.progress.bar(), collect_signals() as signals:
            self.clock = time.perf_counter()
            for step, batch in enumerate(self.batches(), self.position.step):
                x, target = self.inputs(batch)
                factor = rate(config.schedule, step, self.steps)
                metrics = self.train_step(step, x, target, factor)
                stop = metrics.new_full((1,), float(len(signals)))
                self.waiting.append((step + 1, factor, ranks.sum(torch.cat([metrics, stop]))))

                epoch_ends = (step + 1) % self.per_epoch == 0
                due = epoch_ends or (step + 1) % config.save_every == 0
                # While a GPU computes the newest step, the one before it is logged.
                rows = self.finished(0 if due or self.device.type == "cpu" else 1)
                if (due or self.stopping) and not all(p.isfinite().all() for p in self.net.parameters()):
                    self.diverged(f"step {step + 1} made weights of NaN or infinity")
                if epoch_ends:
                    rows[-1] = self.validated(rows[-1])
                self.progress.add(rows, epoch_ends)
                if due or self.stopping:
                    self.save(step + 1)
                if self.stopping:
                    break
        return not self.stopping

    def introduction(self) -> str:
        """What the run does, in a line."""
        config, step, others = self.config, self.position.step, self.ranks.size - 1
        return (
            f"{len(self.photos.images)} images of {len(self.photos.classes)} classes"
            + (f", {len(self.validation.images)} to validate with" if self.validation else "")
            + f"; {self.per_epoch} steps an epoch; {config.dtype}, {config.operators}, on {device_name(self.device)}"
            + (f" and {others} more" if others else "")
            + (f"; going on after step {step} of {self.steps}" if step else "")
        )

    def batches(self) -> Iterable[list]:
        """This rank's share of every batch from the next step to the last."""
        config, images, ranks, first = self.config, self.photos.images, self.ranks, self.position.step
        crops = Crops(images, config.seed, np.array(self.position.colour), config.augment, config.zoom)
        classes = [target for _, target in images] if config.even_classes else None
        order = Order(len(images), config.batch, config.seed, first, self.steps, ranks.rank, ranks.size, classes)
        size = config.batch // ranks.size * SIZE * SIZE * 3
        return loader(crops, order, config.workers, self.device, size)

    def inputs(self, batch: list) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch as (x, target) on the device."""
        pixels, shifts, target, problems = batch
        found = [problem for of_image in problems for problem in of_image]
        if len(target) < self.config.batch // self.ranks.size:  # no image is left, as if a network disk is gone
            raise AlexNetError(self.ranks.name(found[-1]))
        self.progress.skip(found)
        x = to_input(pixels, shifts, self.preprocess, self.device)
        return x, torch.as_tensor(target).to(self.device, non_blocking=True)

    def finished(self, keep: int) -> list[Row]:
        """Rows of the log for all steps except the newest ``keep``. Notes whether a rank got a signal."""
        rows = []
        while len(self.waiting) > (0 if self.stopping else keep):
            step, factor, metrics = self.waiting.popleft()
            loss, right, signals = metrics.tolist()  # waits for the device
            loss /= self.ranks.size
            if not math.isfinite(loss):
                self.diverged(f"the loss of step {step} is {loss}")
            now, batch = time.perf_counter(), self.config.batch
            speed = round(batch / (now - self.clock), 1)
            rows.append(Row(step, (step - 1) // self.per_epoch + 1, factor * self.rate, loss, right / batch, speed))
            self.clock = now
            self.stopping |= signals > 0.0
        return rows

    def diverged(self, what: str) -> None:
        """Ends the run, before what the step made is saved."""
        saved = self.position.step
        kept = f"{self.last}, of step {saved}, is kept" if saved else "no checkpoint was written yet"
        self.ranks.stop(f"{what}; {kept}; a lower lr may help")

    def validated(self, row: Row) -> Row:
        """``row`` with loss and accuracy on the validation images. Writes the weights if they are the best so far."""
        self.progress.skip_all_ranks()
        if not self.validation:
            return row
        self.net.eval()
        photos, batch = Photos(self.validation.images, self.preprocess), self.config.batch // self.ranks.size
        with self.train_step.autocast():
            counts = measure_accuracy(self.net, photos, batch=batch, workers=self.config.workers, ranks=self.ranks)
        if self.ranks.first:
            self.progress.skip(counts.unreadable)
        if not counts.photos:
            self.ranks.stop(f"{self.validation.name}: no image can be read")
        if counts.top1 > self.position.best:
            self.position.best = counts.top1
            if self.ranks.first:
                checkpoint.write(self.best, dict(self.net.named_parameters()), self.meta())
        return row._replace(validation_loss=counts.loss, validation_accuracy=counts.top1)

    def save(self, step: int) -> None:
        """Writes the checkpoint, after the rows of the log that belong to it."""
        self.position.step = step
        if self.ranks.first:
            self.progress.log.sync()
            tensors, self.position.scaler = self.train_step.state()
            meta = self.meta() | {"training": asdict(self.position)}
            checkpoint.write(self.last, dict(self.net.named_parameters()) | tensors, meta)
        self.clock = time.perf_counter()

    def meta(self) -> dict:
        """What :mod:`model.weights.safetensors` reads."""
        return describe(self.photos.classes, self.net.lrn, self.preprocess)

    def summary(self) -> str:
        """How the run ended and where its weights are, in a line."""
        step, best, skipped = self.position.step, self.position.best, len(self.progress.unreadable)
        if self.stopping:
            line = f"stopped after step {step} of {self.steps}, saved in {self.last}: resume goes on"
        else:
            line = f"done: {self.last}" + (f"; best validation {best:.1%} in {self.best}" if best >= 0.0 else "")
        return line + (f"; images that cannot be read and were skipped: {skipped}" if skipped else "")

    @contextlib.contextmanager
    def problems_named(self) -> Iterator[None]:
        """Turns too little memory, files that the system refuses and lost ranks into AlexNetErrors with the rank."""
        name = self.ranks.name
        try:
            with batch_fits(self.config.batch, self.device, name):
                yield
        except OSError as error:
            raise AlexNetError(name(f"{error.filename or self.config.out}: {error.strerror or error}")) from error
        except RuntimeError as error:
            if not self.ranks.lost(error):
                raise
            raise AlexNetError(name("another rank has ended, and this one with it")) from error
