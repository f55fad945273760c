"""The processes of a training: one, or as many as `accelerate launch` has started.

Distribution is accelerate's work (Gugger et al. 2022, https://github.com/huggingface/accelerate): it wraps the model so
that gradients are averaged, and adds up numbers. A training of one process does without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vitral.base.device import resolve_device
from vitral.errors import MissingExtraError, PictureError, UsageError

__all__ = ["Processes"]

_Item = TypeVar("_Item")


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

    @staticmethod
    def first_of_all() -> bool:
        """Whether this process shows how it goes; known before the processes have met."""
        return int(os.environ.get("RANK", "0")) == 0

    @staticmethod
    def first_here() -> bool:
        """Whether this process tells of what goes wrong in all of them: the first one of its machine."""
        return int(os.environ.get("LOCAL_RANK", "0")) == 0

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
        if not self._accelerator:
            return model
        from accelerate.utils import DistributedDataParallelKwargs

        # A token that stands in for masked patches has no part in a classifier's loss, and so no gradient; nor have the
        # embeddings of noisy objects where a batch shows none.
        idle = [name for name, one in model.named_parameters() if one.requires_grad]
        unused = any(name.endswith("mask_token") or name.startswith("noisy.") for name in idle)
        self._accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        return cast(nn.Module, self._accelerator.prepare(model))

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """While this lasts, gradients are gathered in each process on its own."""
        return self._accelerator.no_sync(wrapped) if self._accelerator else contextlib.nullcontext()

    def sums(self, *numbers: Tensor | float) -> list[float]:
        """Each number added up over all processes."""
        if not self._accelerator:
            return [float(number) for number in numbers]
        row = torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=self.device)
        return cast(list[float], self._accelerator.reduce(row, "sum").tolist())

    def gathered(self, found: list[_Item]) -> list[_Item]:
        """What all processes found, in their order; each must call this."""
        if not self._accelerator:
            return found
        from accelerate.utils import gather_object

        return cast(list[_Item], gather_object(found))

    def agreed(self, coming: Iterator[_Item]) -> Iterator[_Item]:
        """What comes, step by step, as long as it does in every process.

        A picture that one of them cannot read ends all of them with the same error; else the others would wait for one that
        is gone.

        Raises:
            PictureError: of the first process that has one.
        """
        if not self._accelerator:
            yield from coming
            return
        while True:
            refused: list[PictureError] = []
            try:
                one = next(coming, None)
            except PictureError as error:
                one, refused = None, [error]
            if self.sums(len(refused)) != [0.0]:
                raise self.gathered(refused)[0]
            if one is None:
                return
            yield one

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()


def _accelerator(device: str | int | torch.device | None) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedType
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "train in several processes") from error
    # What `accelerate config` says of precision and compiling is not asked: the recipe says it.
    found = Accelerator(
        cpu=str(device) == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no",
        dynamo_backend="no",
    )
    if found.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UsageError(
            f"The processes were started for {found.distributed_type.value}; Vitral trains with a whole copy of the model "
            "in each process. Answer `accelerate config` accordingly, or start one process."
        )
    return found
