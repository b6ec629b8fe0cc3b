"""``torchrun --nproc-per-node 2 -m model.two_gpus [IMAGE]``: AlexNet split over two processes as over the paper's GPUs.

Each process computes its half (:mod:`model.halves`). The command prints the bytes that they exchange, and compares
their logits with those of one process that has the whole network.
"""

import functools
import os
import sys
import time
from datetime import timedelta

from kernels.errors import AlexNetError
from kernels.tools import command

COMMAND = "torchrun --nproc-per-node 2 -m model.two_gpus"
BOUND = 2e-5  # of the largest logit: the halves add float32 in another order, through eight layers
PATIENCE = timedelta(seconds=60)  # how long to wait for the other process
HEAD_START = 5.0  # seconds that process 0 has to say what is wrong


def compute(rank: int, image: str | None) -> int:
    """Both processes' part of the work, and process 0's report; the exit status."""
    import torch
    from torch import distributed

    import kernels
    from kernels import runtime
    from model import halves, weights
    from model.alexnet import AlexNet
    from model.photos.preprocess import open_image
    from model.photos.sample import default_photo
    from model.weights.common import reason

    photo = image or default_photo()
    loaded = weights.load()
    x = loaded.preprocess(open_image(photo))[None]
    device, backend = runtime.default_device(), "gloo"
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % gpus)
        torch.cuda.set_device(device)
        backend = "nccl" if gpus > 1 else "gloo"  # NCCL does not take two processes on one GPU
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise AlexNetError(f"process {rank} did not find the other one: {reason(error)}") from error

    half, x = halves.Half.from_weights(loaded, rank).to(device), x.to(device)
    with torch.inference_mode():
        logits = half(x)
        distributed.destroy_process_group()
        if rank:
            return 0
        expected = AlexNet.from_weights(loaded).to(device)(x)
        largest = (logits - expected).abs().max().item()
        relative = largest / expected.abs().max().item()
        probability, best = kernels.softmax(logits)[0].max(0)

    print(f"{photo}\n2 processes, {backend}, kernels {runtime.mode()}, fp32; each holds half of every layer:\n")
    print(halves.table(half.rows))
    print(f"\nlargest difference from one process's logits: {largest:.1e}, {relative:.1e} of the largest logit")
    print(f"prediction: {loaded.classes[int(best)]}, {probability.item():.1%}")
    if not relative < BOUND:  # NaN too
        command.complain("alexnet two-gpus", f"the logits differ by more than {BOUND:.0e}")
        return 1
    return 0


def two_gpus(argv: list[str] | None) -> int:
    """Reads the command line and computes; returns the exit status."""
    parser = command.Parser(prog=COMMAND, description="AlexNet split over two processes, as over the paper's two GPUs.")
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="a photo (a cat from scikit-image)")
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    try:
        image = parser.parse_args(argv).image
        if processes != 2:
            raise AlexNetError(f"takes 2 processes, got {processes}: {COMMAND} {image or '[IMAGE]'}")
        return compute(rank, image)
    except AlexNetError:
        if rank:  # torchrun ends all processes when one fails, and process 0 usually has the same to say
            time.sleep(HEAD_START)
        raise


main = functools.partial(command.run, "alexnet two-gpus", two_gpus)

if __name__ == "__main__":
    sys.exit(main())
