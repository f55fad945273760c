"""Positions of a map that fills a batch up, beside transformers' and the formula."""

from __future__ import annotations

import math

import torch
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

from vitral.layers.sine import sine_positions

LIKE = torch.zeros(1)


def theirs(seen: torch.Tensor, width: int) -> torch.Tensor:
    shape = torch.Size((len(seen), width, *seen.shape[1:]))
    peer = DetrSinePositionEmbedding(width // 2, normalize=True)
    return peer(shape=shape, device="cpu", dtype=torch.float32, mask=seen).flatten(2).transpose(1, 2)


def test_positions_are_transformers() -> None:
    seen = torch.zeros(3, 5, 7, dtype=torch.bool)
    for place, (rows, columns) in enumerate([(5, 4), (2, 7), (1, 1)]):
        seen[place, :rows, :columns] = True
    found = sine_positions((5, 7), 32, seen, like=LIKE)
    inside = seen.flatten(1)
    torch.testing.assert_close(found[inside], theirs(seen, 32)[inside], atol=1e-6, rtol=0)


def test_a_whole_map_is_as_one_of_which_all_is_seen() -> None:
    seen = torch.ones(2, 4, 6, dtype=torch.bool)
    whole = sine_positions((4, 6), 16, like=LIKE)
    assert whole.shape == (1, 24, 16)
    assert torch.equal(whole.expand(2, -1, -1), sine_positions((4, 6), 16, seen, like=LIKE))
    torch.testing.assert_close(whole, theirs(seen[:1], 16), atol=1e-6, rtol=0)


def test_what_fills_up_does_not_move_a_cell() -> None:
    seen = torch.zeros(1, 9, 8, dtype=torch.bool)
    seen[:, :4, :6] = True
    filled = sine_positions((9, 8), 16, seen, like=LIKE).unflatten(1, (9, 8))[:, :4, :6]
    assert torch.equal(filled.flatten(1, 2), sine_positions((4, 6), 16, like=LIKE))


def test_channels_by_hand() -> None:
    """Channel 3 of 8 is the cosine of the row at the second of two wavelengths; channel 4 the sine of the column."""
    found = sine_positions((2, 5), 8, like=LIKE)[0].unflatten(0, (2, 5))
    row, column = 2 * math.pi * 1 / 2, 2 * math.pi * 4 / 5
    assert math.isclose(found[0, 3, 3].item(), math.cos(row / 10_000**0.5), abs_tol=1e-5)
    assert math.isclose(found[0, 3, 4].item(), math.sin(column), abs_tol=1e-5)


def test_precision_and_device_are_those_asked_for() -> None:
    with torch.inference_mode():
        sine_positions((3, 3), 8, like=LIKE)  # what is kept from here can be used anywhere
    half = sine_positions((3, 3), 8, like=torch.zeros(1, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    with torch.device("meta"):
        assert sine_positions((3, 11), 8, like=torch.zeros(1)).is_meta
    (torch.ones(9, 8, requires_grad=True) * sine_positions((3, 3), 8, like=LIKE)).sum().backward()
