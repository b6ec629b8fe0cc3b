"""``python -m tests.stress``: infer and evaluate read a very bad folder, and much goes wrong meanwhile.

The folder has 10,000 photos of all modes, sizes and formats. One in a hundred is corrupt, one has 20,000 x 20,000
pixels. Names contain newlines, quotes, escapes, and bytes that are not UTF-8. The commands run in processes of their
own, while files vanish, disks are full, readers end, and Ctrl-C is pressed. Each case checks that no photo is lost or
counted twice, that each bad photo has a line of its own, and the exit status. Memory must not grow with the photos.
``tests/stress.txt`` has the last result. ``tests/test_stress.py`` does the same with 60 photos.

On a CPU, interpreted kernels would take hours. So there infer runs a network that tells bright photos from dark ones,
and evaluate runs the real network on PyTorch's operators. It takes seven minutes on two cores. With a GPU nothing is
replaced.
"""

import contextlib
import fcntl
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser
from model.device import device_name
from tests import results

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).with_suffix(".txt")
GPU = torch.cuda.is_available()
GROWTH = 40  # MiB that a third of the photos may add, for their names and as noise

# The photos

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of cifar10
MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "gif": ("L", "P"),
    "bmp": ("1", "L", "P", "RGB"),
    "tif": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "webp": ("RGB", "RGBA"),
}
KINDS = [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]
NAMES = (
    "{}",
    "on holiday {}",
    "two\nlines {}",
    "'quoted' \"{}\"",
    "plage d'été 写真 {}",
    "-{}",
    "tab\tand \x1b[31mred {}",
    "%s {{}} \\n {}",
    os.fsdecode(b"Latin-1 \xe9\xff {}"),
)
CORRUPT = ("cut short", "empty", "text", "random bytes", "header that lies")


class Folder(NamedTuple):
    """Photos in sub-folders by class, in the order in which they must come out."""

    path: Path
    bright: dict[Path, bool]  # the good photos
    bad: list[Path]


