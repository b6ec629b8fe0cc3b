"""One process or many: what ``torchrun`` starts, behind four calls that do nothing special in a single process.

Ranks compute on equal shares of every batch; only rank 0 writes and prints, but for a rank that fails, which says so.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from kernels.errors import AlexNetError


class Ranks:
    """This process among those of the run.

    Args:
        device: where this process computes.

    Raises:
        AlexNetError: more processes on this machine than GPUs, or the others cannot be reached.
    """

    def __init__(self, device: torch.device):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        if self.size == 1:
            return
        if device.type == "cuda":
            local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if local >= gpus:
                raise AlexNetError(f"rank {self.rank} has no GPU of its own: --nproc-per-node can be {gpus} here")
            torch.cuda.set_device(local)
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise AlexNetError(self.name(f"cannot reach the other ranks: {_line(error)}")) from error

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def name(self, message: object) -> str:
        """``message`` with the rank that says it, where there are several."""
        return f"rank {self.rank}: {message}" if self.size > 1 else str(message)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, on every rank."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list:
        """Every rank's ``value``, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def agree(self, function: Callable[[], Any]) -> Any:
        """``function()`` on every rank. Where it raises AlexNetError on some, all end and rank 0 says why."""
        result, problem = None, None
        try:
            result = function()
        except AlexNetError as error:
            problem = str(error)
        problems = self.gather(problem)
        found = {message: rank for rank, message in reversed(list(enumerate(problems))) if message is not None}
        if found:
            everywhere = len(found) == 1 and None not in problems
            said = (message if everywhere else f"rank {rank}: {message}" for message, rank in found.items())
            self.stop("; ".join(said))
        return result

    def stop(self, message: str):
        """Ends every rank, which must all call this: exit status 2, and rank 0 says why."""
        if self.first:
            raise AlexNetError(message)
        raise SystemExit(2)

    def lost(self, error: RuntimeError) -> bool:
        """Whether ``error`` only says that another rank has ended."""
        return self.size > 1 and any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "ncclCommAbort"))

    def leave(self) -> None:
        """Once all is done."""
        if self.size > 1:
            distributed.destroy_process_group()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
