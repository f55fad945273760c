"""The corridor: one picture in, one answer out, and many pictures through the same doors.

picture → read_picture → Preprocessing (tensor and Frame) → model → tasks.….decode → a frozen result
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageFile
from torch import Tensor, nn

from vitral.base.device import resolve_device, resolve_dtype
from vitral.base.frame import Seen
from vitral.base.image import PictureSource, read_picture
from vitral.checkpoints.load import load_model
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.pipelines.stream import batched, overlapped
from vitral.tasks.catalogue import TASKS

__all__ = ["Failure", "Predictor", "load"]

_Prepared = tuple[Tensor, Seen]
"""A picture on its way: the model's input (c y x), and what it shows."""


@dataclass(frozen=True)
class Failure:
    """A picture of a stream that could not be read.

    Attributes:
        name: its path, address or description.
        error: what was wrong, as a sentence.
    """

    name: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"name": self.name, "error": self.error}


class Predictor:
    """A model with everything around it: reading, preparing, computing, deciding.

    Args:
        model: a model of Vitral's with a record; it is put into evaluation mode and moved to the device.
        task: a key of `TASKS`; by default the first that the model can do (a backbone with classes classifies, one without
            makes features, a detector finds objects).
        preprocessing: how pictures are prepared; by default as the model's record says.
        device: see `base.device.resolve_device`.
        dtype: the precision the model computes in: "float32", "bfloat16", "float16" or PyTorch's own.
        decoding: "fast" reads a large JPEG at a half, a quarter or an eighth of its size, at least five times what the model
            sees (pixels then differ by 0.2 of 255 levels on average); "exact" always reads it whole.
        class_names: the name of every class, in the model's order, where its record has none or others are wanted.
        **options: passed to the task's decoding (`top_k`, `function`, `threshold`).

    Raises:
        UnknownNameError: no such task.
        UsageError: an option's value is out of its range, the model cannot do the task, has no classes but is to classify,
            or nobody said how its pictures are prepared.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: str | None = None,
        preprocessing: Preprocessing | None = None,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        decoding: Literal["fast", "exact"] = "fast",
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if not hasattr(model, "record"):
            raise UsageError(
                f"A {type(model).__name__} is not one of Vitral's models; build it with create_model or load_model."
            )
        if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
            raise UsageError(f"preprocessing must be a Preprocessing; {preprocessing!r:.80} came.")
        task = _task_of(cast(Any, model), task)
        if decoding not in ("fast", "exact"):
            raise UnknownNameError("decoding", decoding, ("fast", "exact"))
        self.task, self.options = task, TASKS[task].chosen(options)
        self.device, self.dtype, self.decoding = resolve_device(device), resolve_dtype(dtype), decoding
        self.model = model.eval().to(self.device, self.dtype)
        self.record = cast(Any, model).record
        if class_names is not None:
            self.record = replace(self.record, labels=_named(class_names, cast(Any, model).config.num_classes))
        found = preprocessing or self.record.preprocessing
        if found is None:
            raise UsageError("Nobody said how pictures are prepared for this model. Pass preprocessing=Preprocessing(…).")
        self.preprocessing: Preprocessing = found

    def __repr__(self) -> str:
        network, origin = self.record.architecture or type(self.model).__name__, self.record.source or "memory"
        return f"Predictor({self.task}, {network}, {self.device}, from {origin})"

    def __call__(self, picture: PictureSource, *, timeout: float = 10.0, **options: Any) -> Any:
        """Answer for one picture.

        Args:
            picture: a path, address, bytes, file object, Pillow image, array or tensor; see `base.image.read_picture`.
            timeout: seconds that fetching an address may take.
            **options: override the predictor's.

        Raises:
            PictureError: the picture cannot be read.
        """
        chosen = TASKS[self.task].chosen(options, self.options) if options else self.options
        return self._answer([self.prepare(picture, keep_picture=True, timeout=timeout)], chosen)[0]

    def stream(
        self,
        pictures: Iterable[Any],
        *,
        batch_size: int = 8,
        workers: int | None = None,
        on_error: Literal["record", "raise"] = "record",
        keep_pictures: bool = False,
        timeout: float = 10.0,
        **options: Any,
    ) -> Iterator[Any]:
        """Answers for many pictures, one by one and in order, in memory that does not grow with their number.

        Args:
            pictures: drawn no more than two batches ahead; sizes may differ.
            batch_size: how many pictures the model sees at once.
            workers: threads that read; see `pipelines.stream.overlapped`.
            on_error: what a picture that cannot be read becomes: a `Failure` in its place, or an exception.
            keep_pictures: whether results hold their pictures, to be drawn on.
            timeout: seconds that fetching an address may take.
            **options: override the predictor's.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size must be a whole number of at least 1; {batch_size!r} came.")
        if isinstance(pictures, str | bytes | Path):
            raise UsageError(f"stream takes many pictures; {pictures!r:.80} is one. Put it into a list.")
        if on_error not in ("record", "raise"):
            raise UnknownNameError("on_error", on_error, ("record", "raise"))
        chosen = TASKS[self.task].chosen(options, self.options)

        def prepare(picture: Any) -> _Prepared | Failure:
            try:
                return self.prepare(picture, keep_picture=keep_pictures, timeout=timeout)
            except (PictureError, UsageError) as error:
                if on_error == "raise":
                    raise
                if isinstance(error, PictureError):
                    return Failure(error.name, error.reason)
                return Failure(f"<{type(picture).__name__}>", str(error))  # an item that is no picture at all

        prepared = overlapped(map(_kept, pictures), prepare, ahead=2 * batch_size, workers=workers)
        return self._streamed(prepared, batch_size, chosen)

    def _streamed(self, prepared: Iterator[_Prepared | Failure], batch_size: int, options: Any) -> Iterator[Any]:
        for batch in batched(prepared, batch_size):
            answers = iter(self._answer([item for item in batch if not isinstance(item, Failure)], options))
            for item in batch:
                yield item if isinstance(item, Failure) else next(answers)

    def prepare(
        self, source: PictureSource, *, keep_picture: bool = True, timeout: float = 10.0
    ) -> tuple[Float[Tensor, "c y x"], Seen]:
        """A picture as the model's input, and what it shows.

        Raises:
            PictureError: the picture cannot be read.
        """
        enough = self.preprocessing.reading_size if self.decoding == "fast" else None
        picture = read_picture(source, at_least=enough, timeout=timeout)
        pixels, frame = self.preprocessing(picture)
        return pixels, Seen(picture.name, frame, picture if keep_picture else None)

    @torch.no_grad()
    def _answer(self, prepared: list[_Prepared], options: Any) -> list[Any]:
        """Results in the order of the pictures; pictures whose inputs are of one size are computed together."""
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for place, (pixels, _) in enumerate(prepared):
            groups[pixels.shape].append(place)
        answers: list[Any] = [None] * len(prepared)
        for places in groups.values():
            inputs, seen = zip(*map(prepared.__getitem__, places), strict=True)
            output = self.model(torch.stack(inputs).to(self.device, self.dtype))
            for place, result in zip(places, TASKS[self.task].decode(output, seen, self.record, options), strict=True):
                answers[place] = result
        return answers


