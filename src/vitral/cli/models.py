"""`vitral models`: the catalogue as a table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from vitral.cli.show import json_line
from vitral.errors import UnknownNameError
from vitral.models.catalogue import CATALOGUE, list_models

__all__ = ["list_networks"]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One network: its name, how many parameters it has, and its sizes.

    `patch` is what one token stands for; `heads` are those of its attentions, stage by stage where they differ, and none
    where it has no attention.
    """

    name: str
    parameters: int
    input: tuple[int, int]
    patch: tuple[int, int]
    width: int
    depth: int
    heads: int | tuple[int, ...] | None
    classes: int
    paper: str


def list_networks(pattern: str | None, *, as_json: bool) -> bool:
    """Print the networks whose names fit, as a table or as JSON lines; whether there are any."""
    names = list_models(pattern)
    if not names:
        Console(stderr=True, highlight=False).print(
            f"Error: {UnknownNameError('model', pattern, CATALOGUE)}", markup=False, soft_wrap=True
        )
        return False
    rows = [_row(name) for name in names]
    if as_json:
        for row in rows:
            sys.stdout.write(json_line(vars(row)) + "\n")
    else:
        Console(highlight=False).print(_table(rows))
    return True


def _row(name: str) -> _Row:
    entry = CATALOGUE[name]
    with torch.device("meta"):  # shapes without numbers: nothing is allocated
        parameters = sum(parameter.numel() for parameter in entry.build(entry.config).parameters())
    config: Any = entry.config
    return _Row(
        name=name,
        parameters=parameters,
        input=config.image_size,
        patch=config.patch_size,
        width=config.width,
        depth=config.depth,
        heads=getattr(config, "heads", None),
        classes=config.num_classes,
        paper=entry.paper,
    )


def _table(rows: list[_Row]) -> Table:
    """A table that fits into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, collapse_padding=True)
    table.add_column("name", style="bold", no_wrap=True)
    for title in ("M params", "input", "patch", "width", "depth", "heads"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("published", style="bright_black", no_wrap=True)
    for row in rows:
        sizes = (_side(row.input), _side(row.patch), str(row.width), str(row.depth), _heads(row.heads))
        table.add_row(row.name, _millions(row.parameters), *sizes, row.paper.replace(" et al.", ""))
    return table


def _heads(heads: int | tuple[int, ...] | None) -> str:
    """Heads of all blocks, or of the first and of the last stage."""
    if isinstance(heads, tuple):
        return f"{heads[0]}-{heads[-1]}"
    return "" if heads is None else str(heads)


def _millions(count: int) -> str:
    """A number of parameters in millions; of small networks, to ten thousand."""
    return f"{count / 1e6:.1f}" if count >= 10e6 else f"{count / 1e6:.2f}"


def _side(size: tuple[int, int]) -> str:
    """A square by its side, anything else by height and width."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"
