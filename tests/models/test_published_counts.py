"""The table of docs/guides/backbones.md: what it counts is so, and is what was published."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from vitral.models.catalogue import CATALOGUE

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/backbones.md"
ROW = re.compile(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) M \|", re.M)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 40


@pytest.mark.parametrize(("name", "told", "published"), ROWS)
def test_parameters_are_the_published_number(name: str, told: str, published: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in CATALOGUE[name].build(CATALOGUE[name].config).parameters())
    assert count == int(told.replace(",", ""))
    # As near as the published digits tell; some papers cut where others round.
    assert abs(Decimal(count) / 10**6 - Decimal(published)) < Decimal(1).scaleb(Decimal(published).as_tuple().exponent)
