"""The model in the box: it comes with the package, so that a photograph gets an answer on a machine without network.

It knows the ten classes of CIFAR-10 (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck) and nothing
else, from pictures of 32x32 pixels; its record says how it was trained and how well it does. Its weights are in half
precision and fit in 3 MiB.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BOXED", "folder_of"]

BOXED = "vitral/cifar10"
"""The name it goes by, in the place of a Hub id."""

_FOLDERS = {BOXED: "cifar10"}


def folder_of(source: object) -> Path | None:
    """Where a model of that name lies in the package; None for every other name, and where a folder of it lies at hand."""
    if not isinstance(source, str) or source not in _FOLDERS or Path(source).exists():
        return None
    return Path(__file__).with_name("boxed") / _FOLDERS[source]
