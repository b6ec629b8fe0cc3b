"""Executes each notebook's .py from a fresh kernel and writes its .ipynb: ``python notebooks/execute.py [NAMES]``.

A name is the start of a notebook's name: ``python notebooks/execute.py 00 01``. Triton's interpreter runs the kernels,
with or without a GPU, so outputs are the same everywhere. Only cells tagged ``varies`` (times, rounding errors) differ.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

import model as model  # first, so that `kernels` is ours and not Hugging Face's package of the same name
from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def names() -> list[str]:
    """Returns the names of all notebooks, in order."""
    return sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py"))


def read(name: str) -> nbformat.NotebookNode:
    """Reads a notebook from its .py, without outputs."""
    notebook = jupytext.read(HERE / f"{name}.py", fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = nbformat.from_dict({"tags": tags} if (tags := cell.metadata.get("tags")) else {})
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all cells and stores their outputs in the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    metadata = notebook.metadata.copy()
    environment = dict(os.environ, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.resolve()), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)
    notebook.metadata = metadata
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop(WIDGET, None)  # a widget ends with its kernel; the picture beside it stays
            if "image/png" in data:
                data["image/png"] = small(data["image/png"])


def small(png: str) -> str:
    """Reduces a picture, in base64, to the 256 colours that suit it best. Photos take a third of the bytes then."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    image.quantize(256).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="python notebooks/execute.py", description="Executes notebooks and writes their .ipynb files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the start of a notebook's name (default: all)")
    given = parser.parse_args(argv).names
    wanted = [name for name in names() if not given or name.startswith(tuple(given))]
    for start in given:
        if not any(name.startswith(start) for name in wanted):
            raise AlexNetError(f"no notebook begins with {start}; there are {', '.join(names())}")
    for name in wanted:
        started = time.perf_counter()
        notebook = read(name)
        execute(notebook)
        nbformat.write(notebook, HERE / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - started:.0f} s, {(HERE / f'{name}.ipynb').stat().st_size / 1e3:.0f} kB")
    return 0


def main(argv: list[str] | None = None) -> int:
    return command.run("execute.py", run, argv)


if __name__ == "__main__":
    sys.exit(main())
