"""A training told to TensorBoard, for those who watch theirs there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from vitral.errors import MissingExtraError
from vitral.training.loop import Epoch, Step

__all__ = ["Board"]


class Board:
    """Writes what it is told as TensorBoard's scalars. Use it in a `with`: at its end what is in memory is written.

    Args:
        folder: where; `tensorboard --logdir` takes it. It is made with the first event; what an interrupted training wrote
            of later steps is taken back then.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard", "write what TensorBoard shows") from error
        self._make: Any = SummaryWriter
        self._folder, self._writer = folder, cast(Any, None)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, event: Step | Epoch) -> None:
        """Note a step or an epoch."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=event.step)
        if isinstance(event, Step):
            values = {"loss": event.loss, "learning_rate": event.learning_rate, "gradient_norm": event.norm}
        else:
            values = {f"held_out/{name}": value for name, value in (event.held_out or {}).items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, event.step)
