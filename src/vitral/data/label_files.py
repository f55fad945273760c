"""Label files: pictures whose pixels hold numbers or colours instead of light, and which picture each belongs to.

```
images/[train/]a.jpg                     labels|masks|annotations/[train/]a.png
train/images/a.jpg                       train/masks/a.png
train/a.png                              trainannot/a.png, train_labels/a_L.png
JPEGImages/a.jpg                         SegmentationClass/a.png         (Pascal VOC, with ImageSets/Segmentation/*.txt)
leftImg8bit/train/…/a_leftImg8bit.png    gtFine/train/…/a_gtFine_labelIds.png                           (Cityscapes)
```

A picture and its labels lie in folders of such names, otherwise of the same path, and have the same stem, to which labels
may append a word (`_mask`, `_L`, …). Splits are folders, or lists of stems, or there are none.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Int32, Integer, UInt8
from PIL import Image

from vitral.base.image import MAX_PIXELS
from vitral.data.object_source import Problem, Source, is_picture, split_of
from vitral.data.pictures import PictureStore
from vitral.data.tree import natural, some
from vitral.errors import PictureError, UsageError

__all__ = [
    "Pair",
    "Pairs",
    "colour_codes",
    "holds_colours",
    "label_pairs",
    "label_values",
    "other_size",
]

_PICTURES = frozenset(
    ("images", "image", "imgs", "img", "img_dir", "pictures", "photos", "jpegimages", "pngimages", "leftimg8bit", "rgb")
)
_LABELS = frozenset(
    ("labels", "label", "masks", "mask", "annotations", "annotation", "ann_dir", "gt", "ground_truth", "labelmaps",
     "pedmasks", "segmentationclass", "segmentationclassaug", "segmentations", "gtfine", "gtcoarse")
)  # fmt: skip
_BESIDE = ("annot", "_annot", "_labels", "_label", "_masks", "_mask", "_annotations", "_gt")  # train, trainannot
_ENDINGS = re.compile(
    r"(_gtfine_labeltrainids|_gtfine_labelids|_gtcoarse_labeltrainids|_gtcoarse_labelids|_labeltrainids|_labelids|"
    r"[_-](l|mask|masks|label|labels|gt|seg|segmentation|annotation))$",
    re.IGNORECASE,
)
_PASSED_OVER = re.compile(r"_(color|instanceids|instancetrainids|polygons)$", re.IGNORECASE)  # Cityscapes' other files
_DECODERS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # those that give back what was written
_LOSSY = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}  # of TIFF's compressions those that change numbers
_CHANGED = "which changes numbers as it stores them, so it cannot hold labels. Save labels as PNG."
_LISTS = ("segmentation", "imagesets", "splits", "lists")  # folders of lists of splits; the first that is there counts


# -- values -------------------------------------------------------------------------------------------------------------


def label_values(
    store: PictureStore, place: int, *, coloured: bool = False
) -> UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"] | UInt8[np.ndarray, "y x 3"]:
    """The numbers that a label file holds, as they are: of a palette picture the places in it, of a coloured one RGB.

    Where a coloured file is grey all over, its numbers are the greys. Transparency is left away.

    Args:
        store: where label files lie.
        place: which.
        coloured: whether colours are wanted, always of three channels: of a palette picture those that it shows.

    Raises:
        PictureError: it is not there, damaged, too large, in a format that changes numbers as it stores them, or has several
            pages; or it holds numbers that are no colours.
    """
    name = store.where(place)
    image = _opened(_content(store, place), name)
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(
            name, f"It has {image.height} x {image.width} pixels, more than the {MAX_PIXELS:,} that are decoded."
        )
    tiles = cast(Any, image).tile
    packed = tiles[0][3] if tiles else None
    if image.format == "PPM":
        packed = packed[1] if isinstance(packed, tuple) else None  # the largest number that may be written
    try:
        image.load()
    except Exception as error:  # a decoder fed with garbage raises whatever it likes
        raise PictureError(
            name, f"The label file could not be decoded ({str(error)[:200]}). Make or fetch it again."
        ) from error
    return _colours(image, packed, name) if coloured else _numbers(image, packed, name)


def holds_colours(store: PictureStore, place: int) -> bool:
    """Whether a label file holds colours as such; False where it has a palette, is grey all over, or cannot be read."""
    try:
        coloured = _opened(_content(store, place), store.where(place)).mode in ("RGB", "RGBA")
        return coloured and label_values(store, place).ndim == 3
    except PictureError:
        return False


def _content(store: PictureStore, place: int) -> bytes:
    """The bytes of a label file."""
    source = store.source(place)
    try:
        return Path(source).read_bytes() if isinstance(source, str | os.PathLike) else bytes(source)  # type: ignore[arg-type]
    except OSError as error:
        raise PictureError(store.where(place), f"The label file cannot be read ({error.strerror or error}).") from error


def _opened(content: bytes, name: str) -> Image.Image:
    """The picture of a file, not yet decoded."""
    if not content:
        raise PictureError(name, "The label file is empty (0 bytes). Was it written, or fetched, to its end?")
    Image.preinit()
    for kind in _DECODERS:
        decoder, accepts = Image.OPEN[kind]
        if accepts is not None and accepts(content[:16]) is True:
            try:
                image = decoder(io.BytesIO(content), "")
                pages = _pages(image) if kind == "TIFF" else 1
            except Exception as error:
                raise PictureError(name, f"The label file could not be decoded ({str(error)[:200]}).") from error
            if pages > 1:
                raise PictureError(name, f"It has {pages} pages, and nobody can tell which holds the labels. Save that one.")
            lossy = _LOSSY.get(str(image.info.get("compression"))) if kind == "TIFF" else None
            if lossy is not None:
                raise PictureError(name, f"It is compressed as {lossy}, {_CHANGED}")
            return image
    if content[:3] == b"\xff\xd8\xff":
        raise PictureError(name, f"It is a JPEG, {_CHANGED}")
    raise PictureError(
        name, f"It is no picture that can hold labels (PNG, TIFF, BMP, GIF, PPM); it begins with {content[:8]!r}."
    )


def _pages(image: Image.Image) -> int:
    """The pages of a TIFF, but for smaller copies and masks of others (TIFF 6.0, section 8, NewSubfileType)."""
    count = 0
    for page in range(cast(Any, image).n_frames):
        image.seek(page)
        count += not cast(Any, image).tag_v2.get(254, 0) & 5
    image.seek(0)
    return count


def _numbers(
    image: Image.Image, packed: object, name: str
) -> UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"] | UInt8[np.ndarray, "y x 3"]:
    """The numbers of a decoded picture."""
    if image.mode == "L":
        # Grey of 2 or 4 bits is stretched to 255 as it is decoded; labels are what was written.
        return _written(image, packed) // {"L;2": 85, "L;4": 17}.get(str(packed), 1)
    if image.mode == "P":
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    if image.mode in ("RGB", "RGBA"):
        values = _written(image, packed)[..., :3]
        grey = (values[..., 0] == values[..., 1]).all() and (values[..., 1] == values[..., 2]).all()
        return np.ascontiguousarray(values[..., 0] if grey else values)
    if image.mode.startswith("I"):
        return _written(image, packed).astype(np.int32)
    raise PictureError(
        name, f"Its pixels are of the kind {image.mode!r}, which are no labels. Save whole numbers or colours."
    )


def _colours(image: Image.Image, packed: object, name: str) -> UInt8[np.ndarray, "y x 3"]:
    """The colours of a decoded picture."""
    if image.mode[0] in "IF":
        raise PictureError(
            name, f"Its pixels are numbers of the kind {image.mode!r}, but colours are expected. Save it as RGB."
        )
    image.info.pop("transparency", None)
    return _written(image.convert("RGB"), packed)


def _written(image: Image.Image, packed: object) -> UInt8[np.ndarray, "y x *c"] | Integer[np.ndarray, "y x"]:
    """The pixels of a picture; of PGM and PPM, which are stretched as they are decoded, the numbers that were written."""
    values = np.asarray(image)
    full = 65535 if image.mode == "I" else 255
    return np.rint(values * (packed / full)).astype(values.dtype) if isinstance(packed, int) and packed != full else values


def other_size(size: tuple[int, int], labels: tuple[int, int]) -> str:
    """The sentences about labels of another size than their picture.

    Args:
        size: (height, width) of the upright picture, in pixels.
        labels: that of its labels.
    """
    told = f"It has {size[0]} × {size[1]} pixels (height × width), but its labels have {labels[0]} × {labels[1]}."
    if labels == size[::-1]:
        return (
            f"{told} Pictures are turned upright as their EXIF says, labels are not. Turn its labels likewise, or take the "
            "orientation out of its EXIF."
        )
    return f"{told} Make them the same size."


def colour_codes(values: UInt8[np.ndarray, "y x 3"]) -> Int32[np.ndarray, "y x"]:
    """Colours as numbers: red + 256 green + 65536 blue, as COCO's panoptic files count."""
    wide = values.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


