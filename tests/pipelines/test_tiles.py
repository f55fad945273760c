"""Windows over large pictures: a network of single pixels says the same of a part as of the whole."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.record import Record
from vitral.pipelines.predictor import Predictor
from vitral.pipelines.tiles import segment_in_windows


class Pointwise(nn.Module):
    """A class for every pixel from its colour alone, or for every cell from the mean colour."""

    tasks = ("image-segmentation",)

    def __init__(self, cell: int = 1, shift: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Conv2d(3, 6, 1)
        self.cell, self.shift, self.sizes = cell, shift, []
        self.config = SimpleNamespace(num_classes=6, image_size=(32, 32))
        self.record = Record(preprocessing=Preprocessing(size=(32, 32)))

    def forward(self, pixels: Tensor) -> MapOutput:
        self.sizes.append(tuple(pixels.shape))
        logits = self.weights(F.avg_pool2d(pixels, self.cell))
        # As a network that sees less at a window's edges: logits fall off across it.
        return MapOutput(logits + self.shift * torch.linspace(0, 1, logits.shape[-1]) * torch.arange(6.0)[:, None, None])


class Masks(nn.Module):
    """Masks that are pixels of a colour."""

    tasks = ("image-segmentation",)

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Conv2d(3, 4, 1)
        self.config = SimpleNamespace(num_classes=6, image_size=(32, 32))
        self.record = Record(preprocessing=Preprocessing(size=(32, 32)))

    def forward(self, pixels: Tensor) -> MaskOutput:
        count = len(pixels)
        logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).expand(count, 4, 7)
        return MaskOutput(logits, self.weights(pixels), torch.zeros(count, 4, 2))


PICTURE = np.random.default_rng(0).integers(0, 256, (101, 76, 3), dtype=np.uint8)


def whole(network: Any, picture: Any = PICTURE, **options: Any) -> Any:
    return Predictor(network, preprocessing=Preprocessing(resize="none"), **options)(picture)


@pytest.mark.parametrize(("window", "overlap"), [(32, 0.25), ((40, 28), 0.5), (24, 0.0), (200, 0.25), ((16, 76), 0.75)])
def test_windows_say_what_the_whole_says(window: Any, overlap: float) -> None:
    network = Pointwise()
    expected = whole(network, scores=True)
    ours = segment_in_windows(Predictor(network), PICTURE, window=window, overlap=overlap, scores=True)
    np.testing.assert_array_equal(ours.class_map, expected.class_map)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-5)
    sides = window if isinstance(window, tuple) else (window, window)
    assert {size[2:] for size in network.sizes[1:]} == {(min(sides[0], 101), min(sides[1], 76))}


def test_cells_that_are_larger_than_pixels_are_interpolated_across_the_seams() -> None:
    picture = PICTURE[:96]  # a whole number of cells
    network = Pointwise(cell=4)
    expected = whole(network, picture)
    for window, overlap in ((32, 0.25), ((16, 40), 0.4), (48, 0.0)):
        ours = segment_in_windows(Predictor(network), picture, window=window, overlap=overlap, batch_size=3)
        np.testing.assert_array_equal(ours.class_map, expected.class_map)
    assert max(size[0] for size in network.sizes) == 3


def test_pictures_are_resized_where_asked() -> None:
    network = Pointwise()
    ours = segment_in_windows(Predictor(network), PICTURE, window=16, shortest=40)
    resized = Preprocessing(resize="shortest_edge", size=(40, 40))
    expected = Predictor(network, preprocessing=resized)(PICTURE)
    np.testing.assert_array_equal(ours.class_map, expected.class_map)
    assert ours.size == (101, 76)


def test_seams_are_blended_as_weights_say() -> None:
    # One row of windows over flat grey: the blend has a closed form, a sum of shifted ramps times triangular weights.
    network = Pointwise(shift=3.0)
    nn.init.zeros_(network.weights.weight)
    nn.init.zeros_(network.weights.bias)
    grey = np.full((8, 20, 3), 128, dtype=np.uint8)
    ours = segment_in_windows(Predictor(network), grey, window=(8, 8), overlap=0.5, scores=True)
    total, weight = np.zeros(20), np.zeros(20)
    for start in (0, 4, 8, 12):
        triangle = np.minimum(np.arange(8) + 0.5, 7.5 - np.arange(8)).clip(max=4)
        total[start : start + 8] += triangle * np.linspace(0, 1, 8)
        weight[start : start + 8] += triangle
    logits = torch.from_numpy(3 * total / weight)[None] * torch.arange(6.0)[:, None]
    np.testing.assert_allclose(ours.scores, np.tile(logits.softmax(0).amax(0).numpy(), (8, 1)), atol=1e-5)


def test_masks_are_blended_as_classes() -> None:
    network = Masks()
    expected = whole(network, subtask="semantic")
    ours = segment_in_windows(Predictor(network), PICTURE, window=32, subtask="semantic")
    np.testing.assert_array_equal(ours.class_map, expected.class_map)
    for options in ({}, {"subtask": "panoptic"}, {"subtask": "instance"}):
        with pytest.raises(UsageError, match="windows would cut"):
            segment_in_windows(Predictor(network), PICTURE, window=32, **options)


def test_progress_counts_windows() -> None:
    told: list[tuple[int, int]] = []
    segment_in_windows(Predictor(Pointwise()), PICTURE, window=32, progress=lambda *counts: told.append(counts))
    assert told[0] == (1, 12)
    assert told[-1] == (12, 12)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    ("name", "cell", "more"),
    [
        (
            "segformer_b0",
            32,  # the stride of its last stage (Xie et al. 2021, table 6)
            {"backbone.widths": (8, 8, 8, 8), "backbone.depths": (1, 1, 1, 1), "backbone.heads": (1, 1, 1, 1)},
        ),
        ("segmenter_vit_ti16_linear", 16, {"backbone.depth": 1}),  # its patch
    ],
)
def test_windows_are_no_smaller_than_a_cell(name: str, cell: int, more: dict[str, Any]) -> None:
    predictor = Predictor(create_model(name, num_classes=2, image_size=(64, 96), **more).eval())
    for window in (1, cell - 1, (cell, cell - 1)):
        with pytest.raises(UsageError, match=f"smaller than a cell of this network, {cell} × {cell},.* is 64 × 96"):
            segment_in_windows(predictor, PICTURE, window=window)
    assert segment_in_windows(predictor, PICTURE, window=cell, overlap=0.0).size == (101, 76)
    assert segment_in_windows(predictor, PICTURE[:5, :7], window=cell).size == (5, 7)  # a small picture is seen whole


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_had_is_said() -> None:
    predictor = Predictor(Pointwise())
    for window in (0, -3, "32", (32,), 3.5, True):
        with pytest.raises(UsageError, match="window must be"):
            segment_in_windows(predictor, PICTURE, window=window)  # type: ignore[arg-type]
    for overlap in (-0.1, 0.95, float("nan")):
        with pytest.raises(UsageError, match="overlap"):
            segment_in_windows(predictor, PICTURE, overlap=overlap)
    with pytest.raises(UsageError, match="batch_size"):
        segment_in_windows(predictor, PICTURE, batch_size=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'subtask'"):
        segment_in_windows(predictor, PICTURE, subtsk="semantic")
    with pytest.raises(PictureError):
        segment_in_windows(predictor, b"no picture")
    with pytest.raises(UnknownNameError, match="class 'skye'"):
        segment_in_windows(predictor, PICTURE, fused=("skye",))
    broken = Pointwise()
    nn.init.constant_(broken.weights.bias, float("nan"))
    with pytest.raises(UsageError, match="not finite"):
        segment_in_windows(Predictor(broken), PICTURE)


def test_a_photograph_is_read_whole(tmp_path: Any) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(np.zeros((400, 600, 3), dtype=np.uint8)).save(path)
    predictor = Predictor(Pointwise())
    assert predictor(path).picture.reduced
    assert not segment_in_windows(predictor, path, window=256).picture.reduced


MEMORY = """
import sys
import numpy as np, resource, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.pipelines.test_tiles import Pointwise
from vitral.models.output import MapOutput
from vitral.pipelines.predictor import Predictor
from vitral.pipelines.tiles import segment_in_windows

class Many(Pointwise):
    def forward(self, pixels):
        few = torch.nn.functional.avg_pool2d(pixels, {cell})
        return MapOutput(few[:, :1] * torch.linspace(-1, 1, 150)[:, None, None])

rows = np.linspace(0, 255, {height}, dtype=np.uint8)[:, None, None]
picture = np.broadcast_to(rows, ({height}, {width}, 3)).copy()
predictor = Predictor(Many())
segment_in_windows(predictor, picture[:64, :64], window=32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if {windows}:
    answer = segment_in_windows(predictor, picture, window={windows}, overlap=0.25)
else:
    answer = predictor(picture)
assert set(answer.indices) == {{0, 149}}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("windows", "cell"), [(256, 4), (0, 1)])
def test_memory_stays_bounded(windows: int, cell: int, root: Any) -> None:
    # 150 classes of 2.4 megapixels are 1.4 GB of numbers; the picture, its input and its answer take 0.05.
    script = MEMORY.format(root=str(root), height=1200, width=2000, windows=windows, cell=cell)
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(told.stdout) < 400
