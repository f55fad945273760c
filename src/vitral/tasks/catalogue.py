"""The tasks by the names users know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from vitral.errors import UnknownNameError
from vitral.tasks import features
from vitral.tasks.classification import result as classification
from vitral.tasks.detection import decode as detection
from vitral.tasks.detection.result import Options as DetectionOptions
from vitral.tasks.segmentation import decode as segmentation

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task makes of a model's output.

    Attributes:
        decode: from output, what was seen, the model's record and options to one result per picture.
        options: the frozen dataclass of its options, which checks their values.
        needs_classes: whether the model must have classes.
    """

    decode: Callable[..., list[Any]]
    options: type
    needs_classes: bool

    def chosen(self, options: dict[str, Any], base: Any = None) -> Any:
        """The options named, the others as in `base` or by default.

        Raises:
            UnknownNameError: the task has no such option, or an option no such value.
            UsageError: a value out of its range.
        """
        known = [field.name for field in fields(self.options)]
        for name in options:
            if name not in known:
                raise UnknownNameError("option of the task", name, known)
        return self.options(**options) if base is None else replace(base, **options)


TASKS: dict[str, Task] = {
    "image-classification": Task(decode=classification.decode, options=classification.Options, needs_classes=True),
    "image-feature-extraction": Task(decode=features.decode, options=features.Options, needs_classes=False),
    "object-detection": Task(decode=detection.decode, options=DetectionOptions, needs_classes=True),
    "image-segmentation": Task(decode=segmentation.decode, options=segmentation.Options, needs_classes=True),
}
"""Name → task. Which of them a model can do, and which it does unless told otherwise, `Network.tasks` says."""
