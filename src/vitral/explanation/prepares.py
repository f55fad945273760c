"""What every explanation needs of a predictor."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.frame import Seen
from vitral.base.image import PictureSource
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.record import Record

__all__ = ["Prepares", "check_predictor"]


@runtime_checkable
class Prepares(Protocol):
    """What an explanation needs of a predictor."""

    model: nn.Module
    record: Record
    preprocessing: Preprocessing
    device: torch.device
    dtype: torch.dtype

    def prepare(self, source: PictureSource) -> tuple[Float[Tensor, "c y x"], Seen]:
        """A picture as the model's input, and what it shows."""


def check_predictor(predictor: Any) -> None:
    """Refuse what is no predictor, and one whose model's answers are left to chance.

    Raises:
        UsageError: saying which.
    """
    if not isinstance(predictor, Prepares):
        raise UsageError(f"A predictor was expected; a {type(predictor).__name__} came. Make one of it with vitral.load(…).")
    if predictor.model.training:
        raise UsageError("The model is in training mode, where dropout changes its answers. Call model.eval() first.")
