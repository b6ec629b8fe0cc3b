"""Two packages are imported as ``kernels``: ours and Hugging Face's. Both may be installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOW = "import kernels; print(kernels.__file__)"


@pytest.fixture
def theirs(tmp_path):
    """The folder of another package, which Python finds before ours, like one in site-packages."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def get_kernel(name): ...\n")
    return package


def python(theirs, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(theirs.parent), str(ROOT)])}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_theirs_is_theirs_outside_the_project(theirs, tmp_path):
    assert python(theirs, tmp_path, "-c", SHOW).stdout == f"{theirs / '__init__.py'}\n"


def test_ours_is_ours_inside(theirs):
    assert python(theirs, ROOT, "-c", SHOW).stdout == f"{ROOT / 'kernels' / '__init__.py'}\n"


@pytest.mark.full
def test_model_brings_ours(theirs, tmp_path):
    found = python(theirs, tmp_path, "-c", f"import model.layers\n{SHOW}")
    assert (found.stdout, found.stderr) == (f"{ROOT / 'kernels' / '__init__.py'}\n", "")
    helped = python(theirs, tmp_path, "-m", "model.infer", "--help")
    assert helped.returncode == 0 and helped.stdout.startswith("usage: alexnet infer")


@pytest.mark.full
def test_notebooks_bring_ours(theirs):
    found = python(theirs, ROOT / "notebooks", "-c", f"from lesson import style\n{SHOW}")
    assert (found.stdout, found.stderr) == (f"{ROOT / 'kernels' / '__init__.py'}\n", "")
    helped = python(theirs, ROOT / "notebooks", "execute.py", "--help")
    assert helped.returncode == 0 and helped.stdout.startswith("usage: python notebooks/execute.py")


def test_not_both_in_one_process(theirs, tmp_path):
    found = python(theirs, tmp_path, "-c", "import kernels, model.layers")
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith(f"ImportError: model needs the kernels in {ROOT / 'kernels'}; ")
