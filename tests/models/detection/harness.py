"""What every detector of the house must do, whatever its family.

A family's tests name small networks of every kind it has, and inherit the rest:

    class TestDETR(DetectorHarness):
        kinds = {"small": replace(VARIANTS["detr_r50"], backbone=…, width=32, num_classes=5), …}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor

from tests.models.harness import assert_close, stirred
from vitral.base.boxes import Objects
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.models.catalogue import FAMILIES
from vitral.models.detection.detector import Detector
from vitral.models.network import NetworkConfig

__all__ = ["DetectorHarness", "filled_up"]


def filled_up(pictures: list[Tensor], size: tuple[int, int], fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Pictures (c y x) of several sizes in one batch of one size, and the mask that is True on what was filled up."""
    pixels = torch.full((len(pictures), pictures[0].shape[0], *size), fill)
    mask = torch.ones(len(pictures), *size, dtype=torch.bool)
    for place, picture in enumerate(pictures):
        height, width = picture.shape[1:]
        pixels[place, :, :height, :width] = picture
        mask[place, :height, :width] = False
    return pixels, mask


class DetectorHarness:
    """Attributes of a family's tests.

    kinds: small configurations by name; each must have five classes.
    sizes: of pictures, to be tried.
    filled: a size that every stride of the network divides, to which smaller pictures are filled up.
    reach: how many pixels beyond a picture's edge the network looks, through windows that overlap; None where the answer to
        a masked batch is not to be independent of what fills it up.
    padded_tolerance: how near the answer to a filled-up picture is to that of the picture filled up by `reach` alone.
    idle: expressions for parameters that no gradient reaches, for a reason that the family's tests give.
    bf16: how far half precision may be off, relative to the norm of all logits.
    set_of_queries: whether the answer is a `SetOutput`, and not another family's own.
    """

    kinds: ClassVar[Mapping[str, Any]] = {}
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((64, 64), (61, 83), (75, 130))
    filled: ClassVar[tuple[int, int]] = (128, 192)
    reach: ClassVar[int | None] = 0
    padded_tolerance: ClassVar[float] = 1e-4
    idle: ClassVar[tuple[str, ...]] = ()
    bf16: ClassVar[float] = 5e-2
    set_of_queries: ClassVar[bool] = True

    @classmethod
    def small(cls, kind: str, **overrides: Any) -> Any:
        """A network of a kind with weights large enough for every part to matter, in evaluation mode."""
        config = replace(cls.kinds[kind], **overrides)
        build = next(family.build for family in FAMILIES.values() if type(config) is family.config)
        return stirred(build(config))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", list(self.kinds))

    def pictures(self, model: Detector, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, model.config.channels, *size, generator=generator)

    def targets(self, count: int) -> tuple[Objects, ...]:
        """Objects for so many pictures: two, none, one, two, none, …"""
        generator = torch.Generator().manual_seed(1)
        found = []
        for place in range(count):
            many = (2, 0, 1)[place % 3]
            centres, sizes = torch.rand(2, many, 2, generator=generator)
            boxes = torch.cat([0.3 + 0.4 * centres, 0.1 + 0.4 * sizes], dim=1)
            found.append(Objects(torch.randint(0, 5, (many,), generator=generator), boxes))
        return tuple(found)

    def told(self, out: Any) -> Iterator[Tensor]:
        """Every tensor of an answer that a loss may read; a family with an answer of its own overrides it."""
        yield out.logits
        yield out.boxes
        denoised = out.denoising.layers if out.denoising is not None else ()
        for one in (*out.auxiliary, *((out.proposals,) if out.proposals is not None else ()), *denoised):
            yield from one

    def test_it_is_a_network(self, kind: str) -> None:
        model = self.small(kind)
        assert isinstance(model, Detector)
        assert isinstance(model.config, NetworkConfig)
        assert model.config == self.kinds[kind]
        assert model.tasks[0] == "object-detection"
        assert model.depth == model.config.depth == len(list(model.blocks))
        depths = model.depths()
        assert set(depths) == {name for name, _ in model.named_parameters()}
        assert set(depths.values()) <= set(range(model.depth + 2))
        assert max(depths.values()) == model.depth + 1

    @torch.no_grad()
    def test_pictures_of_any_size(self, kind: str) -> None:
        model = self.small(kind)
        for size in self.sizes:
            out = model(self.pictures(model, 2, size))
            for one in self.told(out):
                assert torch.isfinite(one).all()
            if self.set_of_queries:
                assert out.logits.shape[2] == 5 + (out.scoring == "softmax")
                assert out.boxes.shape == (*out.logits.shape[:2], 4)
                assert out.queries.shape[:2] == out.logits.shape[:2]
                assert out.auxiliary == ()
                assert out.denoising is None
                assert out.boxes.min() >= 0
                assert out.boxes.max() <= 1

    @torch.no_grad()
    def test_a_picture_alone_is_answered_as_in_a_batch(self, kind: str) -> None:
        model = self.small(kind)
        for size in self.sizes[:2]:
            pixels = self.pictures(model, 3, size)
            together = model(pixels)
            for place in range(3):
                alone = model(pixels[place : place + 1])
                assert_close(alone.logits, together.logits[place : place + 1], 1e-4)
                assert_close(alone.boxes, together.boxes[place : place + 1], 1e-4)
            assert (together.logits[0] - together.logits[1]).abs().max() > 1e-4  # pictures matter

    @torch.no_grad()
    def test_a_mask_of_nothing_changes_nothing(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[1])
        without, masked = model(pixels), model(pixels, torch.zeros(2, *self.sizes[1], dtype=torch.bool))
        assert_close(masked.logits, without.logits, 1e-4)
        assert_close(masked.boxes, without.boxes, 1e-4)

    @torch.no_grad()
    def test_what_fills_a_batch_up_changes_nothing(self, kind: str) -> None:
        if self.reach is None:
            pytest.skip("This family looks at what fills a batch up, as its authors' does.")
        model, (high, wide) = self.small(kind), self.filled
        limits = high - self.reach, wide - self.reach
        sizes = [(limits[0], limits[1] // 2), (limits[0] // 2 + 1, limits[1] - 3), limits]
        pictures = [self.pictures(model, 1, size, seed)[0] for seed, size in enumerate(sizes)]
        # Zeros as far as the network looks beyond the edge, and noise behind.
        pixels, mask = filled_up(pictures, self.filled)
        for place, (height, width) in enumerate(sizes):
            pixels[place, :, height + self.reach :] = 7.0
            pixels[place, :, :, width + self.reach :] = -7.0
        together = model(pixels, mask)
        for place, picture in enumerate(pictures):
            alone = model(*filled_up([picture], self.filled)) if self.reach else model(picture[None])
            assert_close(together.logits[place], alone.logits[0], self.padded_tolerance)
            assert_close(together.boxes[place], alone.boxes[0], self.padded_tolerance)

    def test_gradients_reach_every_parameter_and_the_picture(self, kind: str) -> None:
        model = self.small(kind).train()
        pixels = self.pictures(model, 3, self.sizes[-1]).requires_grad_()
        torch.manual_seed(0)
        out = model(pixels, targets=self.targets(3))
        generator = torch.Generator().manual_seed(2)
        told = list(self.told(out))
        weights = [torch.randn(one.shape, generator=generator) for one in told]
        cast(Tensor, sum((weight * one).sum() for weight, one in zip(weights, told, strict=True))).backward()
        idle = re.compile("|".join(self.idle) or r"\Z.")
        still = {
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().max() > 0
        }
        assert {name for name in still if not idle.fullmatch(name)} == set()
        assert pixels.grad is not None
        assert (pixels.grad.abs().flatten(1).amax(1) > 0).all()

    def test_layers_before_the_last_are_told_in_training(self, kind: str) -> None:
        if not self.set_of_queries:
            pytest.skip("This family does not answer with queries.")
        model = self.small(kind)
        pixels = self.pictures(model, 1, self.sizes[0])
        assert model(pixels).auxiliary == ()
        out = model.train()(pixels)
        for one in out.auxiliary:
            assert one.logits.shape == out.logits.shape
            assert one.boxes.shape == out.boxes.shape
            assert not torch.equal(one.logits, out.logits)

    @torch.no_grad()
    def test_half_precision_stays_close(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[0])
        whole = model(pixels)
        half = model.to(torch.bfloat16)(pixels.to(torch.bfloat16))
        assert half.logits.dtype == torch.bfloat16
        assert ((half.logits.float() - whole.logits).norm() / whole.logits.norm()).item() < self.bf16

    def test_a_classifier_can_be_replaced(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, self.sizes[0])
        with torch.no_grad():
            before = model(pixels)
        model.reset_head(7)
        assert model.config.num_classes == 7
        assert model.record.labels == ()
        with torch.no_grad():
            out = model(pixels)
        assert out.logits.shape[-1] == before.logits.shape[-1] + 2
        with torch.device("meta"):
            fresh = type(model)(model.config)
        assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in fresh.state_dict().items()}
        in_training = model.train()(pixels, targets=self.targets(1))
        assert all(torch.isfinite(one).all() for one in self.told(in_training))

    @torch.no_grad()
    def test_it_comes_back_from_a_file(self, kind: str, tmp_path: Path) -> None:
        model = self.small(kind)
        again: Any = load_model(save_model(model, tmp_path / "model"))
        assert again.config == model.config
        pixels = self.pictures(model, 1, self.sizes[1])
        for one, other in zip(self.told(again(pixels)), self.told(model(pixels)), strict=True):
            assert torch.equal(one, other)
