"""Reading dense answers by hand; that all objects are torchvision's is in tests/parity/test_region.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitral.errors import UsageError
from vitral.models.detection.anchors import cell_anchors, grid_anchors
from vitral.models.output import DenseOutput, RegionOutput
from vitral.tasks.detection.dense import DenseOptions, read_dense, usual_options


def dense(**changes: Any) -> DenseOutput:
    """Two maps of 2 × 2 and one cell, of a picture of 16 × 32 pixels filled up to 32 × 32; two classes."""
    cells = [grid_anchors(cell_anchors([side], [1.0]), (n, n), (32, 32)) for side, n in ((8, 2), (16, 1))]
    logits = torch.full((1, 5, 2), -10.0)
    logits[0, 3, 1], logits[0, 1, 0], logits[0, 4, 0] = 3.0, 2.0, 1.0
    fields: dict[str, Any] = {
        "logits": logits,
        "offsets": torch.zeros(1, 5, 4),
        "anchors": torch.cat(cells),
        "counts": (4, 1),
        "sizes": torch.tensor([[16.0, 32.0]]),
        "coding": "corrections",
        "taught": "l1",
    }
    return DenseOutput(**{**fields, **changes})


def test_places_become_objects_within_the_picture() -> None:
    (found,) = read_dense(dense())
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    # The anchor at (16, 16) reaches from 12 to 20 and is cut at 16 below; that at the corner begins at 0.
    torch.testing.assert_close(found.boxes[0], torch.tensor([16 / 32, 14 / 16, 8 / 32, 4 / 16]))
    torch.testing.assert_close(found.boxes[2], torch.tensor([4 / 32, 4 / 16, 8 / 32, 8 / 16]))


def test_options() -> None:
    output = dense()
    assert read_dense(output, DenseOptions(threshold=0.85))[0].labels.tolist() == [1, 0]
    assert read_dense(output, DenseOptions(top_k=1))[0].labels.tolist() == [1]
    assert read_dense(output, DenseOptions(candidates=1))[0].scores.tolist() == pytest.approx([0.9526, 0.7311], abs=1e-4)
    wide = output.offsets.clone()
    wide[0, :, 2:] = 3.0  # every box becomes the whole picture
    assert len(read_dense(output._replace(offsets=wide))[0].labels) == 2
    assert len(read_dense(output._replace(offsets=wide), DenseOptions(overlap=1.0))[0].labels) == 3


def test_scores_fall_towards_the_edge() -> None:
    nearness = torch.full((1, 5), -1.0)
    (found,) = read_dense(dense(coding="edges", offsets=torch.ones(1, 5, 4), centerness=nearness))
    expected = (torch.tensor([3.0, 2.0, 1.0]).sigmoid() * torch.tensor(-1.0).sigmoid()).sqrt()
    torch.testing.assert_close(found.scores, expected)
    assert usual_options(dense(centerness=nearness)).threshold == 0.2


def test_a_region_may_be_several_things_and_rows_that_fill_up_are_none() -> None:
    logits = torch.tensor([[[2.0, 1.9, 0.0], [-9.0, -9.0, 9.0], [9.0, 0.0, 0.0]]])
    regions = torch.tensor([[[2.0, 2, 10, 10], [0, 0, 5, 5], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True, False]])
    sizes = torch.tensor([[16.0, 32.0]])
    output = RegionOutput(logits, torch.zeros(1, 3, 3, 4), regions, valid, sizes, (10.0, 5.0), dense())
    (found,) = read_dense(output)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, logits[0, 0].softmax(0)[:2])
    torch.testing.assert_close(found.boxes[0], torch.tensor([6 / 32, 6 / 16, 8 / 32, 8 / 16]))
    flat = regions.clone()
    flat[0, 0, 2] = 2.005
    assert len(read_dense(output._replace(regions=flat))[0].labels) == 0


@pytest.mark.parametrize(("field", "value"), [("threshold", 2.0), ("overlap", -0.1), ("top_k", 0), ("candidates", 0)])
def test_options_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        DenseOptions(**{field: value})


def test_a_first_look_without_numbers_is_not_taken_for_an_empty_picture() -> None:
    """Proposals whose scores are none are never looked at again, so that nothing of the second look tells of it."""
    none = torch.zeros(1, 0, 3), torch.zeros(1, 0, 3, 4), torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool)
    sizes = torch.tensor([[16.0, 32.0]])
    assert len(read_dense(RegionOutput(*none, sizes, (10.0, 5.0), dense()))[0].labels) == 0
    for field, shape in (("logits", (1, 5, 2)), ("offsets", (1, 5, 4))):
        proposing = dense(**{field: torch.full(shape, torch.nan)})
        with pytest.raises(UsageError, match="not finite"):
            read_dense(RegionOutput(*none, sizes, (10.0, 5.0), proposing))


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="not finite"):
        read_dense(dense(offsets=torch.full((1, 5, 4), torch.nan)))
    with pytest.raises(UsageError, match="not finite"):
        read_dense(dense(centerness=torch.full((1, 5), torch.nan)))
