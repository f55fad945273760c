"""`vitral models`: the catalogue with its sizes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from vitral.models.catalogue import list_models

Vitral = Callable[..., Result]


def test_the_numbers_are_those_of_the_papers(vitral: Vitral) -> None:
    """ViT-B/16 and DeiT have 86.6, 22.1 and 5.7 million parameters (DeiT, table 1 and timm's published figures)."""
    ran = vitral("models", "*16", "--json")
    rows = {row["name"]: row for row in map(json.loads, ran.stdout.splitlines())}
    assert rows["vit_b16"]["parameters"] == 86_567_656
    assert rows["deit_s16"]["parameters"] == 22_050_664
    assert rows["deit_ti16"]["parameters"] == 5_717_416
    assert rows["deit_ti16"]["patch"] == [16, 16]
    assert all(row["paper"] for row in rows.values())


def test_the_table_fits_80_columns(vitral: Vitral, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = vitral("models", "dinov2")
    assert ran.exit_code == 0
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "…" not in ran.stdout
    assert all(name in ran.stdout for name in list_models("dinov2"))


def test_compact_transformers_stand_in_the_same_table(vitral: Vitral, monkeypatch: pytest.MonkeyPatch) -> None:
    """CCT-7/3×1 has 3.760 million parameters and CCT-2/3×2 0.284 (README of SHI-Labs/Compact-Transformers)."""
    rows = {row["name"]: row for row in map(json.loads, vitral("models", "cct_*", "--json").stdout.splitlines())}
    assert rows["cct_7_3x1_32"]["parameters"] == 3_760_139
    assert rows["cct_7_3x1_32"]["patch"] == [2, 2]
    assert rows["cct_14_7x2_384"]["input"] == [384, 384]
    monkeypatch.setenv("COLUMNS", "80")
    table = vitral("models", "c[cv]t_*").stdout
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    [line] = [line for line in table.splitlines() if line.startswith("cct_2_3x2_32")]
    assert line.split() == ["cct_2_3x2_32", "0.28", "32", "4", "128", "2", "2", "Hassani", "2021"]


def test_an_unknown_name_gets_the_nearest(vitral: Vitral) -> None:
    ran = vitral("models", "vit_b61")
    assert ran.exit_code == 1
    assert "'vit_b16'" in ran.stderr
    assert ran.stdout == ""