def _task_of(model: Any, task: str | None) -> str:
    """The task that is asked for, if the model can do it, or else its first.

    Raises:
        UnknownNameError: no such task.
        UsageError: the model cannot do it, or has no classes, without which it cannot.
    """
    if task is not None and task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    can = [name for name in model.tasks if name in TASKS]
    if task is not None and task not in can:
        raise UsageError(f"A {type(model).__name__} cannot do {task!r}; it can do {' or '.join(map(repr, model.tasks))}.")
    fitting = [name for name in can if model.config.num_classes or not TASKS[name].needs_classes]
    if task in fitting or (task is None and fitting):
        return task or fitting[0]
    if "image-feature-extraction" in fitting:
        raise UsageError(
            "The model has no classifier, so it cannot classify. Use the task 'image-feature-extraction', or load "
            "it with num_classes=… and train the new classifier."
        )
    raise UsageError(
        f"The {type(model).__name__} knows no classes, so it finds nothing. Load it with num_classes=… and train it."
    )


def _kept(picture: Any) -> Any:
    """A picture in memory as it is now: a camera's loop may write the next one into the same array while this one waits.

    An opened file is left alone: copying would decode it here, where the threads that read should.
    """
    if isinstance(picture, np.ndarray | Image.Image | bytearray) and not isinstance(picture, ImageFile.ImageFile):
        return picture.copy()
    return picture.clone() if isinstance(picture, Tensor) else picture


def _named(names: Sequence[str], count: int) -> tuple[str, ...]:
    """The names of so many classes."""
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UsageError(f"class_names is a list of names, none of them empty; {names!r:.80} came.")
    if len(names) != count:
        raise UsageError(
            f"The model knows {count} classes, and {len(names)} class_names came. Give a name for each, in its order."
        )
    return tuple(names)


def load(
    source: str | Path | nn.Module,
    *,
    architecture: Any = None,
    num_classes: int | None = None,
    **options: Any,
) -> Predictor:
    """A predictor from a checkpoint anybody published.

    Args:
        source: a folder, a weights file, a Hub id, or a model of Vitral's.
        architecture: see `checkpoints.load.load_model`.
        num_classes: see `checkpoints.load.load_model`.
        **options: see `Predictor`: task, preprocessing, device, dtype, decoding, class_names, top_k, function, threshold.

    Raises:
        CheckpointError: the checkpoint cannot be understood.
        HubError: the Hub cannot be reached.
        UnknownNameError: a misspelt option; the message names the nearest.
    """
    known = {"task", "preprocessing", "device", "dtype", "decoding", "class_names"}
    known |= {field.name for task in TASKS.values() for field in fields(task.options)}
    for option in options:
        if option not in known:
            raise UnknownNameError("keyword of load", option, {"architecture", "num_classes", *known})
    model = source if isinstance(source, nn.Module) else load_model(source, architecture, num_classes)
    return Predictor(model, **options)
