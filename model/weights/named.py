"""Weights by name: the bundled ones, and published ones that are downloaded when somebody asks for them.

Downloads go where ``torch.hub`` keeps its own, ``$TORCH_HOME/hub/checkpoints``. ``torch.hub``'s downloader itself has
neither a time limit nor a limit of size, and knows SHA-256 alone, so this one streams through requests: to a temporary
file that gets its name only once its size and its checksum are what was published.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
import torch
from tqdm import tqdm

from model.weights import deep_compression
from model.weights.common import LARGEST, WeightsError

TIMEOUT = 30.0  # seconds without a byte


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
    "cifar10": Named("CIFAR-10's ten classes", Path(__file__).with_name("cifar10.npz")),
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
    """The file of a downloaded name; None where it is not there, or not whole."""
    for source in NAMED[name].sources:
        path = cache() / source.file
        if path.is_file() and source.bytes in (None, path.stat().st_size):
            return path
    return None


def published_as(path: Path) -> str | None:
    """The name whose published file this is, by its size and checksum; None for any other file."""
    for name, named in NAMED.items():
        for source in named.sources:
            if source.digest and source.bytes in (None, path.stat().st_size):
                with open(path, "rb") as file:
                    digest = hashlib.new(source.algorithm)
                    while block := file.read(2**20):
                        digest.update(block)
                if digest.hexdigest().startswith(source.digest):
                    return name
    return None


def fetch(name: str) -> Path:
    """The file of a name, downloaded if it is not there yet, from the first of its sources that answers.

    Raises:
        WeightsError: no source gave the file that was published; nothing has been written then.
    """
    named = NAMED[name]
    found = named.bundled or cached(name)
    if found:
        return found
    failures = []
    for source in named.sources:
        try:
            return _download(source)
        except WeightsError as error:
            failures.append(str(error))
    raise WeightsError(
        f"{name}: cannot be downloaded: {'; '.join(failures)}. Put the file of {named.sources[0].url} at "
        f"{cache() / named.sources[0].file}, or use the bundled weights, cifar10"
    )


def _download(source: Source) -> Path:
    """One source's file, whole and checked, in the cache."""
    host = urlsplit(source.url).netloc
    target = cache() / source.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{source.file}.", delete=False) as file:
            try:
                _stream(source, file, host)
                if not source.digest:
                    deep_compression.read(file.name, f"what {host} sent")
                os.replace(file.name, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name)
    except requests.RequestException as error:
        what = str(error.response.status_code) if error.response is not None else type(error).__name__
        raise WeightsError(f"{host} did not send it ({what})") from error
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _stream(source: Source, file, host: str) -> None:
    limit = LARGEST if source.bytes is None else source.bytes
    digest, length = hashlib.new(source.algorithm), 0
    with requests.get(source.url, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        with tqdm(total=source.bytes, desc=source.file, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            for block in answer.iter_content(2**20):
                length += len(block)
                if length > limit:
                    raise WeightsError(f"{host} sent more than the {limit:,} bytes published")
                digest.update(block)
                file.write(block)
                bar.update(len(block))
    file.flush()
    if source.bytes is not None and length != source.bytes:
        raise WeightsError(f"{host} sent {length:,} bytes of the {source.bytes:,} published")
    if not digest.hexdigest().startswith(source.digest):
        raise WeightsError(f"{host} sent another file: its {source.algorithm} is {digest.hexdigest()}")
