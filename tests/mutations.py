"""``python -m tests.mutations``: plants faults in the kernels and in what reads weights and photos, one at a time, and
runs the tests that should see each. It prints what they saw, and what survived; ``tests/mutations.txt`` has its last
result.

A fault is the text that stands in a file, and what stands there instead. Each is planted in a copy of the project, so
that an interrupted run leaves nothing behind. Some five minutes on two cores.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from kernels.tools import command
from kernels.tools.command import Parser
from tests import results

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).with_suffix(".txt")


class Fault(NamedTuple):
    """What is wrong, and where; ``tests`` as pytest takes them."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = (
    Fault("mask of the pixels one too long", "kernels/ops/conv2d.py",
          "    mask_m = offs_m < M\n", "    mask_m = offs_m <= M\n", "tests/test_conv2d.py"),
    Fault("rows and columns of a filter swapped", "kernels/ops/conv2d.py",
          "            r = (offs_k // (S * C))[None, :]\n            s = (offs_k // C % S)[None, :]",
          "            s = (offs_k // (S * C))[None, :]\n            r = (offs_k // C % S)[None, :]",
          "tests/test_conv2d.py"),
    Fault("the group's first channel dropped", "kernels/ops/conv2d.py",
          "x_ptr + group * C + ", "x_ptr + ", "tests/test_conv2d.py"),
    Fault("the group's first filter dropped", "kernels/ops/conv2d.py",
          "((group * K + offs_n).to(INDEX)", "((offs_n).to(INDEX)", "tests/test_conv2d.py"),
    Fault("the upper padding's mask dropped", "kernels/ops/conv2d.py",
          "mask_a & (h >= 0) & (h < H)", "mask_a & (h < H)", "tests/test_conv2d.py"),
    Fault("vertical stride for the horizontal", "kernels/ops/conv2d.py",
          "offs_m % Q * STRIDE_W - PAD_W", "offs_m % Q * STRIDE_H - PAD_W", "tests/test_conv2d.py"),
    Fault("dilation of rows dropped", "kernels/ops/conv2d.py",
          "h = h0[:, None] + r * DILATION_H", "h = h0[:, None] + r", "tests/test_conv2d.py"),
    Fault("ReLU hides NaN", "kernels/ops/conv2d.py",
          "acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)", "acc = tl.maximum(acc, 0.0)",
          "tests/test_conv2d.py"),
    Fault("32-bit addresses of pixels", "kernels/ops/conv2d.py",
          "offs_m = pid_m.to(INDEX) * BLOCK_M", "offs_m = pid_m * BLOCK_M", "tests/test_addresses.py"),
    Fault("a phase's first tap off by one", "kernels/ops/conv2d_backward.py",
          "(phase + PAD - r * DILATION) % STRIDE == 0", "(phase + PAD - r * DILATION) % STRIDE == 1",
          "tests/test_conv2d_backward.py"),
    Fault("padding forgotten in the weight gradient", "kernels/ops/conv2d_backward.py",
          "h0 = (row - n * P) * STRIDE_H - PAD_H", "h0 = (row - n * P) * STRIDE_H", "tests/test_conv2d_backward.py"),
    Fault("last pixels counted twice", "kernels/ops/conv2d_backward.py",
          "mask_k = offs_k < pixels", "mask_k = offs_k < pixels + BLOCK_K", "tests/test_conv2d_backward.py"),
    Fault("a share left out", "kernels/ops/split_k.py",
          "tl.static_range(SPLIT_K)", "tl.static_range(SPLIT_K - 1)", "tests/test_conv2d.py"),
    Fault("mask of the terms one too long", "kernels/ops/linear.py",
          "mask_a & (k0 + offs_k < terms)[None, :]", "mask_a & (k0 + offs_k <= terms)[None, :]",
          "tests/test_linear.py"),
    Fault("bias of a single row without its mask", "kernels/ops/linear.py",
          "y += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)", "y += tl.load(bias_ptr + tl.arange(0, BLOCK_N))",
          "tests/test_linear.py"),
    Fault("bias of the wrong channel", "kernels/ops/bias_relu.py",
          "offs // STEP % LENGTH", "offs % LENGTH", "tests/test_bias_relu.py"),
    Fault("ReLU's mask keeps negative outputs", "kernels/ops/epilogue.py",
          "tl.where(y <= 0.0, 0.0, grad)", "tl.where(y == 0.0, grad, grad)", "tests/test_bias_relu.py"),
    Fault("alpha not divided by the window", "kernels/ops/local_response_norm.py",
          '"scale": alpha / size', '"scale": alpha', "tests/test_local_response_norm.py"),
    Fault("window one channel too high", "kernels/ops/local_response_norm.py",
          "_sums(squares, BELOW * VECTOR - SIZE // 2, VECTOR, SIZE)",
          "_sums(squares, BELOW * VECTOR - (SIZE - 1) // 2, VECTOR, SIZE)", "tests/test_local_response_norm.py"),
    Fault("channels before the first read", "kernels/ops/local_response_norm.py",
          "mask=mask & (c >= 0) & (c < C), other=0.0).to(tl.float32)\n            squares",
          "mask=mask & (c < C), other=0.0).to(tl.float32)\n            squares", "tests/test_local_response_norm.py"),
    Fault("half of the gradient through the sum", "kernels/ops/local_response_norm.py",
          "scaled[HIGH + c] - factor *", "scaled[HIGH + c] - 0.5 * factor *", "tests/test_local_response_norm.py"),
    Fault("the last of equal maxima", "kernels/ops/max_pool2d.py",
          "tl.where((b > a) |", "tl.where((b >= a) |", "tests/test_max_pool2d.py"),
    Fault("windows read beyond the right edge", "kernels/ops/max_pool2d.py",
          "(h >= 0) & (h < H) & (w >= 0) & (w < W)\n            x = tl.load(",
          "(h >= 0) & (h < H) & (w >= 0)\n            x = tl.load(", "tests/test_max_pool2d.py"),
    Fault("overlapping windows' gradients overwritten, not added", "kernels/ops/max_pool2d.py",
          "(cell[i] + tl.where(won, dy, 0.0) if", "(tl.where(won, dy, cell[i]) if", "tests/test_max_pool2d.py"),
    Fault("the maximum of an earlier block forgotten", "kernels/ops/softmax.py",
          "return largest, tl.exp(previous - largest),", "return largest, tl.exp(largest - largest),",
          "tests/test_softmax.py"),
    Fault("smoothing over one class too many", "kernels/ops/cross_entropy.py",
          "* t + smoothing / C", "* t + smoothing / (C + 1)", "tests/test_cross_entropy.py"),
    Fault("ignored rows count in the mean", "kernels/ops/cross_entropy.py",
          "divisor = tl.where(kept, 1.0, 0.0)", "divisor = tl.where(mask_m, 1.0, 0.0)", "tests/test_cross_entropy.py"),
    Fault("a mask for each tile, not for each element", "kernels/ops/dropout.py",
          "tl.rand(seed, offs)", "tl.rand(seed, tl.arange(0, BLOCK_M))", "tests/test_dropout.py"),
    Fault("what is kept is not scaled", "kernels/ops/dropout.py",
          "1.0 / (1.0 - p) if p < 1.0", "1.0 if p < 1.0", "tests/test_dropout.py"),
    Fault("fc6's rows left in TensorFlow's order", "model/weights/npy.py",
          "weight.reshape(6, 6, 256, -1).transpose(3, 2, 0, 1)", "weight.reshape(6, 6, 256, -1).transpose(3, 0, 1, 2)",
          "tests/test_weights.py"),
    Fault("filters' rows and columns swapped", "model/weights/npy.py",
          "return weight.transpose(3, 2, 0, 1)\n", "return weight.transpose(3, 2, 1, 0)\n",
          "tests/test_weights.py"),
    Fault("the higher half of a byte first", "model/weights/deep_compression.py",
          "np.stack([packed & 15, packed >> 4], axis=1)", "np.stack([packed >> 4, packed & 15], axis=1)",
          "tests/test_formats.py"),
    Fault("gaps one too short", "model/weights/deep_compression.py",
          "places[1:] += 1", "places[1:] += 0", "tests/test_formats.py"),
    Fault("RGB where the weights take BGR", "model/photos/preprocess.py",
          'rgb.flip(0) if self.order == "BGR"', 'rgb if self.order == "BGR"', "tests/test_preprocess.py"),
    Fault("mean not subtracted", "model/photos/preprocess.py",
          "((x - mean) / std)", "(x / std)", "tests/test_preprocess.py"),
    Fault("crop off the centre", "model/photos/preprocess.py",
          "start = (LARGE - side) // 2", "start = (LARGE - side) // 2 + 1", "tests/test_preprocess.py"),
    Fault("conv4 reads the maps of both halves", "model/alexnet.py",
          "self.conv4 = Conv2d(384, 384, kernel_size=3, padding=1, groups=2)",
          "self.conv4 = Conv2d(384, 384, kernel_size=3, padding=1)", "tests/test_alexnet.py"),
    Fault("biases that decay", "model/training/step.py",
          '"weight_decay": 0.0, "base": of_biases', '"weight_decay": decay, "base": of_biases', "tests/test_step.py"),
)  # fmt: skip