# -- which belongs to which ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A picture and its label file.

    Attributes:
        name: what the picture is called: its path in the source.
        labels: the path of its label file.
        split: "train", "val" or "test".
    """

    name: str
    labels: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures with label files.

    Attributes:
        splits: the pairs of each split, sorted by their names.
        problems: pictures without labels, and labels without a picture, of each split.
        told: whether the source itself says which split a picture is in.
    """

    splits: Mapping[str, list[Pair]]
    problems: Mapping[str, list[Problem]]
    told: bool

    @property
    def all(self) -> list[Pair]:
        """Those of all splits."""
        return [pair for pairs in self.splits.values() for pair in pairs]


_Key = tuple[str, str]
"""What a picture and its label file have in common: the other folders, and the stem."""


def label_pairs(source: Source, folder: str | None = None) -> Pairs | None:
    """The pictures of a source with their label files; None where there are none.

    Args:
        source: the files.
        folder: the only folder that label files are taken from, where there are several for a picture.

    Raises:
        UsageError: several label files for one picture; the folder is not there; two pictures of one name, where any has
            a label file.
    """
    if folder is not None:
        folder = posixpath.normpath(folder)
        if not any(name.startswith(f"{folder}/") for name in source.tree.files):
            raise UsageError(f"{source.shown} has no folder {folder!r} with label files.")
    named, labels = _sorted_out(source, folder)
    ended: dict[_Key, list[str]] = defaultdict(list)
    for (rest, stem), names in labels.items():
        ended[rest, _ENDINGS.sub("", stem)] += names
    labelled = {key: labels.get(key) or ended[key] for key in named if key in labels or key in ended}
    if not labelled:
        return None
    for first, *others in named.values():
        if others:
            raise UsageError(
                f"{source.shown} holds {first!r} and {others[0]!r}, two pictures of one name, so that nobody can tell "
                "which of them labels are for. Rename one."
            )
    pictures = {key: name for key, (name,) in named.items()}
    matched = {key: _chosen(names, source) for key, names in labelled.items()}
    used = frozenset(matched.values())
    lonely = sorted(
        name for names in labels.values() for name in names if name not in used and not _training_twin(name, used)
    )
    splits = {key: _split_of_folders(key[0]) for key in pictures}
    if any(splits[key] for key in matched):
        return _by_folders(source, pictures, matched, splits, lonely)
    lists = _lists(source, pictures)
    if lists:
        return _by_lists(source, pictures, matched, lists)
    return _by_folders(source, pictures, matched, {}, lonely)


