"""Every exercise: its solution passes the checker. The notebook's empty answer and wrong answers do not.

Four files belong to a notebook: ``NN_name.py``, ``lesson/check/nbNN.py``, ``solutions/NN_name.py``, and here
``wrong_answers/nbNN.py``. There, ``WRONG[exercise][mistake]`` is (old, new): new replaces old in the solutions.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from lesson import check, compiler

import nbformat
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import execute
from kernels import runtime
from tests.launches import recorder

pytestmark = pytest.mark.skipif(not runtime.INTERPRETED, reason="notebooks interpret their kernels")

EXERCISES = [
    (name, exercise)
    for name in execute.names()
    for exercise, found in vars(importlib.import_module(f"lesson.check.nb{name[:2]}")).items()
    if isinstance(found, check.Checker)
]
WRONG = {name: importlib.import_module(f"tests.wrong_answers.nb{name[:2]}").WRONG for name in execute.names()}
MISTAKES = [(name, exercise, mistake) for name, exercise in EXERCISES for mistake in WRONG[name].get(exercise, ())]


def checker(name: str, exercise: str) -> check.Checker:
    return getattr(importlib.import_module(f"lesson.check.nb{name[:2]}"), exercise)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions(name: str) -> Path:
    return execute.HERE / "solutions" / f"{name}.py"


def test_there_are_exercises():
    for name in execute.names():
        exercises = [exercise for other, exercise in EXERCISES if other == name]
        assert len(exercises) >= 2, name
        assert WRONG[name].keys() == set(exercises), name
        assert all(len(mistakes) >= 2 for mistakes in WRONG[name].values()), name


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_solution_passes(name, exercise):
    result = checker(name, exercise)(getattr(load(solutions(name)), exercise))
    assert result.passed, result


@pytest.mark.full
def test_solutions_compile(monkeypatch):
    """A notebook interprets its kernels, and the interpreter accepts code that the compiler refuses."""
    launches: dict = {}
    own = lambda kernel: Path(kernel.__code__.co_filename).parent == execute.HERE / "solutions"
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorder(launches, own))
    kernels = {}
    for name, exercise in EXERCISES:
        kernels[exercise] = answer = getattr(load(solutions(name)), exercise)
        checker(name, exercise)(answer)
    tasks = {}
    for name, launch in launches.items():
        kernels[name].fn.__module__ = "__main__"  # as in a notebook
        tasks[name] = compiler.Launch(kernels[name], *launch)
    assert len(tasks) >= 17
    assert compiler.compile(tasks).keys() == tasks.keys()


@pytest.mark.parametrize(("name", "exercise", "mistake"), MISTAKES)
def test_wrong_answer_fails(name, exercise, mistake, tmp_path):
    old, new = WRONG[name][exercise][mistake]
    right = solutions(name).read_text()
    assert right.count(old) == 1, f"{old!r} must be in {solutions(name)} once, not {right.count(old)} times"
    answers = tmp_path / f"{name}.py"  # in a file, because Triton reads a kernel's source
    answers.write_text(right.replace(old, new))
    result = checker(name, exercise)(getattr(load(answers), exercise))
    assert not result.passed
    assert "\n" not in result.message


def test_sees_may_return_a_list():
    sees = load(solutions("06_alexnet")).sees
    assert checker("06_alexnet", "sees")(lambda *arguments: list(sees(*arguments))).passed


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_notebook_asks(name, exercise):
    """The notebook calls the checker in a cell with an empty answer, and offers hints."""
    cells = nbformat.read(execute.HERE / f"{name}.ipynb", as_version=4).cells
    call = f"nb{name[:2]}.{exercise}({exercise})"
    asked = [number for number, cell in enumerate(cells) if call in cell.source]
    assert len(asked) == 1, call
    (output,) = cells[asked[0]].outputs
    assert output.data["text/plain"].startswith("not yet: ")
    assert cells[asked[0] - 1].source.count("<details>") >= 2


# The checkers' own tools


@triton.jit
def _shift_kernel(x_ptr, y_ptr, load, store, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + load + offs).to(tl.float32)
    inside = (offs + store >= 0) & (offs + store < BLOCK)
    tl.store(y_ptr + store + offs, tl.where(inside, 0.0 * x, float("nan")))


@pytest.mark.unguarded  # the guards here are the checkers'
class TestSame:
    def test_right(self):
        out = check.output(torch.zeros(3, 5))
        out.copy_(torch.ones(3, 5))
        check.same(out, torch.ones(3, 5), "case")

    @pytest.mark.parametrize(
        ("actual", "message"),
        [
            (None, "case: expected a tensor, got NoneType"),
            (torch.ones(5, 3), "case: expected shape (3, 5), got (5, 3)"),
            (torch.ones(3, 5) * (1 + 1e-4), "case: element [0, 0] should be 1, got 1.0001"),
            (torch.full((3, 5), float("nan")), "case: element [0, 0] should be 1, got nan (never written"),
            (torch.full((3, 5), float("inf")), "case: element [0, 0] should be 1, got inf"),
        ],
        ids=["nothing", "shape", "value", "nan", "inf"],
    )
    def test_wrong(self, actual, message):
        with pytest.raises(check.Wrong) as wrong:
            check.same(actual, torch.ones(3, 5), "case")
        assert str(wrong.value).startswith(message)

    @pytest.mark.parametrize("element", [-1, 15])
    def test_guards(self, element):
        out = check.output(torch.zeros(3, 5))
        out.copy_(torch.ones(3, 5))
        out.as_strided((1,), (1,), out.storage_offset() + element).zero_()
        with pytest.raises(check.Wrong, match="a store wrote outside the output"):
            check.same(out, torch.ones(3, 5), "case")

    @pytest.mark.parametrize(
        ("load", "store", "message"),
        [
            (0, 0, "right"),
            (-1, 0, "case: a load read outside an input: does each load have its mask?"),
            (1, 0, "case: a load read outside an input: does each load have its mask?"),
            (0, -1, "case: a store wrote outside the output: does it have a mask?"),
            (1, 1, "case: a store wrote outside the output: does it have a mask?"),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
    def test_guards_of_an_attempt(self, load, store, message, dtype):
        """The checker sees a load whose value is not used, and a store into a guard that does not change it."""

        @check.Checker
        def attempt(kernel):
            x = check.given(torch.zeros(8, dtype=dtype))
            y = check.output(torch.zeros(8))
            kernel[(1,)](x, y, load, store, BLOCK=8)
            check.same(y, torch.zeros(8), "case")
            return "right"

        assert attempt(_shift_kernel).message == message

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_given(self, memory_format):
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format)
        copy = check.given(x)
        assert torch.equal(copy.cpu(), x) and copy.stride() == x.stride()
        around = copy.as_strided((x.numel() + 2,), (1,), copy.storage_offset() - 1)
        assert around[0].isnan() and around[-1].isnan()


def test_result():
    @check.Checker
    def picky(answer):
        """Doubles."""
        if answer(1) != 2:
            raise check.Wrong("1 should be 2")
        return "1 is 2"

    def nothing_yet(x):
        raise NotImplementedError

    def wrapped(x):
        try:
            raise KeyError("inner\nsecond line")
        except KeyError as error:
            raise RuntimeError("outer") from error

    assert picky(lambda x: 2 * x) == check.Result(True, "1 is 2")
    assert repr(picky(lambda x: 2 * x)) == "passed: 1 is 2"
    assert repr(picky(lambda x: x)) == "not yet: 1 should be 2"
    assert repr(picky(nothing_yet)) == "not yet: nothing is written yet"
    assert not picky(wrapped).passed and picky(wrapped).message.startswith("it raised KeyError: ")
    assert picky.__doc__ == "Doubles."