QUICK, FULL = "not full and not exhaustive", ""
"""Sets of tests, as pytest's ``-m`` takes them."""


def fails(fault: Fault, marks: str, copy: Path) -> bool:
    """Whether these tests fail with the fault."""
    path = copy / fault.file
    source = path.read_text()
    if source.count(fault.right) != 1:
        sys.exit(f"{fault.file}: {fault.right!r} must stand there once, and does {source.count(fault.right)} times")
    path.write_text(source.replace(fault.right, fault.wrong))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", marks, fault.tests]
        status = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    finally:
        path.write_text(source)
    if status.returncode not in (0, 1):
        sys.exit(f"{fault.what}: the tests did not run\n{status.stdout[-2000:]}{status.stderr[-2000:]}")
    return status.returncode == 1


def seen(fault: Fault, copy: Path) -> str:
    """Which tests fail with the fault: those of the quick set, those of the full set, or none."""
    if fails(fault, QUICK, copy):
        return "quick"
    return "full" if fails(fault, FULL, copy) else "SURVIVED"


def run(argv: list[str] | None) -> int:
    parser = Parser(prog="python -m tests.mutations", description="Plants faults, and tells which the tests see.")
    parser.parse_args(argv)
    started, lines, found = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        for fault in tqdm(FAULTS, unit="fault", disable=None):
            found.append(seen(fault, copy))
            lines.append(f"{found[-1]:10}{fault.file:36}{fault.what}")
            tqdm.write(lines[-1])
    survived, full = found.count("SURVIVED"), found.count("full")
    summary = f"{len(FAULTS) - survived} of {len(FAULTS)} faults seen, {full} of them by the full set only"
    results.write(RESULT, lines, summary, started)
    return 1 if survived else 0


def main(argv: list[str] | None = None) -> int:
    return command.run("tests.mutations", run, argv)


if __name__ == "__main__":
    sys.exit(main())