def _sorted_out(source: Source, only: str | None) -> tuple[dict[_Key, list[str]], dict[_Key, list[str]]]:
    """All pictures, and all label files, by what they have in common."""
    folders = frozenset(above for name in source.tree.files for above in _above(posixpath.dirname(name)))
    roles = {folder: _role(folder, folders) for folder in {posixpath.dirname(name) for name in source.tree.files}}
    pictures: dict[_Key, list[str]] = defaultdict(list)
    labels: dict[_Key, list[str]] = defaultdict(list)
    for name in filter(is_picture, source.tree.files):
        folder, base = posixpath.split(name)
        role, stem = roles[folder], posixpath.splitext(base)[0]
        if role is None:
            continue
        is_label, rest = role
        if is_label:
            if (only is None or name.startswith(f"{only}/")) and not _PASSED_OVER.search(stem):
                labels[rest, stem].append(name)
            continue
        pictures[rest, re.sub(r"_leftImg8bit$", "", stem)].append(name)
    return pictures, labels


def _above(folder: str) -> Iterator[str]:
    """A folder and those that it lies in."""
    while folder:
        yield folder
        folder = posixpath.dirname(folder)


def _role(folder: str, folders: frozenset[str]) -> tuple[bool, str] | None:
    """Whether a folder holds labels or pictures, as its innermost name that says so has it; and the rest of its path."""
    parts = folder.split("/")
    for place in reversed(range(len(parts))):
        word, before, behind = parts[place], parts[:place], parts[place + 1 :]
        if word.lower() in _PICTURES or word.lower() in _LABELS:
            return word.lower() in _LABELS, "/".join([*before, *behind])
        for ending in _BESIDE:
            beside = [*before, word[: -len(ending)]]
            if word.lower().endswith(ending) and "/".join(beside) in folders:
                return True, "/".join([*beside, *behind])
        if any("/".join([*before, word + ending]) in folders for ending in _BESIDE):
            return False, folder
    return None


def _chosen(names: list[str], source: Source) -> str:
    """The label file of a picture: of Cityscapes' two kinds the one for training."""
    best = [name for name in names if "labeltrainids" in name.lower()] or names
    if len(best) > 1:
        raise UsageError(
            f"{source.shown} holds several label files for one picture: {some(best, 3)}. Say in which folder those lie that "
            "are meant: labels=…."
        )
    return best[0]


def _training_twin(name: str, used: frozenset[str]) -> bool:
    """Whether the other kind of a label file of Cityscapes is used."""
    return name.replace("_labelIds.", "_labelTrainIds.") in used


