"""One process or many, as ``torchrun`` starts them. In a single process nothing here communicates.

Ranks compute on equal shares of every batch. Only rank 0 writes files and prints; a rank that fails says why itself.
"""

import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import distributed

from kernels.errors import AlexNetError
from model.weights.common import reason


class Ranks:
    """This process, which computes on ``device``, among all processes of the run."""

    def __init__(self, device: torch.device):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.first = device, self.rank == 0  # the first one writes and prints
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
            raise AlexNetError(self.name(f"cannot reach the other ranks: {reason(error)}")) from error

    def name(self, message: object) -> str:
        """``message``, after the rank's number if there are several ranks."""
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
        """``function()`` on every rank. If it raises AlexNetError on some, all ranks end, and rank 0 says why."""
        result, problem = None, None
        try:
            result = function()
        except AlexNetError as error:
            problem = str(error)
        problems = self.gather(problem)
        found = {message: rank for rank, message in reversed(list(enumerate(problems))) if message is not None}
        if found:
            everywhere = len(found) == 1 and None not in problems
            self.stop("; ".join(m if everywhere else f"rank {rank}: {m}" for m, rank in found.items()))
        return result

    def stop(self, message: str) -> NoReturn:
        """Ends all ranks with exit status 2, and rank 0 with ``message``. Every rank must call this."""
        if self.first:
            raise AlexNetError(message)
        raise SystemExit(2)

    def lost(self, error: RuntimeError) -> bool:
        """Whether ``error`` only says that another rank has ended."""
        return self.size > 1 and any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "ncclCommAbort"))

    def leave(self) -> None:
        """Leaves the group of processes, once all is done."""
        if self.size > 1:
            distributed.destroy_process_group()
