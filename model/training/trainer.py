"""The training loop of :mod:`model.train`: what it needs, then a step after the other until the last."""

import argparse
import contextlib
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm import tqdm

import kernels
from kernels.errors import AlexNetError
from kernels.tools import torch_ops
from kernels.tools.command import one_line
from kernels.tools.workloads import torch_dtype
from model import weights
from model.alexnet import LRN, AlexNet
from model.command import device_name
from model.photos import data
from model.photos.preprocess import FOLDER, SIZE, Preprocess
from model.training import checkpoint
from model.training.accuracy import measure_accuracy
from model.training.distributed import Ranks
from model.training.log import Log, draw
from model.training.step import RATES, Learner, make_optimizer, rate
from model.weights.common import check_meta, describe

ELSEWHERE = {"data", "out", "resume", "device", "workers", "save_every", "strict"}
"""Arguments that may change when a run is resumed; all others decide what it computes."""


class Training:
    """A run from its arguments to its last step.

    Args:
        args: as :func:`model.train.parse` gives them.
        device: where this process computes.
        ranks: this process among those that train the same network.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device, ranks: Ranks):
        self.args, self.device, self.ranks = args, device, ranks
        self.last, self.best = args.out / "last.safetensors", args.out / "best.safetensors"
        self.rate = RATES[args.optimizer] if args.lr is None else args.lr
        if len(set(ranks.gather(self.last.exists()))) > 1:
            ranks.stop(f"{self.last} is not there for every rank: --out must be a folder that all machines share")
        tensors = ranks.agree(self.prepare)
        optimizer = make_optimizer(self.net, args.optimizer, self.rate)
        self.learner = Learner(self.net, optimizer, torch_dtype(args.dtype), args.seed, ranks.rank, ranks.size)
        if tensors:
            self.learner.restore(tensors, self.position["scaler"])
        self.log = ranks.agree(lambda: self.open_log() if ranks.first else None)
        self.saved = self.position["step"]
        self.signalled = self.stopping = False

    # What the run starts from

    def prepare(self) -> dict[str, torch.Tensor]:
        """Images and network, new or as the checkpoint has them; the checkpoint's tensors."""
        args = self.args
        if args.batch % self.ranks.size:
            raise AlexNetError(f"--batch {args.batch} does not divide evenly among {self.ranks.size} processes")
        self.folder, self.validation = data.read(args.data)
        images, self.classes = self.folder.images, self.folder.classes
        self.per_epoch = len(images) // args.batch
        self.steps = self.per_epoch * args.epochs
        if not self.per_epoch:
            raise AlexNetError(f"--batch {args.batch} is more than the {len(images)} images of {self.folder.path}")
        tensors: dict[str, torch.Tensor] = {}
        meta: dict = {}
        if args.resume and self.last.exists():
            tensors, meta = checkpoint.read(self.last)
        elif self.last.exists():
            raise AlexNetError(f"{args.out} holds a run: --resume goes on with it, another --out starts a new one")
        elif args.resume and self.ranks.first:
            print(f"{self.last}: no such file; starting a new run", file=sys.stderr)
        arguments = {name: value for name, value in vars(args).items() if name not in ELSEWHERE}
        if meta:
            self.position = meta["training"]
            self.agree(arguments)
            try:
                _, lrn, self.preprocess = check_meta(str(self.last), meta)
            except weights.WeightsError as error:
                raise AlexNetError(error) from error
            self.net = self.network(lrn)
            state = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
            try:
                self.net.load_state_dict(state)
            except RuntimeError as error:
                raise AlexNetError(f"{self.last}: not of this network: {' '.join(str(error).split())[:200]}") from error
        else:
            mean, colour = data.statistics(self.folder)
            loaded = self.load_weights()
            self.preprocess = Preprocess(mean, FOLDER)
            if loaded:  # the numbers that its conv1 knows, of photos as they are: not shrunk, say, as its own were
                self.preprocess = replace(loaded.preprocess, resize=FOLDER, size=SIZE)
            torch.manual_seed(args.seed)
            self.net = self.network(loaded.lrn if loaded else args.init)
            self.net.initialise(args.init)
            if loaded:
                try:
                    weights.assign(self.net, loaded, args.skip_layer)
                except weights.WeightsError as error:
                    raise AlexNetError(error) from error
            self.position = {
                "step": 0,
                "best": -1.0,  # of no validation yet: the first one's weights are kept, even if it got none right
                "scaler": {},
                "colour": colour.tolist(),
                "arguments": arguments,
                "images": self.folder.digest(),
            }
        self.freeze()
        self.net.to(self.device)
        return tensors

    def agree(self, arguments: dict) -> None:
        """Checks that a resumed run is asked to do what the checkpoint's did."""
        for name, value in arguments.items():
            before = self.position["arguments"].get(name)
            if value != before:
                raise AlexNetError(
                    f"--resume: --{name.replace('_', '-')} was {before} in {self.last}, and is {value} now"
                )
        if self.position["images"] != self.folder.digest():
            raise AlexNetError(f"--resume: the images in {self.folder.path} are not those that {self.last} began with")

    def network(self, lrn: str | None) -> AlexNet:
        operators = torch_ops if self.args.operators == "torch" else kernels
        return AlexNet(len(self.classes), self.args.keep_prob, lrn).use(operators)

    def load_weights(self) -> weights.Weights | None:
        """Those of --weights, if they fit the folder."""
        if self.args.weights is None:
            return None
        self.check_layers("--skip-layer", self.args.skip_layer)
        try:
            loaded = weights.load(self.args.weights)
        except weights.WeightsError as error:
            raise AlexNetError(error) from error
        if loaded.lrn not in LRN:
            raise AlexNetError(f"{loaded.name}: weights of another network, whose lrn is not among {', '.join(LRN)}")
        if "fc8" not in self.args.skip_layer and len(loaded.classes) not in (0, len(self.classes)):
            raise AlexNetError(
                f"{loaded.name} has {len(loaded.classes)} classes, and {self.folder.path} {len(self.classes)}: "
                "--skip-layer fc8 starts that layer anew"
            )
        return loaded

    def freeze(self) -> None:
        self.check_layers("--freeze", self.args.freeze)
        for name in self.args.freeze:
            self.net.get_submodule(name).requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.net.parameters()):
            raise AlexNetError("--freeze leaves no layer to train")

    def check_layers(self, option: str, names: list[str]) -> None:
        for name in names:
            if name not in weights.LAYERS:
                raise AlexNetError(f"{option} must name layers among {', '.join(weights.LAYERS)}, got {name!r}")

    def open_log(self) -> Log:
        try:
            self.args.out.mkdir(parents=True, exist_ok=True)
            return Log(self.args.out / "log.csv", self.position["step"])
        except OSError as error:
            raise AlexNetError(f"{error.filename}: cannot be written: {error.strerror}") from error

    # The run

    def run(self) -> int:
        """Every step that is left, then the curves; 130 where a signal came first."""
        args, ranks = self.args, self.ranks
        first = self.position["step"]
        self.say(
            f"{len(self.folder.images)} images of {len(self.classes)} classes"
            + (f", {len(self.validation.images)} to validate with" if self.validation else "")
            + f"; {self.per_epoch} steps an epoch; {args.dtype}, {args.operators}, on {device_name(self.device)}"
            + (f" and {ranks.size - 1} more" if ranks.size > 1 else "")
            + (f"; going on after step {first} of {self.steps}" if first else "")
        )
        crops = data.loader(
            data.Crops(self.folder.images, args.seed, self.position["colour"], args.augment),
            data.Order(len(self.folder.images), args.batch, args.seed, first, self.steps, ranks.rank, ranks.size),
            args.workers,
            self.device,
            args.batch // ranks.size * SIZE * SIZE * 3,
        )
        self.waiting: deque[tuple[int, float, torch.Tensor]] = deque()  # steps whose metrics are not written down yet
        self.unreadable: set[str] = set()
        self.drawn, self.clock = time.monotonic(), time.perf_counter()
        with self.signals(), self.progress(first) as self.bar:
            for step, (pixels, shifts, target, problems) in enumerate(crops, first):
                said = [problem for found in problems for problem in found]
                if len(target) < args.batch // ranks.size:  # all images are gone, as with a network's disk
                    raise AlexNetError(ranks.name(said[-1]))
                self.report(said)
                x = data.to_input(pixels, shifts, self.preprocess, self.device)
                target = torch.as_tensor(target).to(self.device, non_blocking=True)
                factor = rate(args.schedule, step, self.steps)
                metrics = self.learner.step(step, x, target, factor)
                signalled = metrics.new_full((1,), float(self.signalled))
                self.waiting.append((step + 1, factor, ranks.sum(torch.cat([metrics, signalled]))))

                epoch_ends = (step + 1) % self.per_epoch == 0
                due = epoch_ends or (step + 1) % args.save_every == 0
                # A GPU is left to compute the newest step while the one before it is written down.
                rows = self.settle(0 if due or self.device.type == "cpu" else 1)
                if self.stopping:
                    rows += self.settle(0)
                if due or self.stopping:
                    self.check_weights(step + 1)
                if epoch_ends:
                    rows[-1] |= self.validate()
                self.write(rows, epoch_ends)
                if due or self.stopping:
                    self.save(step + 1)
                if self.stopping:
                    break
        return self.finish()

    def settle(self, keep: int) -> list[dict]:
        """Rows of the log for all steps but the newest ``keep``; ends the run where a loss is no number."""
        rows = []
        while len(self.waiting) > keep:
            step, factor, metrics = self.waiting.popleft()
            loss, right, signalled = metrics.tolist()
            loss /= self.ranks.size
            if not math.isfinite(loss):
                self.diverged(f"the loss of step {step} is {loss}")
            now = time.perf_counter()
            rows.append(
                {
                    "step": step,
                    "epoch": (step - 1) // self.per_epoch + 1,
                    "rate": factor * self.rate,
                    "loss": loss,
                    "accuracy": right / self.args.batch,
                    "images_per_second": round(self.args.batch / (now - self.clock), 1),
                }
            )
            self.clock = now
            self.stopping |= signalled > 0.0
        return rows

    def check_weights(self, step: int) -> None:
        """Ends the run where the step's update left no numbers, which the next loss would tell too late."""
        if not torch.stack([parameter.isfinite().all() for parameter in self.net.parameters()]).all():
            self.diverged(f"step {step} made weights of NaN or infinity")

    def diverged(self, what: str) -> None:
        kept = f"{self.last}, of step {self.saved}, is kept" if self.saved else "no checkpoint was written yet"
        self.ranks.stop(f"{what}; {kept}; a lower --lr may help")

    def validate(self) -> dict:
        """Loss and accuracy on the validation images, and the best weights so far written down."""
        found = {problem for rank in self.ranks.gather(sorted(self.unreadable)) for problem in rank}
        if self.ranks.first:
            self.report(sorted(found))
        if not self.validation:
            return {}
        self.net.eval()
        counts = measure_accuracy(
            self.predict,
            data.Photos(self.validation.images, self.preprocess),
            len(self.classes),
            batch=max(self.args.batch // self.ranks.size, 1),
            workers=self.args.workers,
            device=self.device,
            ranks=self.ranks,
            operators=self.learner.operators,
        )
        if self.ranks.first:
            self.report(counts.unreadable)
        if not counts.photos:
            self.ranks.stop(f"{self.validation.path}: no image can be read")
        if counts.top1 > self.position["best"]:
            self.position["best"] = counts.top1
            if self.ranks.first:
                checkpoint.write(self.best, dict(self.net.named_parameters()), self.meta())
        return {"validation_loss": counts.loss, "validation_accuracy": counts.top1}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, in the dtype that the network trains in."""
        with self.learner.autocast():
            return self.net(x)

    def write(self, rows: list[dict], epoch_ends: bool) -> None:
        """The log, the progress bar, and at an epoch's end a line of its own."""
        if not self.ranks.first or not rows:
            self.clock = time.perf_counter()
            return
        for row in rows:
            self.log.add(row)
        self.bar.update(len(rows) * self.args.batch)
        self.bar.set_description(f"epoch {rows[-1]['epoch']}/{self.args.epochs}", refresh=False)
        loss, accuracy = (self.log.mean(field, min(20, self.per_epoch)) for field in ("loss", "accuracy"))
        self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
        if not epoch_ends:
            return
        means = {field: self.log.mean(field, self.per_epoch) for field in ("loss", "accuracy", "images_per_second")}
        line = "epoch {}/{}: loss {:.4f}, accuracy {:.1%}".format(
            rows[-1]["epoch"], self.args.epochs, means["loss"], means["accuracy"]
        )
        if self.validation:
            line += ", validation {validation_loss:.4f}, {validation_accuracy:.1%}".format(**rows[-1])
        tqdm.write(f"{line}, {means['images_per_second']:.3g} images/s")
        sys.stdout.flush()
        if time.monotonic() - self.drawn > 60.0:
            self.draw()
        self.clock = time.perf_counter()

    def save(self, step: int) -> None:
        """Writes the checkpoint, after the log's rows that belong to it."""
        self.saved = self.position["step"] = step
        if self.ranks.first:
            self.log.sync()
            tensors, self.position["scaler"] = self.learner.state()
            parameters = dict(self.net.named_parameters())
            checkpoint.write(self.last, parameters | tensors, self.meta() | {"training": self.position})
        self.clock = time.perf_counter()

    def meta(self) -> dict:
        """What :mod:`model.weights.safetensors` reads."""
        return describe(self.classes, self.net.lrn, self.preprocess)

    def finish(self) -> int:
        """The curves, and where all is; 130 where a signal ended the run."""
        if self.ranks.first:
            self.log.close()
            self.draw()
        best = f"; best validation {self.position['best']:.1%} in {self.best}" if self.position["best"] >= 0.0 else ""
        count = len(self.unreadable)
        were = "image that cannot be read was" if count == 1 else "images that cannot be read were"
        skipped = f"; {count} {were} skipped" if count else ""
        if self.stopping:
            self.say(
                f"stopped after step {self.saved} of {self.steps}, saved in {self.last}: --resume goes on{skipped}"
            )
            return 130
        self.say(f"done: {self.last}{best}{skipped}")
        return 0

    def draw(self) -> None:
        self.drawn = time.monotonic()
        draw(self.log.rows, self.per_epoch, self.args.out / "curves.png")

    def report(self, problems: list[str]) -> None:
        """Names images that cannot be read, each once: at once what rank 0 meets, at an epoch's end what others do."""
        for problem in problems:
            if self.args.strict:
                raise AlexNetError(self.ranks.name(problem))
            if problem not in self.unreadable and self.ranks.first:
                with tqdm.external_write_mode(sys.stderr):
                    print(f"alexnet train: {one_line(problem)}; skipped", file=sys.stderr)
            self.unreadable.add(problem)

    def progress(self, first: int) -> tqdm:
        show = None if self.ranks.first else True  # None: where stderr is a terminal
        batch = self.args.batch
        return tqdm(total=self.steps * batch, initial=first * batch, unit="image", disable=show, dynamic_ncols=True)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are noted, and acted upon after the step in hand; a second one ends the process."""

        def note(number: int, _) -> None:
            self.signalled = True
            signal.signal(number, usual[signal.Signals(number)])

        usual = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)

    def say(self, line: str) -> None:
        """One line on rank 0's stdout."""
        if self.ranks.first:
            tqdm.write(line)
            sys.stdout.flush()
