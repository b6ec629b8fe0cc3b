"""Every notebook: its .py and .ipynb agree, it runs without a GPU, and the committed outputs are those of this code.

Pictures are not compared, because they differ with the version of matplotlib and its fonts.
"""

import re

import nbformat
import pytest

import execute

NAMES = execute.names()
QUICK = ("00_start_here", "02_bias_relu_fusion")  # short, with most kinds of cells; the full set executes all
EXECUTIONS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in NAMES]

RECORD = """
import lesson
from triton.runtime import interpreter

from tests.launches import recorder

_launches = {}
interpreter.GridExecutor.__call__ = recorder(_launches, lambda kernel: kernel.__module__ == "__main__")
"""
COMPILE = """
from lesson import compiler

compiler.compile({name: compiler.Launch(globals()[name], *launch) for name, launch in _launches.items()})
print(*_launches)
"""


def committed(name: str):
    return nbformat.read(execute.HERE / f"{name}.ipynb", as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell) -> list[str]:
    """Returns all text that a cell has printed or shown. A picture is only ``"a picture"``."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(f"{output.name}: {output.text}")
        elif "image/png" in output.data:
            found.append("a picture")
        else:
            found.append(output.data.get("text/markdown") or output.data["text/plain"])
    return found


def test_there_are_notebooks():
    assert NAMES and NAMES[0] == "00_start_here"
    assert [path.stem for path in sorted(execute.HERE.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_pair(name):
    shape = lambda notebook: [
        (cell.id, cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells
    ]
    assert shape(committed(name)) == shape(execute.read(name)), f"python notebooks/execute.py {name}"


@pytest.mark.parametrize("name", NAMES)
def test_lesson_comes_first(name):
    """The import of lesson comes before triton and kernels, because with a GPU these would turn on the compiler."""
    imports = re.findall(r"^(?:import|from) (\w+)", "\n".join(cell.source for cell in code(execute.read(name))), re.M)
    assert imports[0] == "lesson"


@pytest.mark.parametrize("name", EXECUTIONS)
def test_executes(name):
    """Its own kernels compile for a GPU, too, because the interpreter accepts code that the compiler refuses."""
    notebook = execute.read(name)
    first, last = map(nbformat.v4.new_code_cell, (RECORD, COMPILE))
    notebook.cells = [first, *notebook.cells, last]
    execute.execute(notebook)
    notebook.cells = notebook.cells[1:-1]
    written = set(re.findall(r"^@triton.jit\ndef (\w+)", "\n".join(cell.source for cell in code(notebook)), re.M))
    assert set("".join(text(last)).removeprefix("stdout: ").split()) == written
    for now, before in zip(code(notebook), code(committed(name)), strict=True):
        if "varies" not in now.metadata.get("tags", ()):
            assert text(now) == text(before), f"python notebooks/execute.py {name}\n{now.source}"


@pytest.mark.parametrize("name", NAMES)
def test_committed(name):
    notebook = committed(name)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not from a fresh kernel"
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert len(output.get("data", {}).get("image/png", "")) < 400_000
    assert (execute.HERE / f"{name}.ipynb").stat().st_size < 2_500_000
