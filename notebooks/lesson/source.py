"""Shows the source of a kernel or function from its file. So a notebook shows the code that runs."""

import inspect
from collections.abc import Callable
from pathlib import Path

from IPython.display import Markdown, display


def _function(kernel: Callable) -> Callable:
    """Returns the Python function inside ``@triton.jit`` or other decorators."""
    return inspect.unwrap(getattr(kernel, "fn", kernel))


def lines(kernel: Callable) -> tuple[int, list[str]]:
    """Returns (number of the first line in its file, lines)."""
    found, first = inspect.getsourcelines(_function(kernel))
    return first, [line.rstrip("\n") for line in found]


def part(kernel: Callable, start: str | None = None, end: str | None = None) -> str:
    """Returns the source from the first line that contains ``start`` to the next that contains ``end``, both included.

    Raises:
        ValueError: there is no such line, because the kernel was changed after the text about it was written.
    """
    _, found = lines(kernel)
    first, last = 0, len(found) - 1
    if start is not None:
        first = next((number for number, line in enumerate(found) if start in line), None)
        if first is None:
            raise ValueError(f"{_function(kernel).__name__} has no line with {start!r}")
    if end is not None:
        last = next((number for number, line in enumerate(found) if number >= first and end in line), None)
        if last is None:
            raise ValueError(f"{_function(kernel).__name__} has no line with {end!r} after {found[first].strip()!r}")
    return inspect.cleandoc("\n" + "\n".join(found[first : last + 1]))


def show(kernel: Callable, start: str | None = None, end: str | None = None) -> None:
    """Displays the source, or the part of it that :func:`part` returns, with colours."""
    function = _function(kernel)
    path = Path(inspect.getsourcefile(function))
    root = Path(__file__).parent.parent.parent
    where = path.relative_to(root).as_posix() if path.is_relative_to(root) else "this notebook"
    display(Markdown(f"`{function.__name__}` in `{where}`:\n\n```python\n{part(kernel, start, end)}\n```"))
