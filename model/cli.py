"""``alexnet COMMAND ...``: all commands of the project. A command's module is imported only if the command runs."""

import sys
from importlib import import_module

from kernels.errors import AlexNetError
from kernels.tools import command
from model import checkout

COMMANDS = {
    "infer": ("model.infer", "what the network sees in photos"),
    "evaluate": ("model.evaluate", "top-1 and top-5 accuracy on a folder of photos"),
    "train": ("model.train", "train on a folder of photos"),
    "compress": ("model.compress", "make weights about 30 times smaller (Deep Compression)"),
    "weights": ("model.weights_cli", "list, download, verify and convert weights"),
    "two-gpus": ("model.two_gpus", "the paper's network on two GPUs; start it with torchrun"),
    "bench": ("kernels.tools.bench.cli", "time the kernels beside PyTorch's"),
    "tune": ("kernels.tools.tune", "find the fastest configs for this GPU"),
    "roofline": ("kernels.tools.roofline", "draw measured times under the roofline"),
    "readme": ("kernels.tools.readme", "put the measured tables into the README"),
    "assembly": ("kernels.tools.assembly", "registers, spills and assembly of each kernel, for any GPU"),
    "trace": ("kernels.tools.trace_cli", "one program of a kernel, step by step"),
}
"""Name: (a module with a ``main(argv)``, a line for the help)."""

DEFAULTS = {
    "bench": {"measurements": checkout.MEASUREMENTS},
    "readme": {"measurements": checkout.MEASUREMENTS, "readme": checkout.README},
}
"""What the ``main`` of some commands takes besides ``argv``."""


def overview() -> str:
    """Returns the help: one line per command."""
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    head = "usage: alexnet COMMAND [ARGUMENT ...]\n\nAlexNet (2012) on Triton kernels.\n\ncommands:"
    return "\n".join([head, *lines, "", "alexnet COMMAND --help tells more about a command."])


def choose(argv: list[str] | None) -> int:
    """Runs the command that ``argv`` names and returns its exit status."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name not in COMMANDS:
        raise AlexNetError(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")
    return import_module(COMMANDS[name][0]).main(rest, **DEFAULTS.get(name, {}))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns the exit status."""
    return command.run("alexnet", choose, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