def make_folder(path: Path, photos: int) -> Folder:
    """Makes ``photos`` photos and a decompression bomb, the same ones every time."""
    random = np.random.default_rng(0)
    bright, bad = {}, []
    corrupt = max(photos // 100, len(CORRUPT))
    for name in CLASSES:
        (path / name).mkdir(parents=True)
    for index in range(photos):
        name = NAMES[index % len(NAMES)].format(index)
        if (index + 1) * corrupt // photos > index * corrupt // photos:  # spread evenly, also over the classes
            bad.append(path / CLASSES[len(bad) % len(CLASSES)] / f"{name}.png")
            bad[-1].write_bytes(corrupt_photo(CORRUPT[len(bad) % len(CORRUPT)], random))
            continue
        suffix, mode = KINDS[random.integers(len(KINDS))]
        photo = path / CLASSES[index % len(CLASSES)] / f"{name}.{suffix.upper() if index % 7 == 0 else suffix}"
        bright[photo] = bool(random.integers(2))
        make_photo(mode, bright[photo], random).save(photo)
    bad.append(path / CLASSES[-1] / "bomb.png")
    bad[-1].write_bytes(black_png(20_000, 20_000))
    return Folder(path, {photo: bright[photo] for photo in sorted(bright)}, sorted(bad))


def make_photo(mode: str, bright: bool, random: np.random.Generator) -> Image.Image:
    """Returns clouds, bright or dark, with sides of 20 to 400 pixels, mostly small."""
    width, height = (20.0 * 20.0 ** random.random(2)).astype(int)
    low = 190 if bright else 0
    clouds = Image.fromarray(random.integers(low, low + 66, (5, 5), np.uint8)).resize((width, height))
    if mode == "I;16":
        return Image.fromarray(np.asarray(clouds).astype(np.uint16) * 257)
    photo = clouds.convert(mode)
    if mode.endswith("A"):
        photo.putalpha(230)
    return photo


def corrupt_photo(how: str, random: np.random.Generator) -> bytes:
    """Returns a file that is not a photo, or not a whole one."""
    photo = Image.fromarray(random.integers(256, size=(64, 64, 3), dtype=np.uint8))
    if how == "cut short":
        whole = encoded(photo, random.choice(["PNG", "JPEG"]))
        return whole[: len(whole) // 2]
    if how == "header that lies":
        whole = encoded(photo, "BMP")
        return whole[:22] + struct.pack("<i", 640) + whole[26:]  # ten times its height
    return {"empty": b"", "text": b"A thousand words.\n", "random bytes": random.bytes(1000)}[how]


def encoded(photo: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    photo.save(file, format)
    return file.getvalue()


def black_png(width: int, height: int) -> bytes:
    """Returns a PNG of one bit per pixel. Making it takes little memory."""
    deflate = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join([*(deflate.compress(row) for _ in range(height)), deflate.flush()])
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    framed = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


# The commands

BRIGHT_OR_DARK = """
import sys

import torch

from model import alexnet, infer

def forward(self, x):
    mean = x.mean((1, 2, 3))
    return torch.stack([mean, -mean, *[torch.zeros_like(mean)] * 8], 1)

alexnet.AlexNet.forward = forward
sys.exit(infer.main())
"""
INFER = ("-m", "model.infer") if GPU else ("-c", BRIGHT_OR_DARK)
EVALUATE = ("-m", "model.evaluate", "--operators", "torch")


class Process:
    """Python with these arguments, in a session of its own, as in a terminal of its own. Its memory is watched.

    Args:
        stdout, stderr: file descriptors, or None for files whose text :meth:`wait` returns.
        file_bytes: the largest size of a file that it may write, as if the disk were full then.
        unbuffered: sets PYTHONUNBUFFERED, as containers often do. Python then drops the rest of an interrupted write.
    """

    def __init__(
        self,
        *arguments: str | Path,
        stdout: int | None = None,
        stderr: int | None = None,
        file_bytes: int | None = None,
        unbuffered: bool = False,
    ):
        self.files = [open(os.memfd_create(name), "w+b", buffering=0) for name in ("stdout", "stderr")]  # noqa: SIM115

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # background processes ignore it, and so do their children
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            [sys.executable, *map(os.fspath, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self.files[0] if stdout is None else stdout,
            stderr=self.files[1] if stderr is None else stderr,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONIOENCODING": "utf-8",
                "PYTHONUNBUFFERED": "1" if unbuffered else "",
            },
            start_new_session=True,
            preexec_fn=prepare,
        )
        self.peaks: dict[int, int] = {}  # of resident memory in MiB, by process
        self.resident: dict[int, list[int]] = {}  # all samples of it
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def _watch(self) -> None:
        while self.popen.returncode is None:  # the peaks can be read until the end
            for pid in (self.popen.pid, *self.workers()):
                status = proc_status(pid)
                if "VmRSS" in status:
                    peak, resident = (int(status[name].split()[0]) // 1024 for name in ("VmHWM", "VmRSS"))
                    self.peaks[pid] = max(self.peaks.get(pid, 0), peak)
                    self.resident.setdefault(pid, []).append(resident)
            time.sleep(0.2)

    def workers(self) -> list[int]:
        """Returns the processes that decode for it."""
        pids = map(int, filter(str.isdigit, os.listdir("/proc")))
        return [pid for pid in pids if proc_status(pid).get("PPid") == str(self.popen.pid)]

    def wait_for_workers(self) -> None:
        """Waits until they are at work, which shows in that they ignore Ctrl-C."""
        ignores = lambda pid: int(proc_status(pid).get("SigIgn", "0"), 16) >> (signal.SIGINT - 1) & 1
        while not (len(self.workers()) == 2 and all(map(ignores, self.workers()))):
            assert self.popen.poll() is None, f"ended before its workers were at work: {self.wait()}"
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Presses Ctrl-C, which reaches all processes of a terminal."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def wait(self) -> "Outcome":
        status = self.popen.wait(timeout=3600)
        seconds = time.monotonic() - self.started
        self.watch.join()
        for file in self.files:
            file.seek(0)
        output, errors = (file.read().decode() for file in self.files)
        assert "Traceback" not in errors and "Exception ignored" not in errors, errors
        peak = self.peaks.pop(self.popen.pid)
        worker_peak = max(self.peaks.values(), default=0)
        growth = max(map(grown, self.resident.values()))
        return Outcome(status, output, errors.splitlines(), seconds, peak, worker_peak, growth)


def proc_status(pid: int) -> dict[str, str]:
    """Returns Linux's /proc/PID/status, or nothing if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def grown(resident: list[int]) -> int:
    """Returns the growth from the second third to the last. A low percentile, since a batch takes 100 MiB more."""
    if len(resident) < 3:
        return 0
    _, second, last = (np.percentile(part, 25) for part in np.array_split(resident, 3))
    return round(last - second)


class Outcome(NamedTuple):
    """How a process ended."""

    status: int
    output: str
    errors: list[str]
    seconds: float
    peak: int  # MiB of resident memory
    worker_peak: int  # of the largest of its workers
    growth: int  # MiB that one of them grew by towards the end


@contextlib.contextmanager
def narrow_pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The two ends of a pipe that holds little, so that the writer waits for the reader."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with open(reading, encoding="utf-8") as file:
        try:
            yield writing, file
        finally:
            with contextlib.suppress(OSError):
                os.close(writing)


@contextlib.contextmanager
def vanished(photos: list[Path]) -> Iterator[None]:
    """Moves these photos away until the end of the block."""
    with tempfile.TemporaryDirectory(dir=photos[0].parents[2]) as folder:
        aside = [Path(folder, str(index)) for index in range(len(photos))]
        for photo, place in zip(photos, aside, strict=True):
            photo.rename(place)
        try:
            yield
        finally:
            for photo, place in zip(photos, aside, strict=True):
                place.rename(photo)


# The checks


def shown(path: Path) -> str:
    """Returns a name as the commands print it, on one line."""
    text = str(path).replace("\n", "\\n").replace("\t", "\\t").replace("\x1b", "\\x1b")
    return text.encode("utf-8", "backslashreplace").decode()


def check_named(name: str, errors: list[str], bad: list[Path], some: bool = False) -> None:
    """Checks that stderr has one line per bad photo, or, with ``some``, at most one."""
    lines = [f"{name}: error: {shown(path)}: " for path in bad]
    named = [next((line for line in lines if error.startswith(line)), error) for error in errors]
    assert sorted(named) == sorted(lines) or (some and len(set(named)) == len(named) and set(named) <= set(lines)), (
        f"not one line for each of {len(bad)} bad photos: {sorted(set(named) ^ set(lines))[:5]}"
    )


def check_count(errors: list[str], bad: int, photos: int) -> list[str]:
    """Checks that infer's last line counts the bad photos, and returns the lines before it."""
    *named, last = errors
    assert last == f"alexnet infer: error: {bad:,} of {photos:,} photos cannot be read", last
    return named


def check_records(output: str, bright: dict[Path, bool], some: bool = False) -> int:
    """Checks for one JSON line per photo, in order, about that photo. With ``some``, the last may be missing."""
    assert output.endswith("\n"), f"the last record is cut short: ...{output[-80:]!r}"
    records = [json.loads(line) for line in output.splitlines()]
    images = [Path(record["image"]) for record in records]
    expected = list(bright)[: len(images)] if some else list(bright)
    assert images == expected, f"{len(images)} records, {len(expected)} photos; {set(images) ^ set(expected)}"
    for image, record in zip(images, records, strict=True):
        assert len(record["predictions"]) == 5
        check_prediction(image, record["predictions"][0]["label"], bright)
    return len(records)


def check_prediction(image: Path, label: str, bright: dict[Path, bool]) -> None:
    """Checks that the record is about that photo and no other."""
    assert GPU or label == CLASSES[not bright[image]], f"{image!r}: another photo's record"


# The cases


def infer_table(folder: Folder) -> tuple[str, Outcome]:
    done = Process(*INFER, folder.path).wait()
    check_named(
        "alexnet infer", check_count(done.errors, len(folder.bad), len(folder.bad) + len(folder.bright)), folder.bad
    )
    *blocks, summary = done.output.split("\n\n")
    names = [block.splitlines()[0] for block in blocks]
    assert names == list(map(shown, folder.bright)), f"{len(names)} records of {len(folder.bright)} photos"
    for photo, block in zip(folder.bright, blocks, strict=True):
        rows, rest = block.splitlines()[1:6], block.splitlines()[6:]
        assert [row.split()[0] for row in rows] == list("12345"), block
        assert rest in ([], ["      probably none of the ten classes"]), block
        check_prediction(photo, rows[0].split()[1], folder.bright)
    assert f": {len(names)} photos in " in summary, summary
    assert done.status == 2, done
    return f"{len(names):,} records, {len(folder.bad):,} named", done


def infer_vanishing(folder: Folder) -> tuple[str, Outcome]:
    gone = list(folder.bright)[-3:]
    left = {photo: bright for photo, bright in folder.bright.items() if photo not in gone}
    batch = "4" if len(folder.bright) < 100 else "32"  # the last photos are not read yet when the first come out
    with narrow_pipe() as (stdout, pipe):
        process = Process(*INFER, folder.path, "--json", "--batch", batch, stdout=stdout)
        os.close(stdout)
        output = pipe.readline()
        with vanished(gone):
            output += pipe.read()
            done = process.wait()
    records = check_records(output, left)
    named = check_count(done.errors, len(folder.bad) + 3, len(folder.bad) + len(folder.bright))
    check_named("alexnet infer", named, [*folder.bad, *gone])
    assert sum(line.endswith(": no such file") for line in named) == 3 and done.status == 2, done
    return f"{records:,} records, {len(named):,} named", done


def infer_interrupted(folder: Folder) -> tuple[str, Outcome]:
    with narrow_pipe() as (stdout, pipe):
        # A batch is far more than the pipe holds.
        process = Process(*INFER, folder.path, "--json", "--batch", "20", stdout=stdout, unbuffered=True)
        os.close(stdout)
        output = pipe.readline()
        process.interrupt()
        output += pipe.read()
        done = process.wait()
    records = check_records(output, folder.bright, some=True)
    check_named("alexnet infer", done.errors, folder.bad, some=True)
    assert done.status == 130 and records < len(folder.bright), done
    return f"{records:,} whole records", done


def infer_head(folder: Folder) -> tuple[str, Outcome]:
    reading, writing = os.pipe()
    process = Process(*INFER, folder.path, "--batch", "1", stdout=writing)
    head = subprocess.run(["head", "-1"], stdin=reading, capture_output=True, text=True, close_fds=True)
    os.close(reading)
    os.close(writing)
    done = process.wait()
    assert head.stdout == f"{shown(next(iter(folder.bright)))}\n", head.stdout
    check_named("alexnet infer", done.errors, folder.bad, some=True)
    assert done.status == 141, done
    return "quiet", done


def infer_full(folder: Folder) -> tuple[str, Outcome]:
    return full("alexnet infer", INFER, folder)


def infer_unheard(folder: Folder) -> tuple[str, Outcome]:
    with open("/dev/full", "w") as stderr:
        done = Process(*INFER, folder.path, "--json", stderr=stderr.fileno()).wait()
    records = check_records(done.output, folder.bright)
    assert done.status == 2, done
    return f"{records:,} records", done


def infer_plot(folder: Folder) -> tuple[str, Outcome]:
    photo = next(photo for photo in folder.bright if photo.name.startswith("Latin-1"))
    return plot("alexnet infer", ("-m", "model.infer"), photo)


def evaluate_vanishing(folder: Folder) -> tuple[str, Outcome]:
    gone = list(folder.bright)[-3:]
    process = Process(*EVALUATE, folder.path, "--json", "--batch", "4")
    process.wait_for_workers()
    with vanished(gone):
        done = process.wait()
    record = json.loads(done.output)
    check_named("alexnet evaluate", done.errors, [*folder.bad, *gone])
    rows = [sum(path.parent.name == name for path in folder.bright if path not in gone) for name in CLASSES]
    assert list(map(sum, record["confusion"])) == rows and record["images"] == sum(rows), record
    assert record["skipped"] == len(folder.bad) + 3 and done.status == 2, record
    return f"{record['images']:,} counted, {record['skipped']:,} named", done


def evaluate_table(folder: Folder) -> tuple[str, Outcome]:
    done = Process(*EVALUATE, folder.path).wait()
    check_named("alexnet evaluate", done.errors, folder.bad)
    last = done.output.splitlines()[-1]
    assert f", {len(folder.bright)} images of " in last, last
    assert f", {len(folder.bad)} skipped that cannot be read" in last and done.status == 2, done
    return f"{len(folder.bright):,} counted, {len(folder.bad):,} named", done


def evaluate_interrupted(folder: Folder) -> tuple[str, Outcome]:
    process = Process(*EVALUATE, folder.path, "--batch", "1")
    process.wait_for_workers()
    process.interrupt()
    done = process.wait()
    assert (done.status, done.output, done.errors) == (130, "", []), done
    return "quiet", done


def evaluate_closed(folder: Folder) -> tuple[str, Outcome]:
    reading, writing = os.pipe()
    os.close(reading)
    process = Process(*EVALUATE, folder.path, stdout=writing)
    os.close(writing)
    done = process.wait()
    check_named("alexnet evaluate", done.errors, folder.bad)
    assert done.status == 141, done
    return "quiet", done


def evaluate_full(folder: Folder) -> tuple[str, Outcome]:
    return full("alexnet evaluate", EVALUATE, folder)


def evaluate_plot(folder: Folder) -> tuple[str, Outcome]:
    return plot("alexnet evaluate", (*EVALUATE, "--workers", "0"), folder.path, folder.bad)


def full(name: str, arguments: tuple[str, ...], folder: Folder) -> tuple[str, Outcome]:
    """If there is no room for the output, one line says so."""
    with open("/dev/full", "w") as stdout:
        done = Process(*arguments, folder.path, stdout=stdout.fileno()).wait()
    *named, last = done.errors
    assert last == f"{name}: error: standard output cannot be written: No space left on device", last
    check_named(name, named, folder.bad, some=True)
    assert done.status == 2, done
    return "one line", done


def plot(name: str, arguments: tuple[str, ...], target: Path, bad: list[Path] | tuple = ()) -> tuple[str, Outcome]:
    """If there is no room for the plot, one line says so, and no part of it is left."""
    import matplotlib.font_manager  # noqa: F401 - makes its cache of fonts while there is room

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.png")
        done = Process(*arguments, target, "--plot", out, file_bytes=10_000).wait()
        assert not os.listdir(folder), "left a file behind"
    *named, last = done.errors
    assert last.startswith(f"{name}: error: {out}: cannot be written: "), last
    check_named(name, named, list(bad))
    assert done.status == 2, done
    return "one line, no file", done


class Case(NamedTuple):
    """What is done, and whether to all photos. Few are enough if only the end of the run matters."""

    what: str
    run: Callable[[Folder], tuple[str, Outcome]]
    large: bool = True


CASES = (
    Case("infer", infer_table),
    Case("infer --json, 3 photos vanish", infer_vanishing),
    Case("infer --json, Ctrl-C", infer_interrupted),
    Case("infer | head -1", infer_head),
    Case("infer > /dev/full", infer_full),
    Case("infer --json 2> /dev/full", infer_unheard, large=False),
    Case("infer --plot, disk full", infer_plot, large=False),
    Case("evaluate", evaluate_table),
    Case("evaluate --json, 3 photos vanish", evaluate_vanishing, large=False),
    Case("evaluate, Ctrl-C", evaluate_interrupted),
    Case("evaluate | true", evaluate_closed, large=False),
    Case("evaluate > /dev/full", evaluate_full, large=False),
    Case("evaluate --plot, disk full", evaluate_plot, large=False),
)


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="python -m tests.stress", description="Runs infer and evaluate on a very bad folder.")
    parser.add_argument(
        "--photos", type=int, default=10_000, metavar="N", help="in the large folder, at least 60 (10,000)"
    )
    photos = parser.parse_args(argv).photos
    if photos < 60:
        raise AlexNetError(f"--photos must be at least 60, got {photos}")
    started, failed = time.monotonic(), 0
    lines = [f"{'case':34}{'photos':>8}{'s':>7}{'MiB':>7}{'worker':>8}  result"]
    print(lines[0])

    def check(case: Case, folder: Folder) -> Outcome | None:
        nonlocal failed
        count = f"{case.what:34}{len(folder.bright) + len(folder.bad):8,}"
        try:
            result, done = case.run(folder)
            lines.append(f"{count}{done.seconds:7.0f}{done.peak:7,}{done.worker_peak:8,}  {done.status}: {result}")
        except AssertionError as error:
            failed, done = failed + 1, None
            lines.append(f"{count}  FAILED: {error!s:.300}")
        print(lines[-1], flush=True)
        return done

    with tempfile.TemporaryDirectory() as temporary:
        large, small = (make_folder(Path(temporary, name), n) for name, n in (("large", photos), ("small", 60)))
        outcomes = {case.what: check(case, large if case.large else small) for case in CASES}
    for what in ("infer", "evaluate"):
        if outcome := outcomes[what]:
            verdict = "ok" if outcome.growth <= GROWTH else "FAILED"
            failed += verdict == "FAILED"
            lines.append(f"{what}, a process grew by {outcome.growth} MiB at most from middle to end: {verdict}")
            print(lines[-1])
    device = device_name(torch.device("cuda" if GPU else "cpu"))
    network = "" if GPU else ", infer's network replaced by one that tells bright from dark"
    results.write(RESULT, lines, f"{failed or 'none'} failed on {device}{network}", started)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    return command.run("tests.stress", run, argv)


if __name__ == "__main__":
    sys.exit(main())
