"""All commands: help on stdout and status 0; one line on stderr and status 2 for an unknown option."""

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels.tools import roofline, trace_cli
from model import cli, two_gpus

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_needs_no_pytorch(name, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported torch')")  # the current folder comes first
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        command = [sys.executable, "-m", "model.cli", name, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    helped = run("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"usage: {two_gpus.COMMAND if name == 'two-gpus' else f'alexnet {name}'}")
    refused = run("--nonsense")
    assert (refused.returncode, refused.stdout) == (2, "")
    lines = refused.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"alexnet {name}: error: ")


def test_the_decoy_is_found(tmp_path):
    """So the test above can fail."""
    (tmp_path / "torch.py").write_text("raise SystemExit('imported torch')")
    command = [sys.executable, "-c", "import model.alexnet"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.stderr == b"imported torch\n"


def test_in_a_thread(tmp_path):
    """In a thread, Python does not let a command change what Ctrl-C does."""
    arguments = ["--bandwidth", "1", "--rate", "1", "--out", str(tmp_path)]
    with ThreadPoolExecutor() as pool:
        assert pool.submit(roofline.main, arguments).result() == 0
        assert pool.submit(trace_cli.main, ["softmax", "--program", "9"]).result() == 2


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("line", [pytest.param("trace softmax", marks=pytest.mark.full), "weights list"])
def test_full_disk(line, unbuffered):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered, "TRITON_INTERPRET": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "model.cli", *line.split()],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    name = line.split()[0]
    assert done.stderr == f"alexnet {name}: error: standard output cannot be written: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_closed_streams(name):
    """Messages for stderr do not go to stdout, and a command whose output nobody can see does nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(arguments):
        command = ["sh", "-c", f"exec {sys.executable} -m model.cli {name} {arguments}"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = run("--help >&-")
    assert (done.returncode, done.stderr) == (2, "alexnet: error: standard output is closed\n")
    done = run("--nonsense 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


HANGS_UP = """
import os
import socket
import sys
from multiprocessing.resource_sharer import DupFd

from model.photos.loading import start_worker

if "worker" in sys.argv:
    start_worker(0)
shared = DupFd(1)
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect(shared._id[0])
os.close(shared.detach())  # served after the first one, which is then finished
"""


@pytest.mark.parametrize("who", ["worker", "other"])
def test_a_worker_whose_reader_hangs_up(who):
    """Ctrl-C may end the reader while a worker passes it a tensor."""
    done = subprocess.run([sys.executable, "-c", HANGS_UP, who], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ("Traceback" in done.stderr) == (who == "other"), done.stderr
    assert who == "other" or not done.stderr


@pytest.mark.parametrize("name", ["tests.mutations", "tests.ptx_faults", "tests.stress", "execute"])
def test_help_and_nonsense(name, capsys):
    main = importlib.import_module(name).main
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "") and out.startswith("usage: python ")
    assert main(["--nonsense"]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and err.startswith(f"{name}") and ": error: " in err
