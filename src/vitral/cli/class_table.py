"""Tables of classes on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from vitral.cli.show import plain
from vitral.training.page_parts import MANY

__all__ = ["class_name", "class_rows"]

_EACH = 5  # best and worst classes, of many


def class_name(name: str, longest: int = 40) -> Text:
    """A class, whose name may be long, or hold what rich would take for markup."""
    shown = Text(plain(name))
    shown.truncate(longest, overflow="ellipsis")
    return shown


def class_rows(
    table: Table,
    classes: Sequence[str],
    there: Sequence[int],
    value: Callable[[int], float],
    row: Callable[[int], Iterable[str]],
) -> Table:
    """Fill a table with every class in the order of the set, or of many with the worst and the best.

    Args:
        table: see `columns`.
        classes: the names of all classes.
        there: the places of those that are shown.
        value: by what many are ranked.
        row: what stands beside the name.
    """
    chosen: list[int | None] = [*there]
    if len(there) > MANY:
        order = sorted(there, key=value)
        chosen = [*order[:_EACH], None, *order[-_EACH:]]
    for place in chosen:
        if place is None:
            table.add_row(f"… {len(there) - 2 * _EACH:,} more …", style="bright_black")
        else:
            table.add_row(class_name(classes[place]), *row(place))
    return table
