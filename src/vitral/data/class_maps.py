"""The class of every pixel: what the numbers or colours of label files mean, said in one place and aloud.

Half of all wrong results in semantic segmentation are labels counted from 1 where 0 was expected, or a void that was taught
as a class. So what label files mean is a value of its own, a `Labelling`: recognised by how a source is laid out, said in a
sentence, and overridden by options. A pixel that holds something else is never passed over: reading it is an error that
names the file, the number, how many pixels hold it, and what to do.

| source | what is assumed |
|---|---|
| Cityscapes (`…_gtFine_labelIds.png`) | 19 of its 34 ids are classes, in the order of the trainIds; the others are void |
| Cityscapes (`…_labelTrainIds.png`) | 0 to 18 are classes, 255 is void |
| ADE20K (`objectInfo150.txt`, or `ADE_…` pictures) | 0 is void, class k is k + 1 |
| Pascal VOC (`SegmentationClass`) | 0 is the background, 1 to 20 its classes, 255 is void; as numbers or VOC's colours |
| CamVid in SegNet's form (`0001TP_…`, values to 11) | 0 to 10 are classes, 11 is void |
| `label_colors.txt`, `class_dict.csv`, `labelmap.txt` | colours are classes; one called void, or unlabelled, is none |
| `classes.txt` | a name for each value, from 0, or numbers with names; one called void is none, and so is 255 |
| anything else | every value up to the largest is a class, "class 0" and so on; 255 is void |
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int32, Integer, Shaped, UInt8

from vitral.base.numbers import as_integer, whole_number
from vitral.base.processors import default_workers
from vitral.data.label_files import Pair, Pairs, colour_codes, holds_colours, label_values
from vitral.data.listed import PicturesWithLabels
from vitral.data.object_source import Source
from vitral.data.tree import some
from vitral.errors import PictureError, UsageError

__all__ = ["ClassMaps", "Labelling", "Looked", "labelling_of", "void_numbers"]

_COLOURS_UNSAID = (
    "It holds colours, but nothing says which class each is. Lay a label_colors.txt beside it (a line for each class: red "
    "green blue name), or give colours=…."
)
_DEEP = 65535  # ignored pixels where 255 is a class
_LEAST = -(1 << 31)  # of what label files can hold
_UNSAID = "As nothing says otherwise"


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What the numbers, or colours, of label files mean.

    Args:
        names: the names of the classes, each once.
        offset: the number of the first class; with 1, class k is the number k + 1, and 0 is void ("reduce labels").
        void: numbers that say that nothing is known of a pixel; those below `offset` do so too.
        mapping: (number, class) of every number that is a class, instead of `offset`. With `coloured`, the numbers are
            red + 256 green + 65536 blue, and so are those of `void`.
        coloured: whether files hold colours.
        origin: how the labelling came to be known, the beginning of a sentence.

    Raises:
        UsageError: names that come twice, or none; a number that is both a class and void, or stands for no class.
    """

    names: tuple[str, ...]
    offset: int = 0
    void: tuple[int, ...] = (255,)
    mapping: tuple[tuple[int, int], ...] = ()
    coloured: bool = False
    origin: str = _UNSAID

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            came = f"twice there are {some(twice)}" if twice else "none came"
            raise UsageError(f"Classes must be at least one, each named once; {came}.")
        for name in self.names:
            if not isinstance(name, str) or any("\ud800" <= sign <= "\udfff" for sign in name):
                raise UsageError(f"The name of a class must be text in valid Unicode; {name!r} came.")
        whole_number("offset of a Labelling", self.offset, least=0)
        for number in (*self.void, *(one for one, _ in self.mapping)):
            whole_number("A number in label files", number, least=_LEAST)
        for number, label in self.mapping:
            if _label(label) >= len(self.names):
                raise UsageError(f"The number {number} stands for the class {label}, but there are {len(self.names)}.")
        both = sorted({number for number, _ in self.mapping} & set(self.void))
        if both:
            raise UsageError(
                f"{_numbers(frozenset(both))} cannot be void and a class at once. Leave it out of one of the two."
            )
        if self.coloured and not self.mapping:
            raise UsageError("Of colours each must be said which class it is: mapping=….")

    @property
    def ignore(self) -> int:
        """What class maps hold where nothing is known: 255, unless that is a class."""
        return 255 if len(self.names) <= 255 else _DEEP

    @cached_property
    def pairs(self) -> dict[int, int]:
        """The class of every number that is one. Where `void` has a number, it is none."""
        told = self.mapping or tuple((self.offset + label, label) for label in range(len(self.names)))
        return {number: label for number, label in told if number not in self.void}

    @cached_property
    def nothing(self) -> frozenset[int]:
        """All numbers that say that nothing is known."""
        below = () if self.mapping else range(self.offset)
        return frozenset((*self.void, *below))

    def __str__(self) -> str:
        """What is assumed, in sentences."""
        count = len(self.names)
        if self.coloured:
            what = f"{len(self.mapping)} colours are the {count} classes" if count > 1 else "one colour is the only class"
        elif self.mapping:
            what = f"{_numbers(self.pairs)} are the {count} classes ({some(self.names, 3)})"
        elif count == 1:
            what = f"{self.offset} is the only class"
        else:
            what = f"{self.offset} to {self.offset + count - 1} are the {count} classes"
        nothing = [self.shown(number) for number in sorted(self.nothing)] if self.coloured else [_numbers(self.nothing)]
        void = f"{', '.join(nothing)} {'says' if len(self.nothing) == 1 else 'say'} that nothing is known"
        void = void if self.nothing else "every pixel is of one"
        return f"{self.origin}, {what}; {void} (ignored: {self.ignore} in class maps)."

    @property
    def doubt(self) -> str:
        """What is asked of whoever said nothing; "" where something was said or found."""
        if self.origin != _UNSAID or 0 not in self.pairs:
            return ""
        return (
            "No names of classes were found: if 0 says that nothing is known, say offset=1 (--offset 1), or so in a "
            "classes.txt beside the pictures (0 void, 1 road, …)."
        )

    def shown(self, number: int) -> str:
        """A number, or a colour, as messages name it."""
        return f"({number & 255}, {number >> 8 & 255}, {number >> 16 & 255})" if self.coloured else str(number)

    @property
    def _kind(self) -> type[np.uint8] | type[np.int32]:
        """What class maps are made of: bytes where those can hold all."""
        return np.uint8 if self.ignore == 255 else np.int32

    @cached_property
    def _table(self) -> tuple[Integer[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """The class of every number that can be looked up, and whether it means anything."""
        there = [*self.pairs, *self.nothing]
        size = max(256, 1 + max((number for number in there if number < 1 << 16), default=0))
        table, known = np.full(size, self.ignore, dtype=self._kind), np.zeros(size, dtype=bool)
        for number, label in self.pairs.items():
            if 0 <= number < size:
                table[number] = label
        known[[number for number in there if 0 <= number < size]] = True
        return table, known

    def look(self, values: Shaped[np.ndarray, "y x *c"]) -> Looked:
        """The class of each pixel, and what is not understood.

        Args:
            values: what `vitral.data.label_files.label_values` gives.
        """
        if values.ndim == 3 or self.coloured:
            return self._look_up(colour_codes(values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)))
        table, known = self._table
        if values.dtype != np.uint8 and (int(values.max()) >= len(table) or int(values.min()) < 0):
            return self._look_up(values)
        unknown = {}
        if not known[values].all():
            counts = np.bincount(values.reshape(-1), minlength=len(known))
            unknown = {int(number): int(counts[number]) for number in np.flatnonzero((counts > 0) & ~known)}
        return Looked(table[values], unknown)

    def _look_up(self, numbers: Int32[np.ndarray, "y x"]) -> Looked:
        """The same for numbers too large for a table."""
        there, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        classes = np.array([self.pairs.get(int(number), self.ignore) for number in there], dtype=self._kind)
        known = self.pairs.keys() | self.nothing
        unknown = {int(number): int(count) for number, count in zip(there, counts, strict=True) if int(number) not in known}
        return Looked(classes[place.reshape(numbers.shape)], unknown)

    def finding(self, number: int, count: int) -> str:
        """The sentence about pixels that hold what means nothing: what, and how many."""
        pixels = "1 pixel holds" if count == 1 else f"{count:,} pixels hold"
        return f"{pixels} {'the colour ' if self.coloured else ''}{self.shown(number)}, which is no class."

    def remedy(self, number: int) -> str:
        """What to do about such pixels, as it is said in Python and on the command line."""
        told = f"If {self.shown(number)} says that nothing is known, name it: void=[{self.shown(number)}] (--void {number})"
        if self.coloured:
            told += "; if it is a class, say which: colours={…}, or a line of label_colors.txt"
        elif self.mapping:
            told += f"; if it is a class, say which: mapping={{…}}, or a line of classes.txt ({number} road)"
        elif number == self.offset + len(self.names) and not self.offset:
            told += "; if classes are counted from 1, say offset=1 (--offset 1)"
        elif 0 <= number < 255:
            told += "; if it is a class, name all classes: classes=[…], or a classes.txt beside the pictures"
        return f"{told}."

    def complaint(self, number: int, count: int) -> str:
        """All about pixels that hold what means nothing: what, how many, what is assumed, and what to do."""
        return f"{self.finding(number, count)} {self} {self.remedy(number)}"


@dataclass(frozen=True, slots=True)
class Looked:
    """What a label file says.

    Attributes:
        class_map: the class of each pixel, ignored ones where nothing is known.
        unknown: how many pixels hold each number that means nothing; in the map they are ignored.
    """

    class_map: UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"]
    unknown: Mapping[int, int]


def _numbers(numbers: Iterable[int]) -> str:
    """Numbers in words: "0 to 6, 9 and 255"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(number) for number in run])
    ]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "none"


# -- sets ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMaps(PicturesWithLabels):
    """Pictures and the class of every pixel, described by label files; a `vitral.data.segments.ClassMapSet`.

    It is small and can be copied into other processes: pictures and labels stay where they are.

    Args:
        labelling: what the label files mean.
    """

    labelling: Labelling

    def __repr__(self) -> str:
        return f"<ClassMaps {self.name}: {len(self):,} pictures, {len(self.classes):,} classes>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.labelling.names

    @property
    def ignore(self) -> int:
        """What class maps hold where nothing is known."""
        return self.labelling.ignore

    def look(self, index: int) -> Looked:
        """What the label file of one picture says, be it understood or not.

        Raises:
            IndexError: there is no such picture.
            PictureError: the file is missing or damaged, or holds colours of which nobody said what they mean.
        """
        place = self._place(index)
        values = label_values(self.labels, place, coloured=self.labelling.coloured)
        if values.ndim == 3 and not self.labelling.coloured:
            raise PictureError(self.labels.where(place), _COLOURS_UNSAID)
        return self.labelling.look(values)

    def class_map(self, index: int) -> UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"]:
        """The class of every pixel of one picture; `ignore` where nothing is known.

        Raises:
            IndexError: there is no such picture.
            PictureError: the label file is missing or damaged, or holds what is no class.
        """
        looked = self.look(index)
        if looked.unknown:
            number, count = max(looked.unknown.items(), key=lambda item: item[1])
            raise PictureError(self.labels.where(self._place(index)), self.labelling.complaint(number, count))
        return looked.class_map


# -- what a source is ---------------------------------------------------------------------------------------------------


_CITYSCAPES = (
    ("road", 7), ("sidewalk", 8), ("building", 11), ("wall", 12), ("fence", 13), ("pole", 17), ("traffic light", 19),
    ("traffic sign", 20), ("vegetation", 21), ("terrain", 22), ("sky", 23), ("person", 24), ("rider", 25), ("car", 26),
    ("truck", 27), ("bus", 28), ("train", 31), ("motorcycle", 32), ("bicycle", 33),
)  # fmt: skip
"""Cordts et al. 2016, "The Cityscapes Dataset", app. A: the classes that count, by trainId, and the id of each."""

_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Everingham et al. 2010, "The Pascal Visual Object Classes Challenge", tab. 1, behind the background."""

_CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""Badrinarayanan et al. 2017, "SegNet", sec. 4.1: the eleven classes of CamVid (Brostow et al. 2009)."""

_CAMVID_NAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_")
_VOID_NAME = re.compile(r"(void|unlabell?ed|ignored?|undefined)", re.IGNORECASE)
_NAME_FILES = ("objectinfo150.txt", "label_colors.txt", "class_dict.csv", "labelmap.txt", "classes.txt")


def labelling_of(
    source: Source,
    pairs: Pairs,
    *,
    classes: Sequence[str] | None = None,
    void: Sequence[int | Sequence[int]] | None = None,
    offset: int | None = None,
    mapping: Mapping[int, int] | None = None,
    colours: Mapping[tuple[int, int, int], int] | None = None,
    skip: bool = False,
) -> Labelling:
    """What the label files of a source mean: as it is laid out, unless options say otherwise.

    Where neither tells how many classes there are, every label file is read once.

    Args:
        source: the files.
        pairs: its pictures and their label files.
        classes: the names of the classes, in order.
        void: see `void_numbers`; they are void besides what is known to be, such as 255.
        offset: the number of the first class; 1 where 0 is void.
        mapping: the class of each number, instead of an offset.
        colours: the class of each colour, where files hold colours.
        skip: where label files must be read, pass over those that cannot be, unless none can.

    Raises:
        UsageError: options that contradict each other, or are no numbers; a file of names that cannot be read; no pixel that
            is of a class.
        PictureError: a label file that cannot be read, where they must be.
    """
    if sum(one is not None for one in (offset, mapping, colours)) > 1:
        raise UsageError("Say one of offset=…, mapping=… and colours=…: each says which numbers are the classes.")
    first = 0 if offset is None else whole_number("offset", offset, least=0)
    nothing = void_numbers(void)
    known = None if mapping is not None or colours is not None else _recognised(source, pairs)
    names = tuple(classes) if classes is not None else None
    if known is not None and (names is None or len(names) == len(known.names)):
        changes: dict[str, object] = {}
        if names is not None:
            changes["names"] = names
        if void is not None:
            changes["void"] = tuple(dict.fromkeys((*known.void, *nothing)))
        if offset is not None:
            if known.coloured or known.mapping:
                raise UsageError(f"{known} An offset does not go with that. Say mapping=… instead.")
            changes["offset"] = first
        return replace(known, **changes, origin="As was said" if changes else known.origin)  # type: ignore[arg-type]
    said = any(one is not None for one in (classes, void, offset, mapping, colours))
    origin = "As was said" if said else _UNSAID
    if colours is not None:
        table = {_code(colour): label for colour, label in colours.items()}
        return Labelling(
            names=names or _counted(table.values()),
            void=nothing,
            mapping=tuple(table.items()),
            coloured=True,
            origin=origin,
        )
    reached: Container[int] = mapping if mapping is not None else range(first, first + len(names or ()))
    if 255 not in reached:
        nothing = tuple(dict.fromkeys((*nothing, 255)))
    if mapping is not None:
        names = names or _counted(mapping.values())
        return Labelling(names=names, void=nothing, mapping=tuple(mapping.items()), origin=origin)
    if names is not None:
        return Labelling(names=names, offset=first, void=nothing, origin=origin)
    return _seen(source, pairs.all, first, nothing, origin, skip)


def void_numbers(void: Sequence[int | Sequence[int]] | None) -> tuple[int, ...]:
    """Numbers in label files that say that nothing is known of a pixel.

    Args:
        void: the numbers; colours may be (red, green, blue), or red + 256 green + 65536 blue.

    Raises:
        UsageError: it is no list of such.
    """
    if isinstance(void, str) or not isinstance(void, Iterable | None):
        raise UsageError(f"void must be a list of numbers, such as [255]; {void!r} came.")
    return tuple(
        _code(one) if isinstance(one, tuple | list) else whole_number("A number in void", one, least=_LEAST)
        for one in void or ()
    )


def _label(label: object) -> int:
    """A class that a number or a colour stands for."""
    return whole_number("The class that a number stands for", label, least=0)


def _code(colour: Sequence[int]) -> int:
    """A colour as a number."""
    levels = [as_integer(level) for level in colour]
    if len(levels) != 3 or any(level is None or not 0 <= level <= 255 for level in levels):
        raise UsageError(f"A colour must be (red, green, blue), each from 0 to 255; {tuple(colour)!r} came.")
    red, green, blue = (int(level or 0) for level in levels)
    return red | green << 8 | blue << 16


def _counted(labels: Iterable[int]) -> tuple[str, ...]:
    """Names for classes that have none, up to the largest of some."""
    return tuple(f"class {label}" for label in range(1 + max(map(_label, labels), default=-1)))


def _seen(source: Source, pairs: Sequence[Pair], first: int, void: tuple[int, ...], origin: str, skip: bool) -> Labelling:
    """A labelling by the numbers that occur."""
    store = source.pictures([pair.labels for pair in pairs])

    def numbers(place: int) -> set[int] | PictureError:
        try:
            values = label_values(store, place)
            if values.ndim == 3:
                raise PictureError(store.where(place), _COLOURS_UNSAID)
        except PictureError as error:
            if skip:
                return error
            raise
        return set(np.unique(values).tolist())

    with ThreadPoolExecutor(default_workers(), thread_name_prefix="vitral-labels") as pool:
        found = list(pool.map(numbers, range(len(pairs))))
    wrong = [one for one in found if isinstance(one, PictureError)]
    if len(wrong) == len(found):
        raise wrong[0]
    there = set[int]().union(*(one for one in found if isinstance(one, set)))
    if there == {0, 255} and void == (255,) and not first:
        return Labelling(
            names=("background", "object"),
            void=(),
            mapping=((0, 0), (255, 1)),
            origin="As label files hold nothing but 0 and 255",
        )
    classes = {number for number in there if number not in void and number >= first}
    if not classes:
        raise UsageError(
            f"In the label files of {source.shown} no pixel is of any class: they hold {_numbers(there)}, and of "
            f"{_numbers({*void, *range(first)})} nothing is known. Correct void=… (--void) or offset=… (--offset)."
        )
    largest = max(classes)
    if largest - first >= _DEEP:
        raise UsageError(f"The label files of {source.shown} hold numbers beyond {_DEEP:,}. Say which mean what: mapping=….")
    if len(classes) > 2 and largest - first >= 16 * len(classes):
        raise UsageError(
            f"The label files of {source.shown} hold {len(classes)} numbers with wide gaps (up to {largest}), which are "
            "hardly all classes between them. Say which class each is: mapping={…}; or name all classes: classes=[…], or in "
            "a classes.txt beside the pictures."
        )
    return Labelling(names=_counted([largest - first]), offset=first, void=void, origin=origin)


def _recognised(source: Source, pairs: Pairs) -> Labelling | None:
    """What a source is known to mean by its layout or by a file of names; None where nothing tells."""
    labels = [pair.labels for pair in pairs.all]
    lowered = labels[0].lower()
    if "_labeltrainids." in lowered:
        return Labelling(names=tuple(name for name, _ in _CITYSCAPES), origin="As in Cityscapes' labelTrainIds")
    if "_labelids." in lowered:
        number_of = dict(_CITYSCAPES)
        return Labelling(
            names=tuple(number_of),
            void=tuple(number for number in (*range(34), 255) if number not in number_of.values()),
            mapping=tuple((number, label) for label, number in enumerate(number_of.values())),
            origin="As in Cityscapes' labelIds",
        )
    for file in _NAME_FILES:
        found = [name for name in source.tree.files if posixpath.basename(name).lower() == file]
        if found:
            return _of_names(source, min(found, key=lambda name: (name.count("/"), name)), file)
    stems = [posixpath.basename(pair.name) for pair in pairs.all]
    if all(stem.startswith("ADE_") for stem in stems):
        return Labelling(names=_counted([149]), offset=1, void=(0,), origin="As in ADE20K's SceneParse150")
    if "segmentationclass" in lowered:
        coloured = _is_coloured(source, pairs.all)
        return Labelling(
            names=_VOC,
            void=(_voc_colour(255),) if coloured else (255,),
            mapping=tuple((_voc_colour(label), label) for label in range(len(_VOC))) if coloured else (),
            coloured=coloured,
            origin="As in Pascal VOC",
        )
    if all(_CAMVID_NAME.match(stem) for stem in stems) and not _is_coloured(source, pairs.all[:1]):
        return Labelling(names=_CAMVID, void=(11, 255), origin="As in CamVid's eleven classes of SegNet")
    return None


def _is_coloured(source: Source, pairs: Sequence[Pair]) -> bool:
    """Whether any label file holds colours; one that cannot be read does not, and is complained of elsewhere."""
    store = source.pictures([pair.labels for pair in pairs])
    return any(holds_colours(store, place) for place in range(len(pairs)))


def _voc_colour(number: int) -> int:
    """The colour of a number in Pascal VOC's palette: its bits, three by three, from the highest bit of each level down."""
    levels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            levels[channel] |= (number >> 3 * place + channel & 1) << 7 - place
    return _code(levels)


def _of_names(source: Source, name: str, kind: str) -> Labelling:
    """A labelling by a file of names, colours, or both.

    Raises:
        UsageError: it cannot be read.
    """
    shown = source.where(name)
    try:
        text = source.content(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8. Save the file as UTF-8.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    origin = f"As {posixpath.basename(name)} has it"
    if kind == "objectinfo150.txt":
        rows = [re.split(r"\t+", line) for line in lines if line[:1].isdigit()]
        full = tuple(row[-1].strip() for row in rows)
        short = tuple(one.split(",")[0].split(";")[0].strip() for one in full)
        names = short if len(set(short)) == len(short) else full
        return Labelling(names=_some_names(names, shown), offset=1, void=(0,), origin=f"As in ADE20K's SceneParse ({name})")
    if kind in ("label_colors.txt", "class_dict.csv", "labelmap.txt"):
        return _of_colours(lines, kind, shown, origin)
    numbered = [re.match(r"(\d+)[\s:,;]+(.*\S)", line) for line in lines]
    told = dict(enumerate(lines))
    if all(numbered):
        told = {int(one[1]): one[2] for one in numbered if one is not None}
    if len(told) < len(lines):
        raise UsageError(f"{shown} gives two names to one number. Correct it.")
    kept = [number for number in sorted(told) if not _VOID_NAME.fullmatch(told[number])]
    void = tuple(number for number in sorted(told) if number not in kept)
    return Labelling(
        names=_some_names([told[number] for number in kept], shown),
        void=(*void, *(() if 255 in told else (255,))),
        mapping=() if kept == list(range(len(kept))) else tuple((number, label) for label, number in enumerate(kept)),
        origin=origin,
    )


def _of_colours(lines: Sequence[str], kind: str, shown: str, origin: str) -> Labelling:
    """A labelling by a file of colours: "red green blue name", "name,red,green,blue" or "name:red,green,blue:…:…"."""
    told: list[tuple[str, int]] = []
    for line in lines:
        if kind == "class_dict.csv":
            name, *levels = next(csv.reader(io.StringIO(line)))
            if [one.strip().lower() for one in levels] == ["r", "g", "b"]:
                continue
        elif kind == "labelmap.txt":
            name, rest = [*line.split(":"), ""][:2]
            levels = rest.split(",")
        else:
            *levels, name = line.split(None, 3)
        try:
            told.append((name.strip(), _code([int(level) for level in levels])))
        except (ValueError, UsageError) as error:
            raise UsageError(f"{shown}: {line[:80]!r} is no colour with a name, such as '128 64 128 Road'.") from error
    if len({code for _, code in told}) < len(told):
        raise UsageError(f"{shown} gives two names to one colour. Correct it.")
    kept = [(name, code) for name, code in told if not _VOID_NAME.fullmatch(name)]
    return Labelling(
        names=_some_names([name for name, _ in kept], shown),
        void=tuple(code for name, code in told if _VOID_NAME.fullmatch(name)),
        mapping=tuple((code, label) for label, (_, code) in enumerate(kept)),
        coloured=True,
        origin=origin,
    )


def _some_names(names: Sequence[str], shown: str) -> tuple[str, ...]:
    """Names of classes from a file, if they are some."""
    if not names or not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{shown} names no classes, or one of them twice. It should name each once.")
    return tuple(names)
