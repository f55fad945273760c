"""What a terminal sees: answers on stdout, failures and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vitral.pipelines.predictor import Failure
from vitral.tasks.classification.result import Classification
from vitral.tasks.detection.result import Detections
from vitral.tasks.features import Features
from vitral.tasks.segmentation.result import Instances, Panoptic, Segmentation

__all__ = ["Screen", "columns", "json_line", "picture_bar", "plain"]

_WIDEST = 100
_BAR = 22
_MANY = 8  # pictures that are worth a progress bar


def plain(text: str) -> str:
    """A text of strangers (a file's name, a label) without the signs that could steer a terminal."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def columns(first: str, *others: str) -> Table:
    """An empty table of names and numbers: `first` stands on the left, the numbers are aligned on their right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column(Text(first), overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def json_line(content: dict[str, Any]) -> str:
    """One line of JSON, as readable as UTF-8 allows: names that are no valid Unicode are escaped."""
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(content)
    return line


class Screen:
    """Shows answers as they come.

    With `as_json`, stdout receives JSON lines and nothing else. A progress bar appears on stderr for more than a few
    pictures, if stderr is a terminal.

    Args:
        total: how many pictures there are.
        as_json: whether answers are JSON lines.
        labels: the names of the classes, to align the bars of all pictures.
        windows: whether each picture takes so long that it has a progress bar of its own; see `windows`.
    """

    def __init__(self, total: int, *, as_json: bool, labels: tuple[str, ...] = (), windows: bool = False) -> None:
        self.as_json = as_json
        self.errors = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.errors,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=(total <= _MANY and not windows) or not self.errors.is_terminal,
        )
        self.part: TaskID | None = None
        self.bar = self.progress.add_task("pictures", total=total)
        # Where both streams are one terminal, answers go above the bar instead of through it.
        above = not self.progress.disable and sys.stdout.isatty()
        self.answers = self.errors if above else Console(highlight=False)
        self.width = min(self.answers.width, _WIDEST)
        longest = max((cell_len(label) for label in labels), default=_WIDEST)
        self.label_width = max(8, min(longest, self.width - _BAR - 10))

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def show(self, result: Any) -> None:
        """An answer, or why there is none."""
        if self.as_json:
            self._write(json_line(result.to_dict()))
        elif isinstance(result, Failure):
            self.say(f"Error: {result.name}: {result.error}", "red")
        else:
            self.answers.print(Text("\n").join(_LINES[type(result)](self, result)), soft_wrap=True)
            sys.stdout.flush()
        self.progress.advance(self.bar)

    def say(self, sentence: str, style: str = "") -> None:
        """A remark on stderr."""
        self.errors.print(Text(plain(sentence), style), soft_wrap=True)

    def windows(self, done: int, total: int) -> None:
        """How many windows of the present picture were seen."""
        if self.part is None:
            self.part = self.progress.add_task("windows")
        self.progress.update(self.part, completed=done, total=total)
        if done == total:
            self.progress.remove_task(self.part)
            self.part = None

    def heading(self, name: str, size: tuple[int, int]) -> Text:
        """A picture's name and its height and width."""
        return Text.assemble((plain(name), "bold"), (f"  {size[0]} × {size[1]}", "bright_black"))

    def bars(self, result: Classification) -> Iterator[Text]:
        """The classes of a picture, each with a bar as long as its score."""
        yield self.heading(result.name, result.size)
        for place, (label, score) in enumerate(zip(result.labels, result.scores.tolist(), strict=True)):
            name = Text(plain(label), "bold" if place == 0 else "")
            name.truncate(self.label_width, overflow="ellipsis", pad=True)
            yield Text.assemble("  ", name, " ", _bar(score), f" {score:6.1%}")

    def features(self, result: Features) -> Iterator[Text]:
        """The shapes of a picture's features in one line."""
        rows, columns = result.grid
        count, width = result.tokens.shape
        yield self.heading(result.name, result.size)
        yield Text(
            f"  {rows} × {columns} patches, tokens {count} × {width}, "
            f"pooled {len(result.pooled)} with norm {result.pooled.norm().item():.4g}"
        )

    def objects(self, result: Detections) -> Iterator[Text]:
        """The objects of a picture, best first, each with its box in pixels from the left and the top."""
        yield self.heading(result.name, result.size)
        if not len(result):
            yield Text("  no object above the threshold", "bright_black")
            return
        width = min(self.label_width, max(8, *(Text(plain(label)).cell_len for label in result.labels)))
        yield Text(f"  {'':<{width}}  {'score':>6}  {'left':>5}  {'top':>5}  {'right':>5}  {'bottom':>6}", "bright_black")
        for label, score, box in zip(result.labels, result.scores.tolist(), result.boxes.tolist(), strict=True):
            name = Text(plain(label), "bold")
            name.truncate(width, overflow="ellipsis", pad=True)
            left, top, right, bottom = (f"{edge:.0f}" for edge in box)
            yield Text.assemble("  ", name, f"  {score:6.1%}  {left:>5}  {top:>5}  {right:>5}  {bottom:>6}")

    def classes(self, result: Segmentation) -> Iterator[Text]:
        """The classes of a picture, the largest first, each with the part of the picture that it covers."""
        yield self.heading(result.name, result.size)
        yield from self._areas(
            [(label, None, area) for label, area in zip(result.classes, result.areas, strict=True)], result
        )

    def instances(self, result: Instances) -> Iterator[Text]:
        """The objects of a picture, best first, each with the part of the picture that it covers."""
        yield self.heading(result.name, result.size)
        rows = zip(result.labels, result.scores.tolist(), result.areas.tolist(), strict=True)
        yield from self._areas(list(rows), result)

    def segments(self, result: Panoptic) -> Iterator[Text]:
        """The segments of a picture, the largest first, each with the part of the picture that it covers."""
        yield self.heading(result.name, result.size)
        largest = sorted(result.segments, key=lambda one: -one.area)
        yield from self._areas([(one.label, one.score, one.area) for one in largest], result)

    def _areas(
        self, rows: list[tuple[str, float | None, int]], result: Segmentation | Instances | Panoptic
    ) -> Iterator[Text]:
        """A table of labels, scores where there are any, and areas."""
        if not rows:
            yield Text("  nothing above the threshold", "bright_black")
            return
        width = min(self.label_width, max(8, *(Text(plain(label)).cell_len for label, _, _ in rows)))
        scored = rows[0][1] is not None
        yield Text(f"  {'':<{width}}{'   score' if scored else ''}  {'area':>6}  {'pixels':>10}", "bright_black")
        whole = result.size[0] * result.size[1]
        for label, score, area in rows:
            name = Text(plain(label), "bold")
            name.truncate(width, overflow="ellipsis", pad=True)
            sure = "" if score is None else f"  {score:6.1%}"
            yield Text.assemble("  ", name, f"{sure}  {area / whole:6.1%}  {area:>10}")

    def _write(self, line: str) -> None:
        if self.answers is self.errors:
            self.errors.out(line, highlight=False)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _bar(score: float) -> Text:
    """A heavy line as long as a score of 0 to 1, to half a sign, on a light one: readable without colour too."""
    halves = round(2 * _BAR * min(max(score, 0.0), 1.0))
    heavy = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((heavy, "blue"), ("─" * (_BAR - len(heavy)), "bright_black"))


_LINES: dict[type, Callable[[Screen, Any], Iterator[Text]]] = {
    Classification: Screen.bars,
    Features: Screen.features,
    Detections: Screen.objects,
    Segmentation: Screen.classes,
    Instances: Screen.instances,
    Panoptic: Screen.segments,
}


def picture_bar(console: Console) -> Progress:
    """A bar that counts pictures, where there is a terminal to draw it on."""
    return Progress(
        TextColumn("{task.percentage:>3.0f}%"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )
