"""What a run tells while it goes on: the log, a bar, a line per epoch, curves, and photos that cannot be read."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from kernels.errors import AlexNetError
from kernels.tools.command import one_line
from model.training.config import TrainingConfig
from model.training.distributed import Ranks
from model.training.log import Log, Row, draw_curves

REDRAW = 60.0  # seconds between two drawings of the curves


class Progress:
    """Rank 0 tells; on other ranks this only collects the photos that cannot be read. ``done`` counts steps."""

    def __init__(self, config: TrainingConfig, ranks: Ranks, done: int, per_epoch: int):
        self.config, self.ranks, self.done, self.per_epoch = config, ranks, done, per_epoch
        self.unreadable: set[str] = set()
        self.log = ranks.agree(lambda: Log(Path(config.out) / "log.csv", done) if ranks.first else None)
        self.drawn = time.monotonic()

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """The bar, on stderr if that is a terminal; afterwards the log is closed and the curves are drawn."""
        total, batch = self.per_epoch * self.config.epochs, self.config.batch
        hide = None if self.ranks.first else True  # None: show it in a terminal
        shown = tqdm(total=total * batch, initial=self.done * batch, unit="image", disable=hide, dynamic_ncols=True)
        with shown as self.shown:
            yield
        if self.log:
            self.log.file.close()
            self.draw()

    def say(self, line: str) -> None:
        """A line on stdout, above the bar."""
        if self.ranks.first:
            tqdm.write(line)
            sys.stdout.flush()

    def add(self, rows: list[Row], epoch_ends: bool) -> None:
        """Logs finished steps and moves the bar; at the end of an epoch, a line about it."""
        if not self.log or not rows:
            return
        for row in rows:
            self.log.add(row)
        epoch = f"epoch {row.epoch}/{self.config.epochs}"
        loss, accuracy, _ = self.log.means(min(20, self.per_epoch))
        self.shown.update(len(rows) * self.config.batch)
        self.shown.set_description(epoch, refresh=False)
        self.shown.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
        if not epoch_ends:
            return
        loss, accuracy, speed = self.log.means(self.per_epoch)
        line = f"{epoch}: loss {loss:.4f}, accuracy {accuracy:.1%}"
        if row.validation_loss is not None:
            line += f", validation {row.validation_loss:.4f}, {row.validation_accuracy:.1%}"
        self.say(f"{line}, {speed:.3g} images/s")
        if time.monotonic() - self.drawn > REDRAW:
            self.draw()

    def draw(self) -> None:
        """Draws the curves."""
        self.drawn = time.monotonic()
        draw_curves(self.log.rows, self.per_epoch, Path(self.config.out) / "curves.png")

    def skip(self, problems: Iterable[str]) -> None:
        """Names photos that cannot be read, each once. Raises AlexNetError if there is one and the run is strict."""
        for problem in problems:
            if self.config.strict:
                raise AlexNetError(self.ranks.name(problem))
            if problem not in self.unreadable and self.ranks.first:
                with tqdm.external_write_mode(sys.stderr):
                    print(f"{one_line(problem)}; skipped", file=sys.stderr)
            self.unreadable.add(problem)

    def skip_all_ranks(self) -> None:
        """Names the photos that other ranks could not read. Every rank must call this."""
        found = self.ranks.gather(sorted(self.unreadable))
        if self.ranks.first:
            self.skip(sorted(set().union(*found)))
