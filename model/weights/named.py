"""Weights by name: the bundled ones, and published ones that are downloaded when somebody asks for them.

Downloads go where ``torch.hub`` keeps its own, ``$TORCH_HOME/hub/checkpoints``. ``torch.hub``'s downloader itself has
neither a time limit nor a limit of size, and knows SHA-256 alone, so this one streams: to a temporary file that gets
its name only once its size and its checksum are what was published.
"""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from tqdm import tqdm

from model.weights import deep_compression
from model.weights.common import LARGEST, WeightsError

TIMEOUT = 30.0  # seconds without a byte
SLOWEST = 1000.0  # bytes a second, of which less is as good as none


class Source(NamedTuple):
    """A published file: its address, its bytes, and the checksum's algorithm and first digits, as far as published."""

    url: str
    bytes: int | None
    algorithm: str = "sha256"
    digest: str = ""

    @property
    def file(self) -> str:
        """What it is called in the cache."""
        return Path(urlsplit(self.url).path).name


class Named(NamedTuple):
    """What a name stands for: a file that comes with the package, or published ones of the same weights."""

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
                "sha1",
                "9116a64c0fbe4459d18f4bb6b56d647b63920377",
            ),
            Source(
                "https://huggingface.co/onnxmodelzoo/legacy_models/resolve/main/validated/vision/classification/"
                "alexnet/model/bvlcalexnet-12.onnx",
                243_863_787,
                "sha256",
                "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
            ),
        ),
    ),
    "deep-compression": Named(
        "BVLC's weights pruned and quantised by Deep Compression, 8.9 MB: 57.07 % top-1, 80.25 % top-5",
        # No checksum is published, so the file is decoded, which takes every one of its bytes, before it is kept.
        sources=(
            Source("https://github.com/songhan/Deep-Compression-AlexNet/raw/master/AlexNet_compressed.net", None),
        ),
    ),
    "torchvision": Named(
        "ImageNet's 1000 classes, torchvision's network of the name: 56.52 % top-1, 79.07 % top-5",
        sources=(Source("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", None, "sha256", "7be5be79"),),
    ),
}


def cache() -> Path:
    """The folder that downloads are kept in."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached(name: str) -> Path | None:
    """The file of a downloaded name, by its size; None where it is not there."""
    for source in NAMED[name].sources:
        path = cache() / source.file
        if os.path.isfile(path) and source.bytes in (None, path.stat().st_size):
            return path
    return None


def published_as(path: Path) -> str | None:
    """The name whose published file this is, by its size and checksum; None for any other file."""
    for name, named in NAMED.items():
        for source in named.sources:
            if not source.digest or source.bytes not in (None, path.stat().st_size):
                continue
            if _digest(source, path).startswith(source.digest):
                return name
    return None


def fetch(name: str) -> Path:
    """The file of a name, downloaded if it is not there yet, from the first of its sources that gives it.

    Raises:
        WeightsError: no source gave the file that was published; nothing has been written then.
    """
    named = NAMED[name]
    if named.bundled:
        return named.bundled
    failures = []
    for source in named.sources:
        path = cache() / source.file
        if os.path.isfile(path):  # Path.is_file raises where the folder may not be looked into
            try:
                _check(source, path, str(path))
                return path
            except (WeightsError, OSError) as error:
                failures.append(str(error))
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


def _digest(source: Source, path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.new(source.algorithm)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _check(source: Source, path: Path, what: str) -> None:
    """Checks that a file is the one published; one without a checksum is decoded, which takes all of its bytes."""
    size = path.stat().st_size
    if source.bytes not in (None, size):
        raise WeightsError(f"{what} has {size:,} bytes, and {source.bytes:,} were published")
    if not source.digest:
        deep_compression.read(path, what)
        return
    digest = _digest(source, path)
    if not digest.startswith(source.digest):
        raise WeightsError(f"{what} is another file: its {source.algorithm} is {digest}")


def _download(source: Source) -> Path:
    """One source's file, whole and checked, in the cache."""
    host = urlsplit(source.url).netloc
    target = cache() / source.file
    partial = target.with_name(f".{source.file}.{os.getpid()}.partial")
    bar = tqdm(total=source.bytes, desc=source.file, unit="B", unit_scale=True, leave=False, disable=None)
    try:
        with bar:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                for block in _blocks(source, host):
                    file.write(block)
                    bar.update(len(block))
                file.flush()
                os.fsync(file.fileno())
        _check(source, partial, f"what {host} sent")
        os.replace(partial, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return target


def _blocks(source: Source, host: str) -> Iterator[bytes]:
    """What the source sends, as it comes.

    Raises:
        WeightsError: no answer, an answer that stops or hardly moves, or more bytes than were published.
    """
    request = urllib.request.Request(
        source.url, headers={"User-Agent": "alexnet-triton", "Accept-Encoding": "identity"}
    )
    most = source.bytes or LARGEST
    length, since, before = 0, time.monotonic(), 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            promised = answer.length
            if promised is not None and (promised > most or source.bytes not in (None, promised)):
                raise WeightsError(f"{host} has a file of {promised:,} bytes, and {most:,} were published")
            while block := answer.read1(2**18):
                length += len(block)
                if length > most:
                    raise WeightsError(f"{host} sent more than the {most:,} bytes published")
                yield block
                waited = time.monotonic() - since
                if waited > TIMEOUT:
                    if length - before < SLOWEST * waited:
                        raise WeightsError(f"{host} sends too slowly: {length:,} bytes, and then hardly any more")
                    since, before = time.monotonic(), length
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{host} did not send it: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            cause = f"no byte in {TIMEOUT:g} s"
        raise WeightsError(f"{host} did not send it: {getattr(cause, 'strerror', None) or cause}") from error
    whole = source.bytes or promised
    if whole not in (None, length):
        raise WeightsError(f"{host} sent {length:,} bytes of {whole:,}")
