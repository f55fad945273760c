"""A training told to TensorBoard, for those who watch theirs there."""

from __future__ import annotations

from pathlib import Path

from vitral.errors import MissingExtraError
from vitral.training.loop import Epoch, Step

__all__ = ["Board"]


class Board:
    """Writes what it is told as TensorBoard's scalars.

    Args:
        folder: where; `tensorboard --logdir` takes it.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard", "write what TensorBoard shows") from error
        self._writer = SummaryWriter(str(folder))

    def __call__(self, event: Step | Epoch) -> None:
        """Note a step or an epoch."""
        if isinstance(event, Step):
            values = {"loss": event.loss, "learning_rate": event.learning_rate, "gradient_norm": event.norm}
        else:
            values = {f"held_out/{name}": value for name, value in (event.held_out or {}).items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, event.step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