def _split_of_folders(path: str) -> str | None:
    """The split that some folder of a path is called after."""
    for part in path.split("/"):
        found = "train" if part.lower() == "training" else split_of(part)
        if found:
            return found
    return None


def _by_folders(
    source: Source,
    pictures: Mapping[_Key, str],
    matched: Mapping[_Key, str],
    splits: Mapping[_Key, str | None],
    lonely: Sequence[str],
) -> Pairs:
    """The splits as folders have them; what lies in none, or where there are none, is for training."""
    pairs: dict[str, list[Pair]] = {}
    problems: dict[str, list[Problem]] = defaultdict(list)
    labelled = {splits.get(key) or "train" for key in matched}
    for key, name in sorted(pictures.items(), key=lambda item: natural(item[1])):
        split = splits.get(key) or "train"
        if split not in labelled:  # a test whose answers are kept back
            continue
        if key in matched:
            pairs.setdefault(split, []).append(Pair(name, matched[key], split))
        else:
            problems[split].append(_missing(source.where(name), name, "It has no label file."))
    for name in lonely:
        split = _split_of_folders(posixpath.dirname(name)) or "train"
        problems[split if split in pairs else min(pairs)].append(
            _missing(source.where(name), "", "It is the label file of no picture.")
        )
    order = [split for split in ("train", "val", "test") if split in pairs]
    return Pairs(splits={split: pairs[split] for split in order}, problems=dict(problems), told=bool(splits))


def _by_lists(
    source: Source, pictures: Mapping[_Key, str], matched: Mapping[_Key, str], lists: Mapping[str, Sequence[str]]
) -> Pairs:
    """The splits as lists have them; what is in no list is left out."""
    by_stem: dict[str, list[_Key]] = defaultdict(list)
    for one in pictures:
        by_stem[one[1]].append(one)
    pairs: dict[str, list[Pair]] = {}
    problems: dict[str, list[Problem]] = defaultdict(list)
    for split, entries in lists.items():
        found: dict[_Key, Pair] = {}
        for entry in dict.fromkeys(entries):
            key = _key_of(entry, by_stem, pictures, split, source)
            if key is not None and key in matched:
                found[key] = Pair(pictures[key], matched[key], split)
                continue
            what = "no picture of that name" if key is None else "no label file of it"
            problems[split].append(
                _missing(source.shown, entry, f"The list of the split {split} names it, but there is {what}.")
            )
        pairs[split] = list(found.values())
    return Pairs(splits=pairs, problems=dict(problems), told=True)


def _key_of(
    entry: str, by_stem: Mapping[str, list[_Key]], pictures: Mapping[_Key, str], split: str, source: Source
) -> _Key | None:
    """The picture that a list means, by its stem, or by so much of its path as tells it from others; None: there is none."""
    path = posixpath.normpath(entry if posixpath.basename(entry) in by_stem else posixpath.splitext(entry)[0])
    keys = by_stem.get(posixpath.basename(path), [])
    if len(keys) > 1:
        named = [key for key in keys if f"/{posixpath.splitext(pictures[key])[0]}".endswith(f"/{path.lstrip('/')}")]
        if len(named) != 1:
            raise UsageError(
                f"The list of the split {split} of {source.shown} names {entry!r}, but there are "
                f"{some([pictures[key] for key in keys], 3)}. Write so much of the path as tells them apart."
            )
        keys = named
    return keys[0] if keys else None


def _missing(file: str, picture: str, reason: str) -> Problem:
    return Problem(kind="missing", file=file, annotation="", picture=picture, reason=reason)


def _lists(source: Source, pictures: Iterable[_Key]) -> dict[str, list[str]]:
    """What the lists {train,val,test}.txt name, stems or paths; trainval.txt counts where the first two are missing."""
    tops = {rest for rest, _ in pictures}
    found: dict[str, tuple[int, list[str]]] = {}
    for name in source.tree.files:
        folder, base = posixpath.split(name)
        split = {"train.txt": "train", "val.txt": "val", "test.txt": "test", "trainval.txt": "trainval"}.get(base.lower())
        beside = posixpath.basename(folder).lower()
        rank = _LISTS.index(beside) if beside in _LISTS else len(_LISTS) if folder in tops else None
        if split is None or rank is None or (split in found and found[split][0] <= rank):
            continue
        try:
            lines = source.content(name).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"{source.where(name)} is not UTF-8. Save the file as UTF-8.") from error
        found[split] = rank, [line.split()[0] for line in lines if line.strip()]
    best = min((rank for rank, _ in found.values()), default=0)
    lists = {split: stems for split, (rank, stems) in found.items() if rank == best}
    both = lists.pop("trainval", None)
    if both is not None and "train" not in lists and "val" not in lists:
        lists = {"train": both, **lists}
    return {split: lists[split] for split in ("train", "val", "test") if lists.get(split)}
