"""What a model answers to every picture of a set, read meanwhile: what judging a classifier and judging a detector share."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vitral.base.device import resolve_device, resolve_dtype
from vitral.base.frame import Seen
from vitral.base.image import Picture
from vitral.base.numbers import whole_number
from vitral.data.pictures import BadPictures
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, VitralError

__all__ = ["Answer", "Answers", "Decoding", "Readable", "answers_of", "asked", "check_reading"]

Decoding = Literal["fast", "exact"]
"""Whether a large JPEG is read at a fraction of its size where that is enough, or always whole."""


@runtime_checkable
class Readable(Protocol):
    """Pictures by their numbers."""

    def __len__(self) -> int: ...

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """One of them."""
        ...


class Answer(NamedTuple):
    """What a model answers to pictures whose inputs are of one size.

    Attributes:
        places: of the pictures in their set.
        seen: what the model saw of each.
        output: the model's.
    """

    places: list[int]
    seen: list[Seen]
    output: Any


class Answers(NamedTuple):
    """What a model answers to the pictures of a batch.

    Attributes:
        answers: one for each size of input.
        skipped: sentences about pictures that could not be read and are left out.
    """

    answers: list[Answer]
    skipped: list[str]


def check_reading(bad_pictures: str, decoding: str) -> None:
    """Refuse choices that are none, before anything else is done.

    Raises:
        UnknownNameError: naming the option and the nearest choice.
    """
    for option, given, known in (("bad_pictures", bad_pictures, BadPictures), ("decoding", decoding, Decoding)):
        if given not in get_args(known):
            raise UnknownNameError(option, given, get_args(known))


@torch.no_grad()
def answers_of(
    model: nn.Module,
    pictures: Readable,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    decoding: Decoding = "fast",
) -> Iterator[Answers]:
    """A model's answers, batch by batch, in the order of the set.

    The model is in evaluation mode and on the device while this lasts, and comes back as it was. The caller's random state
    is not touched.

    Args:
        model: anything that takes a batch of inputs.
        pictures: the set.
        preprocessing: from a picture to an input.
        batch_size: pictures that are read together; of those, inputs of one size are computed together.
        device: where to compute; by default where the model is.
        dtype: "bfloat16" or "float16" computes under autocast; by default in the precision of the weights.
        workers: processes that read and prepare; 0 does it here.
        bad_pictures: "refuse" ends at a picture that cannot be read; "skip" leaves it out and says so.
        decoding: "fast" reads large JPEGs as a predictor does by default; "exact" always reads them whole.

    Raises:
        UsageError: an option out of its range.
        PictureError: a picture that cannot be read, unless such are skipped.
    """
    check_reading(bad_pictures, decoding)
    whole_number("batch_size", batch_size)
    whole_number("workers", workers, least=0)
    computed = resolve_dtype(dtype)
    with asked(model, device) as there:
        weights = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
        loader = DataLoader(
            _Inputs(pictures, preprocessing, exact=decoding == "exact"),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_grouped,
            pin_memory=there.type == "cuda",
            generator=torch.Generator(),  # a loader draws a number, which must not be the caller's
        )
        for batch in loader:
            skipped = []
            for error in batch.errors:
                if bad_pictures == "refuse" or not isinstance(error, PictureError):
                    raise error
                skipped.append(str(error))
            answers = []
            for places, seen, pixels in batch.groups:
                # Entered anew for every group: a caller runs between two batches, in whatever precision it likes.
                half = torch.autocast(there.type, computed) if computed.itemsize < 4 else contextlib.nullcontext()
                with half:
                    answers.append(Answer(places, seen, model(pixels.to(there, weights, non_blocking=True))))
            yield Answers(answers, skipped)


@contextlib.contextmanager
def asked(model: nn.Module, device: str | int | torch.device | None = None) -> Iterator[torch.device]:
    """The model in evaluation mode on a device for a while; every part of it gets its own mode back."""
    home = next((one.device for one in model.parameters()), torch.device("cpu"))
    there = home if device is None else resolve_device(device)
    modes = [(part, part.training) for part in model.modules()]
    # "cpu:0" and "cpu" are one device by two names, between which moving would copy every tensor.
    moves = there.type != home.type or (there.index or 0) != (home.index or 0)
    try:
        model.eval()
        if moves:
            model.to(there)
        yield there
    finally:
        if moves:
            model.to(home)
        for part, training in modes:
            part.training = training


# -- reading, perhaps in other processes ------------------------------------------------------------------------------


class _Batch(NamedTuple):
    """Places, what the model is shown, and inputs (b c y x) of each size; and why others are missing."""

    groups: list[tuple[list[int], list[Seen], Tensor]]
    errors: list[VitralError]


class _Inputs(Dataset[tuple[int, Any]]):
    """Pictures as the model takes them, by their places in the set."""

    def __init__(self, pictures: Readable, preprocessing: Preprocessing, *, exact: bool) -> None:
        self.pictures, self.preprocessing = pictures, preprocessing
        self.enough = None if exact else preprocessing.reading_size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        try:
            picture = self.pictures.read(place, at_least=self.enough)
            pixels, frame = self.preprocessing(picture)
        except VitralError as error:
            return place, error  # one that is raised would lose its class on the way from a worker
        return place, (Seen(picture.name, frame), pixels)


def _grouped(items: Sequence[tuple[int, Any]]) -> _Batch:
    """One tensor for all inputs of a size: what crosses to another process is a few files, not one for each picture."""
    groups: dict[torch.Size, list[tuple[int, Seen, Tensor]]] = defaultdict(list)
    for place, item in items:
        if not isinstance(item, VitralError):
            groups[item[1].shape].append((place, *item))
    return _Batch(
        [
            ([place for place, _, _ in group], [seen for _, seen, _ in group], torch.stack([one for _, _, one in group]))
            for group in groups.values()
        ],
        [item for _, item in items if isinstance(item, VitralError)],
    )
