"""Weights by name: downloads from a server that fails in many ways, and the command ``alexnet weights``."""

import errno
import hashlib
import http.server
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import AlexNet_Weights

from model import weights
from model.weights import WeightsError, named
from model.weights.named import Named, Source
from tests import weight_files as files

ROOT = Path(__file__).parent.parent
DATA = files.pth(files.state_dict(files.small_layers()))
SIZE, CHECKSUM = len(DATA), f"sha256:{hashlib.sha256(DATA).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of an address says what the server does."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", "/good/elsewhere")
            self.end_headers()
            return
        data = {"wrong": DATA[::-1], "more": DATA + b"x"}.get(kind, DATA)
        self.send_response(200)
        length = {"short": len(data) - 10, "long": len(data) + 10, "vast": 2**60}.get(kind, len(data))
        if kind not in ("unsaid", "unsaid-cut", "endless"):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.server.requests.append(self.path)
        if kind in ("cut", "unsaid-cut"):
            data = data[: len(data) // 2]
        for start in range(0, len(data), 1000):
            self.wfile.write(data[start : start + 1000])
            self.wfile.flush()
            if kind == "silent":
                self.server.stopping.wait(60)
            if kind in ("drip", "slow"):
                self.server.stopping.wait(0.2 if kind == "drip" else 0.02)
        while kind == "endless" and not self.server.stopping.is_set():
            self.wfile.write(bytes(2**16))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            pass  # clients that hang up

    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.stopping = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache's folder, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def publish(server, monkeypatch, cache):
    """A function that registers the name ``small`` for some of the server's addresses."""

    def publish(*kinds, size=SIZE, checksum=CHECKSUM):
        address = f"http://127.0.0.1:{server.server_port}"
        sources = tuple(Source(f"{address}/{kind}/{kind}.pth", size, checksum) for kind in kinds)
        monkeypatch.setitem(named.NAMED, "small", Named("a few numbers", sources=sources))
        server.requests.clear()
        return sources

    return publish


def left(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


@pytest.mark.parametrize("kind", ["good", "redirect", "unsaid", "slow"])
def test_download(publish, server, cache, kind):
    publish(kind)
    assert weights.cached("small") is None
    loaded = weights.load("small")
    assert loaded.name == "small"
    assert np.array_equal(loaded.layers["fc8"][1], files.small_layers()["fc8"][1])
    assert left(cache) == [f"{kind}.pth"] and (cache / f"{kind}.pth").read_bytes() == DATA
    assert weights.cached("small") == cache / f"{kind}.pth"
    assert named.published_as(cache / f"{kind}.pth") == "small"
    mode = stat.S_IMODE((cache / f"{kind}.pth").stat().st_mode)
    plain = cache / "plain"
    plain.touch()
    assert mode == stat.S_IMODE(plain.stat().st_mode), "others who share the cache cannot read it"
    asked = len(server.requests)
    weights.load("small")
    assert len(server.requests) == asked, "asked again for what is in the cache"


WRONG = {
    "missing": "did not send it: 404 Not Found",
    "cut": "did not send it: IncompleteRead",
    "unsaid-cut": "sent: has [0-9,]+ bytes, and [0-9,]+ were published",
    "long": "did not send it: IncompleteRead",
    "short": "sent: has [0-9,]+ bytes, and [0-9,]+ were published",
    "vast": "did not send it: IncompleteRead",
    "more": "sent: is more than the [0-9,]+ bytes published",
    "endless": "sent: is more than the [0-9,]+ bytes published",
    "wrong": "what 127.0.0.1:[0-9]+ sent: is another file: its sha256 is [0-9a-f]+",
    "silent": "did not send it: no byte in 0.5 s",
    "drip": "sent: comes too slowly: [0-9,]+ bytes",
}


def check_refusal(error, sources, cache):
    line = str(error.value)
    assert line.isprintable() and len(line) <= 600
    assert sources[0].url in line and str(cache / sources[0].file) in line
    assert "cifar10, which is bundled, needs no network" in line
    assert left(cache) == []


@pytest.mark.parametrize(("kind", "message"), WRONG.items(), ids=WRONG)
def test_failures(publish, cache, monkeypatch, kind, message):
    monkeypatch.setattr(named, "TIMEOUT", 0.5)
    monkeypatch.setattr(named, "SLOWEST", 1e5)
    sources = publish(kind)
    with pytest.raises(WeightsError, match=f"^small: cannot be downloaded: .*{message}") as error:
        weights.load("small")
    check_refusal(error, sources, cache)


@pytest.mark.parametrize("kind", ["cut", "unsaid-cut", "long", "wrong", "endless"])
def test_failures_of_a_file_without_a_published_size_or_sum(publish, cache, monkeypatch, kind):
    """Deep Compression's is such a file. It is decoded before it is kept."""
    monkeypatch.setattr(named, "LARGEST_FILE", 2**20)
    sources = publish(kind, size=None, checksum=None)
    with pytest.raises(WeightsError, match=r"^small: cannot be downloaded: ") as error:
        weights.load("small")
    check_refusal(error, sources, cache)


def test_no_network(publish, cache, monkeypatch):
    sources = [Source("http://127.0.0.1:1/a.pth", 3), Source("http://nowhere.invalid/b.pth", 3)]
    monkeypatch.setitem(named.NAMED, "small", Named("a few numbers", sources=tuple(sources)))
    message = r"127\.0\.0\.1:1 did not send it: Connection refused; nowhere\.invalid did not send it: "
    with pytest.raises(WeightsError, match=message) as error:
        weights.load("small")
    check_refusal(error, sources, cache)


def test_the_second_source_answers(publish, cache):
    publish("missing", "wrong", "good")
    weights.load("small")
    assert left(cache) == ["good.pth"]


def test_a_file_put_there_by_hand(publish, server, cache):
    """It is used if it is the published file, and replaced if it is not."""
    publish("missing", "good")
    cache.mkdir(parents=True)
    (cache / "good.pth").write_bytes(DATA)
    weights.load("small")
    assert not server.requests
    (cache / "good.pth").write_bytes(DATA[::-1])
    weights.load("small")
    assert (cache / "good.pth").read_bytes() == DATA and left(cache) == ["good.pth"]
    publish("missing")
    (cache / "missing.pth").write_bytes(DATA[:-1])
    assert weights.cached("small") is None
    with pytest.raises(WeightsError, match=r"missing\.pth has [0-9,]+ bytes, and [0-9,]+ were published"):
        weights.load("small")


def test_a_damaged_file_without_a_checksum_is_replaced(publish, cache, monkeypatch):
    def decode(path):
        if Path(path).read_bytes() != DATA:
            raise WeightsError("damaged")

    monkeypatch.setattr(named.deep_compression, "read", decode)
    publish("good", size=None, checksum=None)
    cache.mkdir(parents=True)
    (cache / "good.pth").write_bytes(DATA[:-1])
    weights.load("small")
    assert (cache / "good.pth").read_bytes() == DATA and left(cache) == ["good.pth"]


def test_disk_full(publish, cache, monkeypatch):
    sources = publish("good")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(named.os, "fsync", full)
    with pytest.raises(WeightsError, match=r"good\.pth: cannot be written: No space left on device") as error:
        weights.load("small")
    check_refusal(error, sources, cache)


def test_a_cache_that_cannot_be_written(publish, tmp_path, cache):
    """The cache's place is taken by a file."""
    publish("good")
    (tmp_path / "torch").write_text("a file")
    with pytest.raises(WeightsError, match=r"good\.pth: cannot be written: (Not a directory|File exists)"):
        weights.load("small")
    assert (tmp_path / "torch").read_text() == "a file"


def weights_command(*arguments, **environment):
    """(exit status, lines of stdout, lines of stderr)"""
    done = subprocess.run(
        [sys.executable, "-m", "model.cli", "weights", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_a_cache_that_cannot_be_looked_into(tmp_path, monkeypatch):
    """As if HOME were another user's. Here its name is too long, which the system refuses to every user."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / ("a" * 300)))
    assert named.cached("bvlc") is None
    with pytest.raises(WeightsError, match="bvlc: cannot be downloaded"):
        weights.load("bvlc")


def test_ctrl_c_leaves_nothing(server, cache):
    """In another process, since its download hangs."""
    code = (
        "from model import weights_cli as command\nfrom model.weights import named\n"
        "from model.weights.named import Named, Source\n"
        f"source = Source('http://127.0.0.1:{server.server_port}/silent/a.pth', {len(DATA)})\n"
        "named.NAMED['small'] = Named('', sources=(source,))\n"
        "raise SystemExit(command.main(['download', 'small']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not left(cache):
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130 and "Traceback" not in errors
    assert left(cache) == []


def test_help_needs_no_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported torch')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for arguments in (["--help"], ["convert", "--help"]):
        status, out, err = weights_command(*arguments, PYTHONPATH=path)
        assert status == 0 and not err and out[0].startswith("usage: alexnet weights")
    assert weights_command("list", PYTHONPATH=path)[2] == ["imported torch"]
    for arguments, message in (
        ([], "the following arguments are required: COMMAND"),
        (["nonsense"], "argument COMMAND: invalid choice: 'nonsense'"),
        (["download"], "the following arguments are required: NAME"),
        (["verify", "a", "b"], "unrecognized arguments: b"),
        (["convert", "a", "b.npz"], "OUT must name a .safetensors file, got 'b.npz'"),
    ):
        status, out, err = weights_command(*arguments, PYTHONPATH=path)
        assert (status, out, len(err)) == (2, [], 1)
        assert err[0].startswith(f"alexnet weights: error: {message}")


def test_loading_imports_no_other_formats_libraries():
    code = "import sys; from model import weights; weights.load()"
    look = "; print([m for m in ('torch', 'numpy', 'onnx', 'google.protobuf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + look], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['torch', 'numpy']\n", done.stderr


@pytest.fixture
def command(capsys):
    """The command in this process: (exit status, lines of stdout, lines of stderr)."""
    from model.weights_cli import main

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_list_and_download(command, publish, cache):
    publish("good")
    status, out, err = command("list")
    assert status == 0 and not err
    assert [line.split()[0] for line in out[::2]] == ["cifar10", "bvlc", "deep-compression", "torchvision", "small"]
    assert out[1].split() == ["bundled"] and out[9].strip().startswith("not downloaded; from http://127.0.0.1:")
    assert out[3].strip() == "not downloaded; from http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel"
    assert command("download", "small") == (0, [str(cache / "good.pth")], [])
    assert command("list")[1][9].strip() == f"at {cache / 'good.pth'}"
    status, out, err = command("download", "other")
    assert (status, out) == (2, [])
    assert err == [
        "alexnet weights: error: NAME must be one of cifar10, bvlc, deep-compression, torchvision, small, got 'other'"
    ]


def test_verify_and_convert(command, tmp_path, monkeypatch):
    status, out, err = command("verify", "cifar10")
    assert status == 0 and not err
    assert out[0].startswith("cifar10: a .net file of Deep Compression's")
    assert out[1].startswith("  conv1: 96 x 3 x 11 x 11, ") and out[1].endswith(" zeros, and 96 biases")
    assert out[-2] == "56,909,194 parameters, 10 classes, normalisation bvlc: whole and finite"
    assert out[-1] == "the bundled file"

    target = tmp_path / "a.safetensors"
    status, out, err = command("convert", "cifar10", target)
    assert status == 0 and out == [f"{target}: 8 layers, 10 classes, {target.stat().st_size:,} bytes"] and not err
    before, after = weights.load("cifar10"), weights.load(target)
    assert (before.classes, before.lrn, before.preprocess) == (after.classes, after.lrn, after.preprocess)
    assert all(
        torch.equal(a, b) for n in weights.LAYER_NAMES for a, b in zip(before.layers[n], after.layers[n], strict=True)
    )
    os.unlink(target)

    small = tmp_path / "small.pth"
    small.write_bytes(DATA)
    for arguments, message in (
        (["verify", small], f"{small}: conv1's weight must be (96, 3, 11, 11), got (5, 3, 2, 4)"),
        (["convert", small, target], f"{small}: conv1's weight must be (96, 3, 11, 11), got (5, 3, 2, 4)"),
        (["verify", "nowhere"], "nowhere: no such file, and no weights of that name ("),
        (
            ["convert", "cifar10", tmp_path / "no" / "a.safetensors"],
            f"{tmp_path}/no/a.safetensors: cannot be written: No",
        ),
    ):
        status, out, err = command(*arguments)
        assert (status, out, len(err)) == (2, [], 1) and err[0].startswith(f"alexnet weights: error: {message}"), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.pth"]


def test_what_is_published():
    """The published numbers, stated a second time."""
    bvlc = named.NAMED["bvlc"].sources
    assert [(source.file, source.bytes, source.checksum[:13]) for source in bvlc] == [
        ("bvlc_alexnet.caffemodel", 243_862_414, "sha1:9116a64c"),
        ("bvlcalexnet-12.onnx", 243_863_787, "sha256:6b0da9"),
    ]
    torchvision = named.NAMED["torchvision"].sources[0]
    assert torchvision.url == AlexNet_Weights.IMAGENET1K_V1.url
    digits = torchvision.file.removesuffix(".pth").rpartition("-")[2]  # the checksum's first digits, as published
    assert torchvision.checksum.startswith(f"sha256:{digits}") and len(torchvision.checksum) == len(CHECKSUM)
    assert named.NAMED["deep-compression"].sources[0].file == "AlexNet_compressed.net"
