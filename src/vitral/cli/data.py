"""`vitral data`: what is in a set of labelled or annotated pictures, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitral.cli.show import json_line, picture_bar, plain
from vitral.data.check import DataReport, Sample, check
from vitral.data.look import Range
from vitral.data.object_check import ObjectReport, check_objects
from vitral.data.objects import ObjectFormat
from vitral.data.segment_check import SegmentReport, check_segments
from vitral.data.segments import Known, SegmentKind, known_of
from vitral.data.tree import WHOLE
from vitral.errors import UsageError

__all__ = ["check_data"]

_MOST = 10  # names of one kind
_MOST_CLASSES = 30  # rows of a table of classes


def check_data(
    path: str,
    *,
    as_json: bool,
    workers: int | None = None,
    format: ObjectFormat | None = None,
    segments: SegmentKind | None = None,
    void: Sequence[int] | None = None,
    offset: int | None = None,
    labels: str | None = None,
) -> int:
    """Read every picture of a source, and show what was found on stdout, as JSON if so wished.

    Where a source has both boxes and the class, object or segment of every pixel, boxes are looked at unless `segments` asks
    for the others.

    Args:
        path: a source; see `vitral.data.splits.all_splits`, `vitral.data.objects.read_objects` for pictures with boxes, and
            `vitral.data.segments.read_segments` for segmented ones.
        as_json: whether stdout receives one line of JSON instead of a table and sentences.
        workers: threads that read; one per processor, up to 8, unless told.
        format: how the annotations of boxes lie, where a source has them in several formats.
        segments: what is read of every pixel; None to see for oneself.
        void: numbers in label files that say that nothing is known of a pixel.
        offset: the number of the first class in label files.
        labels: the folder of label files, where several could be it.

    Returns:
        How many pictures could not be read; where there are boxes or label files, how much is wrong altogether.

    Raises:
        UsageError: the source cannot be understood.
    """
    errors = Console(stderr=True, highlight=False)
    meaning = {name: value for name, value in (("void", void), ("offset", offset), ("labels", labels)) if value is not None}
    if format is not None and (segments is not None or meaning):
        raise UsageError("A format is of boxes; leave it out to look at the segments of pictures.")
    asked = segments is not None or bool(meaning)
    known: Known = "objects" if format is not None else "segments" if asked else known_of(path)
    with picture_bar(errors) as progress:
        bar = progress.add_task("pictures", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        report: DataReport | ObjectReport | SegmentReport
        if known == "objects":
            report = check_objects(path, format=format, workers=workers, on_progress=advance)
        elif known == "segments":
            report = check_segments(path, segments, workers=workers, on_progress=advance, **meaning)
        else:
            report = check(path, workers=workers, on_progress=advance)
    if as_json:
        sys.stdout.write(json_line(report.to_dict()) + "\n")
    else:
        answers = Console(highlight=False)
        tables, told = _shown(report)
        for table in tables:
            answers.print(table)
        answers.print(Text("\n").join(told), soft_wrap=True)
    sys.stdout.flush()
    return len(report.unreadable) if isinstance(report, DataReport) else len(report.problems)


def _shown(report: DataReport | ObjectReport | SegmentReport) -> tuple[Iterable[Table], Iterable[Text]]:
    """A report as tables and sentences."""
    if isinstance(report, ObjectReport):
        return _object_tables(report), _object_sentences(report)
    if isinstance(report, SegmentReport):
        return _segment_tables(report), _segment_sentences(report)
    return [_table(report)], _sentences(report)


# -- pictures with one class each -----------------------------------------------------------------------------------------


def _table(report: DataReport) -> Table:
    """A row for each split: how many pictures it has, and of which classes it has the most and the least."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("split", style="bold", no_wrap=True)
    for title in ("pictures", "classes"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("most frequent", "least frequent"):
        table.add_column(title, overflow="ellipsis", no_wrap=True)
    for split, counts in report.counts.items():
        ordered = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
        most, least = ordered[0], ordered[-1]
        filled = len(counts) - len(report.without_pictures(split))
        table.add_row(
            Text(plain(split)),
            f"{sum(counts):,}",
            str(filled) if filled == len(counts) else f"{filled} of {len(counts)}",
            *(Text(f"{counts[label]:,} {plain(report.classes[label])}") for label in (most, least)),
        )
    return table


def _sentences(report: DataReport) -> Iterator[Text]:
    """What was found, the grave things first."""
    yield Text()
    if report.unreadable:
        yield Text(f"{_pictures(report.unreadable)} cannot be read:", "red")
        yield from _list(f"{one.name}: {one.reason}" for one in report.unreadable)
    else:
        yield Text(
            f"All {report.total:,} pictures can be read." if report.total > 1 else "The picture can be read.", "green"
        )
    for split in report.counts:
        empty = report.without_pictures(split)
        if empty:
            where = "" if split == WHOLE else f" in {plain(split)}"
            yield Text(f"{_classes(empty)} no picture{where}:", "yellow")
            yield from _list(empty)
    groups = (
        (report.leaks, "in several splits, so that judging by one is judging by what was learned"),
        (report.disputed, "under several labels"),
        (report.twins, "several times within a split"),
    )
    for found, where in groups:
        if found:
            yield Text(f"{_pictures(found)} {'is' if len(found) == 1 else 'are'} there {where}:", "yellow")
            yield from _list(map(_group, found))
    if report.heights is not None and report.widths is not None:
        if not any(found for found, _ in groups):
            yield Text("No two have the same pixels.")
        yield Text(f"Heights are {_range(report.heights)}, widths {_range(report.widths)}.")
    if report.odd:
        yield Text(f"{_pictures(report.odd)} {'has' if len(report.odd) == 1 else 'have'} an odd size:", "yellow")
        yield from _list(f"{one.name}: {one.size[0]} × {one.size[1]}, {one.reason}" for one in report.odd)
    if report.modes.keys() - {"RGB"}:
        stored = ", ".join(f"{mode} ({count:,})" for mode, count in report.modes.items())
        yield Text(f"They are stored as {stored}, and read as RGB.")


# -- pictures with objects ------------------------------------------------------------------------------------------------

_SENTENCES = {
    "malformed": ("annotation is malformed", "annotations are malformed"),
    "unknown class": ("annotation is of an unknown class", "annotations are of unknown classes"),
    "empty": ("box has no area", "boxes have no area"),
    "outside": ("box reaches out of its picture", "boxes reach out of their pictures"),
    "duplicate": ("thing is there twice", "things are there twice"),
    "missing": ("file is missing", "files are missing"),
    "unreadable": ("picture cannot be read", "pictures cannot be read"),
    "size": ("picture has another size than its annotations say", "pictures have other sizes than their annotations say"),
}


def _object_tables(report: ObjectReport) -> Iterator[Table]:
    """A row for each split, then one for each class."""
    splits = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    splits.add_column("split", style="bold", no_wrap=True)
    for title in ("pictures", "without", "objects", "crowds", "small", "medium", "large", "most"):
        splits.add_column(title, justify="right", no_wrap=True)
    for split, one in report.counts.items():
        numbers = (one.pictures, one.empty, sum(one.objects), one.crowds, *one.sizes, one.most)
        splits.add_row(Text(plain(split)), *(f"{number:,}" for number in numbers))
    yield splits
    classes = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    classes.add_column("class", style="bold", overflow="ellipsis", no_wrap=True)
    for split in report.counts:
        classes.add_column(plain(split), justify="right", no_wrap=True)
    totals = [sum(one.objects[label] for one in report.counts.values()) for label in range(len(report.classes))]
    ordered = sorted(range(len(totals)), key=lambda label: (-totals[label], label))
    for label in ordered[:_MOST]:
        classes.add_row(Text(plain(report.classes[label])), *(f"{one.objects[label]:,}" for one in report.counts.values()))
    if len(ordered) > _MOST:
        rest = (sum(one.objects[label] for label in ordered[_MOST:]) for one in report.counts.values())
        classes.add_row(Text(f"{len(ordered) - _MOST:,} others", "bright_black"), *(f"{count:,}" for count in rest))
    yield Table.grid()
    yield classes


def _object_sentences(report: ObjectReport) -> Iterator[Text]:
    """What was found, the commonest things first."""
    yield Text()
    if not report.problems:
        yield Text("Nothing is wrong with pictures or annotations.", "green")
    for kind, count in report.kinds.items():
        yield Text(f"{count:,} {_SENTENCES[kind][count > 1]}:", "red")
        yield from _list(str(one) for one in report.problems if one.kind == kind)
    for split in report.counts:
        empty = report.without_objects(split)
        if empty:
            yield Text(f"{_classes(empty)} no object in {plain(split)}:", "yellow")
            yield from _list(empty)
    if report.leaks:
        verb = "is" if len(report.leaks) == 1 else "are"
        where = "in several splits, so that judging by one is judging by what was learned"
        yield Text(f"{_pictures(report.leaks)} {verb} there {where}:", "yellow")
        yield from _list(" = ".join(name for _, name in group[:3]) for group in report.leaks)
    if report.heights is not None and report.widths is not None:
        yield Text(f"Heights are {_range(report.heights)}, widths {_range(report.widths)}.")


# -- segmented pictures ---------------------------------------------------------------------------------------------------

_SEGMENT_SENTENCES = {
    **_SENTENCES,
    "malformed": ("thing said of a segment is malformed", "things said of segments are malformed"),
    "unknown class": ("time a label file holds what is no class", "times a label file holds what is no class"),
    "empty": ("segment, or split, has no pixel", "segments, or splits, have no pixel"),
    "missing": ("file is missing, or has no counterpart", "files are missing, or have no counterpart"),
    "unreadable": ("picture or label file cannot be read", "pictures or label files cannot be read"),
    "size": ("picture does not lie on its labels, pixel by pixel", "pictures do not lie on their labels, pixel by pixel"),
}


def _segment_tables(report: SegmentReport) -> Iterator[Table]:
    """A row for each split, then one for each class with its share of the pixels."""
    counted = any(one.objects for one in report.counts.values())
    splits = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    splits.add_column("split", style="bold", no_wrap=True)
    for title in ("pictures", *(("segments", "crowds") if counted else ()), "megapixels", "unlabelled"):
        splits.add_column(title, justify="right", no_wrap=True)
    for split, one in report.counts.items():
        numbers = (f"{sum(one.objects):,}", f"{one.crowds:,}") if counted else ()
        unlabelled = _percent(one.unlabelled, one.total)
        splits.add_row(Text(plain(split)), f"{one.pictures:,}", *numbers, f"{one.total / 1e6:,.1f}", unlabelled)
    yield splits
    classes = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    classes.add_column("class", style="bold", overflow="ellipsis", no_wrap=True)
    if report.things is not None:
        classes.add_column("", style="bright_black", no_wrap=True)
    for split in report.counts:
        classes.add_column(plain(split), justify="right", no_wrap=True)
    totals = [sum(one.pixels[label] for one in report.counts.values()) for label in range(len(report.classes))]
    ordered = sorted(range(len(totals)), key=lambda label: (-totals[label], label))
    for label in ordered[:_MOST_CLASSES]:
        kind = [] if report.things is None else ["thing" if report.things[label] else "stuff"]
        shares = [_percent(one.pixels[label], one.total) for one in report.counts.values()]
        classes.add_row(Text(plain(report.classes[label])), *kind, *shares)
    if len(ordered) > _MOST_CLASSES:
        left = ordered[_MOST_CLASSES:]
        rest = [_percent(sum(one.pixels[label] for label in left), one.total) for one in report.counts.values()]
        empty = [] if report.things is None else [""]
        classes.add_row(Text(f"{len(left)} others", "bright_black"), *empty, *rest)
    yield Table.grid()
    yield classes


def _segment_sentences(report: SegmentReport) -> Iterator[Text]:
    """What was assumed, then what was found, the commonest things first."""
    yield Text()
    yield Text(f"Read as {report.kind}. {plain(report.assumes)}")
    if not report.problems:
        yield Text("Nothing is wrong with pictures or labels.", "green")
    for kind, count in report.kinds.items():
        yield Text(f"{count:,} {_SEGMENT_SENTENCES[kind][count > 1]}:", "red")
        yield from _list(str(one) for one in report.problems if one.kind == kind)
    yield from _list(report.advice)
    for split in report.counts:
        empty = report.without_pixels(split)
        if empty:
            yield Text(f"{_classes(empty)} no pixel in {plain(split)}:", "yellow")
            yield from _list(empty)
    if report.leaks:
        verb = "is" if len(report.leaks) == 1 else "are"
        where = "in several splits, so that judging by one is judging by what was learned"
        yield Text(f"{_pictures(report.leaks)} {verb} there {where}:", "yellow")
        yield from _list(" = ".join(name for _, name in group[:3]) for group in report.leaks)
    if report.heights is not None and report.widths is not None:
        yield Text(f"Heights are {_range(report.heights)}, widths {_range(report.widths)}.")


def _percent(part: int, whole: int) -> str:
    """A share in percent; one that is not nothing is never shown as if it were."""
    if not part or not whole:
        return "–"
    return f"{100 * part / whole:.2f} %" if part / whole >= 0.00005 else "< 0.01 %"


# -- words ----------------------------------------------------------------------------------------------------------------


def _list(lines: Iterable[str]) -> Iterator[Text]:
    """The first lines, and how many more there are."""
    listed = list(lines)
    for line in listed[:_MOST]:
        yield Text(f"  {plain(line)}")
    if len(listed) > _MOST:
        yield Text(f"  … and {len(listed) - _MOST:,} more")


def _group(group: tuple[Sample, ...]) -> str:
    """The pictures of a group with their labels; first those that differ in split or label, which is what matters."""
    firsts = list({(one.split, one.label): one for one in reversed(group)}.values())[::-1]
    ordered = [*firsts, *(one for one in group if one not in firsts)]
    named = [f"{one.name} ({one.label})" for one in ordered[:3]]
    return " = ".join(named) + (f" and {len(group) - 3:,} more" if len(group) > 3 else "")


def _range(lengths: Range) -> str:
    if lengths.least == lengths.most:
        return f"{lengths.least} pixels"
    return f"{lengths.least} to {lengths.most} pixels (median {lengths.median:g})"


def _pictures(found: tuple[object, ...]) -> str:
    return "1 picture" if len(found) == 1 else f"{len(found):,} pictures"


def _classes(names: tuple[str, ...]) -> str:
    return "1 class has" if len(names) == 1 else f"{len(names):,} classes have"
