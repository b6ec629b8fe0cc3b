"""``alexnet weights``: lists, downloads, verifies and converts files of weights."""

import argparse
import functools
import math
import sys
from pathlib import Path

from kernels.errors import AlexNetError
from kernels.tools import command
from kernels.tools.command import Parser, interrupts_exit


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="alexnet weights", description="Weights by name, and files of weights.")
    known = "cifar10 (bundled), bvlc, deep-compression, torchvision (downloaded), or a file of weights"
    what = parser.add_subparsers(dest="what", metavar="COMMAND", required=True)
    what.add_parser("list", help="lists the names, and where their files are")
    add = what.add_parser("download", help="downloads the file of a name, if it is not there yet").add_argument
    add("name", metavar="NAME", help="bvlc, deep-compression or torchvision")
    add = what.add_parser("verify", help="reads a whole file and says what it is").add_argument
    add("path", metavar="NAME|PATH", help=known)
    add = what.add_parser("convert", help="writes a file's weights as safetensors").add_argument
    add("path", metavar="NAME|PATH", help=known)
    add("out", metavar="OUT.safetensors", type=Path, help="the file to write")
    args = parser.parse_args(argv)
    if args.what == "convert" and args.out.suffix != ".safetensors":
        raise AlexNetError(f"OUT must name a .safetensors file, got {str(args.out)!r}")
    return args


def show_list() -> None:
    """Prints what each name is, and its file or the address that it comes from."""
    from model.weights.named import NAMED, cached

    for name, named in NAMED.items():
        found = named.bundled or cached(name)
        where = f"at {found}" if found else f"not downloaded; from {named.sources[0].url}"
        print(f"{name:<17} {named.description}\n{'':<17} {'bundled' if named.bundled else where}")


def verify(path: str) -> None:
    """Reads a file as the network does, and prints what it holds."""
    from model import weights
    from model.alexnet import AlexNet
    from model.weights.named import published_as

    loaded = weights.load(path)
    AlexNet.from_weights(loaded)  # checks that every layer is there and has its shape
    file = weights.path_of(path)
    name = published_as(file)
    total = sum(tensor.numel() for pair in loaded.layers.values() for tensor in pair)
    print(f"{path}: {weights.format_of(file, path).DESCRIPTION}, {file.stat().st_size:,} bytes")
    for layer, (weight, bias) in loaded.layers.items():
        shape = " x ".join(map(str, weight.shape))
        zeros = 1.0 - weight.count_nonzero().item() / math.prod(weight.shape)
        print(f"  {layer}: {shape}, {zeros:.1%} zeros, and {len(bias)} biases")
    classes, norm = len(loaded.classes), loaded.lrn or "none"
    print(f"{total:,} parameters, {classes} classes, normalisation {norm}: whole and finite")
    bundled = path in weights.NAMED and weights.NAMED[path].bundled
    known = f"the published file of {name}" if name else "not a file with a known checksum"
    print("the bundled file" if bundled else known)


def convert(path: str, out: Path) -> None:
    """Writes the weights of a file as safetensors, whole or not at all."""
    from model import weights
    from model.alexnet import AlexNet
    from model.training import checkpoint

    loaded = weights.load(path)
    AlexNet.from_weights(loaded)  # checks that every layer is there and has its shape
    checkpoint.write_weights(out, loaded)
    print(f"{out}: {len(loaded.layers)} layers, {len(loaded.classes)} classes, {out.stat().st_size:,} bytes")


def run(argv: list[str] | None) -> int:
    args = parse(argv)
    with interrupts_exit():
        from model.weights import NAMED, fetch

    if args.what == "list":
        show_list()
    elif args.what == "download":
        if args.name not in NAMED:
            raise AlexNetError(f"NAME must be one of {', '.join(NAMED)}, got {args.name!r}")
        print(fetch(args.name))
    elif args.what == "verify":
        verify(args.path)
    else:
        convert(args.path, args.out)
    return 0


main = functools.partial(command.run, "alexnet weights", run)

if __name__ == "__main__":
    sys.exit(main())
