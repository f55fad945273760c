"""Every error Vitral raises on purpose, as one tree.

```
VitralError
├── UsageError (ValueError)               a request that cannot be met as asked
│   └── UnknownNameError                  a misspelt option, model, task or layout; carries the nearest names
├── PictureError (ValueError)             a picture that cannot be read; carries its name
│   └── FetchError                        … because its address could not, or must not, be fetched
├── CheckpointError (ValueError)          a checkpoint that cannot be understood
│   └── MismatchError                     … whose tensors do not fit the model; carries the whole table
├── HubError (OSError)                    the Hub cannot be reached, or has no such repository
├── TrainingError (RuntimeError)          training that cannot go on (a loss that is not a number, …)
└── MissingExtraError (ImportError)       an optional package is needed; names the extra that brings it
```

Each message says what came, what was expected and what to do. Each class also derives from the built-in exception a
caller would think of first, so `except ValueError` around a call keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "FetchError",
    "HubError",
    "MismatchError",
    "MissingExtraError",
    "PictureError",
    "TrainingError",
    "UnknownNameError",
    "UsageError",
    "VitralError",
]


class VitralError(Exception):
    """The root of the tree: catch this to catch everything Vitral raises on purpose."""


class UsageError(VitralError, ValueError):
    """A request that cannot be met as asked; the message says what would be."""


class UnknownNameError(UsageError):
    """A name that is not among the known ones.

    Args:
        kind: what the name should have named, as a noun ("model", "keyword of predict").
        name: what came.
        known: every name that would have been right.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        self.nearest = tuple(_nearest(str(name), self.known))
        if self.nearest:
            advice = f"Did you mean {' or '.join(repr(near) for near in self.nearest)}?"
        elif len(self.known) <= 12:
            advice = f"Known: {', '.join(sorted(self.known)) or 'none'}."
        else:
            advice = f"There are {len(self.known)} to choose from, for example {', '.join(sorted(self.known)[:5])}."
        super().__init__(f"Unknown {kind} {name!r}. {advice}")


class PictureError(VitralError, ValueError):
    """A picture that cannot be read.

    Args:
        name: the picture's path, address or a description of it ("<bytes>").
        reason: a sentence that says what is wrong and what to do.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)  # so that it comes whole out of another process


class FetchError(PictureError):
    """A picture whose address could not, or must not, be fetched."""


class CheckpointError(VitralError, ValueError):
    """A checkpoint that cannot be understood."""


class MismatchError(CheckpointError):
    """Tensors of a checkpoint that do not fit the model they should fill.

    Args:
        source: where the checkpoint came from.
        missing: names the model needs and the file lacks, each with the shape it needs.
        unexpected: names the file has and the model does not know, each with its shape.
        misshaped: name, shape in the file and shape the model needs.
        advice: a last sentence saying what to do.
    """

    def __init__(
        self,
        source: str,
        *,
        missing: Iterable[tuple[str, tuple[int, ...]]] = (),
        unexpected: Iterable[tuple[str, tuple[int, ...]]] = (),
        misshaped: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]] = (),
        advice: str = "",
    ) -> None:
        self.missing, self.unexpected, self.misshaped = tuple(missing), tuple(unexpected), tuple(misshaped)
        rows = [
            *(("missing", name, "-", shape) for name, shape in self.missing),
            *(("unexpected", name, shape, "-") for name, shape in self.unexpected),
            *(("misshaped", name, came, needed) for name, came, needed in self.misshaped),
        ]
        width = max((len(row[1]) for row in rows), default=4)
        lines = [f"  {'':<10}  {'tensor':<{width}}  {'in the file':<20}  in the model"]
        lines += [f"  {kind:<10}  {name:<{width}}  {came!s:<20}  {needed}" for kind, name, came, needed in rows]
        counts = f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.misshaped)} misshaped"
        head = f"The tensors of {source} do not fit the model ({counts}). Nothing was loaded."
        super().__init__("\n".join([head, *lines, *([advice] if advice else [])]))


class HubError(VitralError, OSError):
    """The Hugging Face Hub cannot be reached, refuses, or has no such repository."""


class TrainingError(VitralError, RuntimeError):
    """Training that cannot go on; the message names the step."""


class MissingExtraError(VitralError, ImportError):
    """An optional package is needed for what was asked.

    Args:
        package: the package that could not be imported.
        extra: the extra of Vitral that installs it.
        purpose: what it is needed for, as the end of "… is needed to".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed to {purpose}. Install it with: pip install 'vitral[{extra}]'")


def _nearest(name: str, known: tuple[str, ...]) -> list[str]:
    """Up to three known names that look like this one, whatever their case."""
    lowered = {one.lower(): one for one in known}
    return [lowered[near] for near in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
