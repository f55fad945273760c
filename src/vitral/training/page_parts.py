"""What pages about classifiers, detectors and segmenters say in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vitral.base import page

__all__ = ["MANY", "counted", "left_out", "ranked"]

MANY = 20
"""From more classes than these the best and the worst are shown first."""

_EACH = 10  # of them


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things in words.

    Args:
        number: how many.
        noun: what one is called.
        plural: what several are called; by default with an "s".
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def left_out(skipped: Sequence[str]) -> str:
    """The pictures that could not be read, to be unfolded; nothing where there are none.

    Args:
        skipped: a sentence for each.
    """
    if not skipped:
        return ""
    return page.details(f"{counted(len(skipped), 'picture')} left out", *map(page.paragraph, skipped))


def ranked(
    order: Sequence[int], row: Callable[[int], tuple[str, float, str]], ends: tuple[str, str], beginning: str
) -> list[str]:
    """Bars of classes in an order; of many the first and the last, and all to be unfolded.

    Args:
        order: the places of the classes.
        row: the bar of a class: its name, its length from 0 to 1, and what is said beside it.
        ends: what is said above the first and above the last.
        beginning: what the first ones are, "the best" or "the worst".
    """

    def bars(places: Iterable[int]) -> str:
        return page.bars([row(place) for place in places])

    if len(order) <= MANY:
        return [bars(order)]
    return [
        page.paragraph(ends[0]),
        bars(order[:_EACH]),
        page.paragraph(ends[1]),
        bars(order[: -_EACH - 1 : -1]),
        page.details(f"All {len(order):,} classes, {beginning} first", bars(order)),
    ]
