"""Raw attention: which rows of which map are shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.explanation.conftest import question, tiny
from tests.parity.peers import pictures
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.maps import attention
from vitral.explanation.question import reading_weights


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("vit_ti16", {}, [0]),
        ("vit_ti16", {"registers": 3}, [0]),
        ("vit_ti16", {"pool": "mean"}, range(1, 25)),
        ("deit_ti16_distilled", {}, [0, 1]),
        ("beit_b16", {}, range(1, 25)),
    ],
)
def test_the_tokens_that_are_read_ask(name: str, options: dict[str, Any], rows: Any) -> None:
    model, pixels = tiny(name, **options), pictures(32, 48, 2)
    with capture(model) as maps:
        model(pixels)
    prefix = model.config.prefix
    found = attention(question(model, pixels), layer=1).values
    assert torch.allclose(found.flatten(1), maps[1][:, :, list(rows)].mean((1, 2))[:, prefix:], atol=1e-6)
    one = attention(question(model, pixels), head=1, query=prefix + 7).values
    assert torch.allclose(one.flatten(1), maps[-1][:, 1, prefix + 7, prefix:], atol=1e-6)
    brightest = attention(question(model, pixels), head="max", query=0).values
    assert torch.allclose(brightest.flatten(1), maps[-1][:, :, 0, prefix:].amax(1), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"class_token": False, "prefix_positions": 0}, {"registers": 2, "pool_prefix": True}, {}]
)
def test_a_pool_asks_by_itself(options: dict[str, Any]) -> None:
    model, pixels = tiny(pool="attention", **options), pictures(32, 48, 2)
    with capture(model) as maps:
        model(pixels)
    patches = maps["pool"].mean(1)[:, 0, -24:]
    assert torch.allclose(attention(question(model, pixels)).values.flatten(1), patches, atol=1e-6)
    assert reading_weights(model, 24) is None


def test_class_and_mean_are_read_half_and_half() -> None:
    weights = reading_weights(tiny(pool="class_and_mean"), 25)
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.5, *[0.5 / 24] * 24])


def test_a_token_may_be_named_or_placed() -> None:
    model, pixels = tiny(registers=2), pictures(32, 48)
    asked = question(model, pixels)
    for query, number in (("class", 0), ("register 2", 2), ((0, 0), 3), ((2, 5), 3 + 17)):
        assert torch.equal(attention(asked, query=query).values, attention(asked, query=number).values)
    with pytest.raises(UnknownNameError, match="Did you mean 'register 1'"):
        attention(asked, query="registre 1")
    with pytest.raises(UsageError, match=r"\(row, column\) in the grid of 4 × 6 patches; \(4, 0\) came"):
        attention(asked, query=(4, 0))


def test_what_is_not_there_is_named() -> None:
    asked = question(tiny(), pictures(32, 48))
    with pytest.raises(UsageError, match="no layer 99: the model has 3, numbered 0 to 2"):
        attention(asked, layer=99)
    with pytest.raises(UsageError, match=r"no head 2: blocks\.2\.attention has 2, numbered 0 to 1"):
        attention(asked, head=2)
    with pytest.raises(UsageError, match="no asking token 25"):
        attention(asked, query=25)
    with pytest.raises(UnknownNameError, match=r"blocks\.1\.attention"):
        attention(asked, layer="blocks.1.attn")
