"""Weights by name: the bundled ones, and published ones that are downloaded when somebody asks for them.

Downloads are kept where ``torch.hub`` keeps its own, in ``$TORCH_HOME/hub/checkpoints``.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
import torch
from tqdm import tqdm

from model.weights import deep_compression
from model.weights.common import LARGEST_FILE, WeightsError

TIMEOUT = 30.0  # seconds without a byte
SLOWEST = 1000.0  # bytes per second


class Source(NamedTuple):
    """A published file: its address, its size in bytes, and its checksum as "sha1:..." or "sha256:...", if known."""

    url: str
    bytes: int | None
    checksum: str | None = None

    @property
    def file(self) -> str:
        """Its name in the cache."""
        return Path(urlsplit(self.url).path).name

    def check(self, path: Path) -> None:
        """Raises WeightsError if a file is not the published one. Without a checksum the file is decoded instead."""
        size = path.stat().st_size
        if self.bytes not in (None, size):
            raise WeightsError(f"has {size:,} bytes, and {self.bytes:,} were published")
        if self.checksum is None:
            deep_compression.read(path)
            return
        algorithm, _, expected = self.checksum.partition(":")
        found = hashlib.new(algorithm, path.read_bytes()).hexdigest()
        if found != expected:
            raise WeightsError(f"is another file: its {algorithm} is {found}")


class Named(NamedTuple):
    """What a name stands for: a bundled file, or published files of the same weights."""

    description: str
    bundled: Path | None = None
    sources: tuple[Source, ...] = ()


NAMED = {
    "cifar10": Named("CIFAR-10's ten classes", Path(__file__).with_name("cifar10.net")),
    "bvlc": Named(
        "ImageNet's 1000 classes, BVLC's training of the 2012 network: 57.1 % top-1, 80.2 % top-5",
        sources=(
            Source(
                "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
                243_862_414,
                "sha1:9116a64c0fbe4459d18f4bb6b56d647b63920377",
            ),
            Source(
                "https://huggingface.co/onnxmodelzoo/legacy_models/resolve/main/validated/vision/classification/"
                "alexnet/model/bvlcalexnet-12.onnx",
                243_863_787,
                "sha256:6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
            ),
        ),
    ),
    "deep-compression": Named(
        "BVLC's weights pruned and quantised by Deep Compression, 8.9 MB: 57.07 % top-1, 80.25 % top-5",
        sources=(
            Source("https://github.com/songhan/Deep-Compression-AlexNet/raw/master/AlexNet_compressed.net", None),
        ),
    ),
    "torchvision": Named(
        "ImageNet's 1000 classes, torchvision's network of the name: 56.52 % top-1, 79.07 % top-5",
        sources=(
            Source(
                "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                244_408_911,
                "sha256:7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            ),
        ),
    ),
}


def cache() -> Path:
    """The folder that downloads are kept in."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached(name: str) -> Path | None:
    """The file of a downloaded name, recognised by its size; None if it is not there."""
    for source in NAMED[name].sources:
        path = cache() / source.file
        if os.path.isfile(path) and source.bytes in (None, path.stat().st_size):
            return path
    return None


def published_as(path: Path) -> str | None:
    """The name whose published file this is, by its size and checksum; None for any other file."""
    for name, named in NAMED.items():
        for source in named.sources:
            with contextlib.suppress(WeightsError):
                if source.checksum:
                    source.check(path)
                    return name
    return None


def fetch(name: str) -> Path:
    """The file of a name. If it is not there yet, it is downloaded from the first of its sources that works.

    Raises WeightsError if no source gave the published file. Nothing has been written then.
    """
    named = NAMED[name]
    if named.bundled:
        return named.bundled
    failures = []
    for source in named.sources:
        path = cache() / source.file
        if os.path.isfile(path):  # Path.is_file raises if its folder may not be looked into
            try:
                source.check(path)
                return path
            except (WeightsError, OSError) as error:
                failures.append(f"{path} {error}")
    for source in named.sources:
        try:
            return _download(source)
        except WeightsError as error:
            failures.append(str(error))
    source = named.sources[0]
    raise WeightsError(
        f"{name}: cannot be downloaded: {'; '.join(failures)}. Put the file of {source.url} at "
        f"{cache() / source.file}; cifar10, which is bundled, needs no network"
    )


def _download(source: Source) -> Path:
    """One source's file in the cache. It gets its name only when it is whole and is the published one."""
    host, target = urlsplit(source.url).netloc, cache() / source.file
    partial = target.with_name(f"{source.file}.{os.getpid()}")
    headers = {"User-Agent": "alexnet-triton", "Accept-Encoding": "identity"}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with requests.get(source.url, headers=headers, timeout=TIMEOUT, stream=True) as response:
            response.raise_for_status()
            _receive(response.iter_content(2**16), source, partial)
        source.check(partial)
        os.replace(partial, target)
    except WeightsError as error:
        raise WeightsError(f"what {host} sent: {error}") from error
    except requests.RequestException as error:
        raise WeightsError(f"{host} did not send it: {_cause(error)}") from error
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return target


def _receive(blocks: Iterable[bytes], source: Source, path: Path) -> None:
    """Writes what a source sends, and gives up on one that sends more than was published, or hardly anything."""
    most, length, before, since = source.bytes or LARGEST_FILE, 0, 0, time.monotonic()
    bar = tqdm(total=source.bytes, desc=source.file, unit="B", unit_scale=True, leave=False, disable=None)
    with bar, open(path, "wb") as file:
        for block in blocks:
            length += len(block)
            if length > most:
                raise WeightsError(f"is more than the {most:,} bytes published")
            waited = time.monotonic() - since
            if waited > TIMEOUT:
                if length - before < SLOWEST * waited:
                    raise WeightsError(f"comes too slowly: {length:,} bytes, and then hardly any more")
                since, before = time.monotonic(), length
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())


def _cause(error: requests.RequestException) -> str:
    """What went wrong on the network, in short."""
    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    cause = error.args[0] if error.args else error
    while isinstance(cause, Exception) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, TimeoutError):
        return f"no byte in {TIMEOUT:g} s"
    return getattr(cause, "strerror", None) or str(cause)
