"""The processes of a training: one, or as many as `accelerate launch` has started.

Distribution is accelerate's work (Gugger et al. 2022, https://github.com/huggingface/accelerate): it wraps the model so
that gradients are averaged, and adds up numbers. A training of one process does without it.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitral.base.device import resolve_device
from vitral.errors import MissingExtraError, UsageError

__all__ = ["Processes"]


class Processes:
    """All processes that compute one training together, as seen from one of them.

    Args:
        device: where to compute; see `base.device.resolve_device`. Of several processes each takes the one it was given.

    Raises:
        MissingExtraError: several processes were started, but accelerate is not installed.
        UsageError: they were started for a kind of distribution that is not supported.
    """

    def __init__(self, device: str | int | torch.device | None = None) -> None:
        self._accelerator = _accelerator(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        self.count: int = self._accelerator.num_processes if self._accelerator else 1
        self.rank: int = self._accelerator.process_index if self._accelerator else 0
        self.device: torch.device = self._accelerator.device if self._accelerator else resolve_device(device)

    @property
    def on_this_machine(self) -> int:
        """How many of them share this machine's processors."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self._accelerator else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model to call in training: its gradients become the mean over all processes."""
        return cast(nn.Module, self._accelerator.prepare(model)) if self._accelerator else model

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """While this lasts, gradients are gathered in each process on its own."""
        return self._accelerator.no_sync(wrapped) if self._accelerator else contextlib.nullcontext()

    def sums(self, *numbers: Tensor | float) -> list[float]:
        """Each number added up over all processes."""
        if not self._accelerator:
            return [float(number) for number in numbers]
        row = torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=self.device)
        return cast(list[float], self._accelerator.reduce(row, "sum").tolist())

    def gathered(self, sentences: list[str]) -> list[str]:
        """The sentences of all processes; each must call this."""
        if not self._accelerator:
            return sentences
        from accelerate.utils import gather_object

        return cast(list[str], gather_object(sentences))

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()


def _accelerator(device: str | int | torch.device | None) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, DistributedType
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "train in several processes") from error
    # A token that stands in for masked patches has no part in a classifier's loss, and so no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # What `accelerate config` says of precision and compiling is not asked: the recipe says it.
    found = Accelerator(
        cpu=str(device) == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no",
        dynamo_backend="no",
        kwargs_handlers=[unused],
    )
    if found.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UsageError(
            f"The processes were started for {found.distributed_type.value}; Vitral trains with a whole copy of the model "
            "in each process. Answer `accelerate config` accordingly, or start one process."
        )
    return found
