"""What every segmenter of the house must do, whatever its family, be it of maps or of masks by query.

A family's tests name small networks of every kind it has, and inherit the rest:

    class TestUPerNet(SegmentationHarness):
        kinds = {"small": UPerNetConfig(image_size=(64, 64), num_classes=5, backbone=…, width=16), …}
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
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.models.catalogue import FAMILIES
from vitral.models.network import NetworkConfig
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.segmentation.kinds import MapNetwork, MaskNetwork

__all__ = ["SegmentationHarness"]


class SegmentationHarness:
    """Attributes of a family's tests.

    kinds: small configurations by name; each must have five classes.
    sizes: of pictures, to be tried.
    cells: pixels from one cell of the answer to the next.
    maps: how many attention maps a network gives for a picture of the first size, by kind; none where it is not named.
    auxiliary: how many auxiliary answers there are in training, by kind; one where it is not named.
    idle: expressions for parameters that no gradient reaches, for a reason that the family's tests give.
    bf16: how far half precision may be off, relative to the norm of all logits.
    tolerance: how near the answer to a picture alone is to that in a batch.
    resizes: whether the network of another size of pictures answers pictures of that size as this one does.
    """

    kinds: ClassVar[Mapping[str, Any]] = {}
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((64, 64), (61, 83), (75, 130))
    cells: ClassVar[int] = 4
    maps: ClassVar[Mapping[str, int]] = {}
    auxiliary: ClassVar[Mapping[str, int]] = {}
    idle: ClassVar[tuple[str, ...]] = ()
    bf16: ClassVar[float] = 5e-2
    tolerance: ClassVar[float] = 1e-4
    resizes: ClassVar[bool] = True

    @classmethod
    def small(cls, kind: str, **overrides: Any) -> Any:
        """A network of a kind with weights large enough for every part to matter, in evaluation mode."""
        config = replace(cls.kinds[kind], **overrides)
        build = next(family.build for family in FAMILIES.values() if type(config) is family.config)
        return stirred(build(config))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", list(self.kinds))

    def pictures(self, model: Any, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, model.config.channels, *size, generator=generator)

    def told(self, out: Any) -> Iterator[Tensor]:
        """Every tensor of an answer that a loss may read."""
        if isinstance(out, MapOutput):
            yield from (out.logits, *out.auxiliary)
            return
        assert isinstance(out, MaskOutput)
        yield from (out.logits, out.masks)
        yield from () if out.boxes is None else (out.boxes,)
        for one in out.auxiliary:
            yield from one

    def test_it_is_a_network(self, kind: str) -> None:
        model = self.small(kind)
        assert isinstance(model, MapNetwork | MaskNetwork)
        assert isinstance(model.config, NetworkConfig)
        # A configuration may bring the parts within to its own size of pictures, and does so once.
        assert model.config == self.kinds[kind] == replace(model.config)
        assert model.tasks[0] == "image-segmentation"
        assert model.depth == model.config.depth == len(list(model.blocks))
        depths = model.depths()
        assert set(depths) == {name for name, _ in model.named_parameters()}
        assert set(depths.values()) <= set(range(model.depth + 2))
        assert max(depths.values()) == model.depth + 1
        prepared = model.usual_preprocessing()
        assert prepared is None or prepared.input_size == model.config.image_size

    @torch.no_grad()
    def test_pictures_of_any_size(self, kind: str) -> None:
        model = self.small(kind)
        for size in self.sizes:
            out = model(self.pictures(model, 2, size))
            answer = out.logits if isinstance(out, MapOutput) else out.masks
            # One fewer or more where a rest is left out or filled up; of pixels none.
            assert all(abs(one - side / self.cells) < 1 for one, side in zip(answer.shape[2:], size, strict=True))
            assert out.logits.shape[0] == answer.shape[0] == 2
            assert out.auxiliary == ()
            for one in self.told(out):
                assert torch.isfinite(one).all()
            if isinstance(out, MapOutput):
                assert out.logits.shape[1] == 5
            else:
                assert out.logits.shape[2] == 6
                assert out.logits.shape[1] == out.masks.shape[1] == out.queries.shape[1]

    @torch.no_grad()
    def test_a_picture_alone_is_answered_as_in_a_batch(self, kind: str) -> None:
        model = self.small(kind)
        for size in self.sizes[:2]:
            pixels = self.pictures(model, 3, size)
            together = list(self.told(model(pixels)))
            for place in range(3):
                for alone, one in zip(self.told(model(pixels[place : place + 1])), together, strict=True):
                    assert_close(alone, one[place : place + 1], self.tolerance)
            assert (together[0][0] - together[0][1]).abs().max() > 1e-4  # pictures matter

    @torch.no_grad()
    def test_what_was_asked_is_not_changed(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, self.sizes[1])
        before = pixels.clone()
        first, second = model(pixels), model(pixels)
        assert torch.equal(pixels, before)
        for one, other in zip(self.told(first), self.told(second), strict=True):
            assert torch.equal(one, other)

    def test_gradients_reach_every_parameter_and_the_picture(self, kind: str) -> None:
        model = self.small(kind).train()
        pixels = self.pictures(model, 3, self.sizes[-1]).requires_grad_()
        torch.manual_seed(0)
        told = list(self.told(model(pixels)))
        generator = torch.Generator().manual_seed(2)
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

    def test_auxiliary_answers_are_given_in_training_only(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[0])
        assert model(pixels).auxiliary == ()
        out = model.train()(pixels)
        assert len(out.auxiliary) == self.auxiliary.get(kind, 1)
        for one in out.auxiliary:
            if isinstance(out, MapOutput):
                assert one.shape[:2] == out.logits.shape[:2]
            else:
                assert one.logits.shape == out.logits.shape
                assert one.masks.shape == out.masks.shape
                assert not torch.equal(one.logits, out.logits)

    @torch.no_grad()
    def test_half_precision_stays_close(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[0])
        whole = model(pixels)
        half = model.to(torch.bfloat16)(pixels.to(torch.bfloat16))
        assert half.logits.dtype == torch.bfloat16
        for one, other in zip(self.told(half), self.told(whole), strict=True):
            assert ((one.float() - other).norm() / other.norm()).item() < self.bf16

    def test_a_classifier_can_be_replaced(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[0])
        with torch.no_grad():
            before = model(pixels)
        model.reset_head(7)
        assert model.config.num_classes == 7
        assert model.record.labels == ()
        assert not model.training
        axis = 1 if isinstance(before, MapOutput) else 2
        with torch.no_grad():
            after = model(pixels)
        assert after.logits.shape[axis] == before.logits.shape[axis] + 2
        assert [n for n in range(before.logits.ndim) if after.logits.shape[n] != before.logits.shape[n]] == [axis]
        with torch.device("meta"):
            fresh = type(model)(model.config)
        assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in fresh.state_dict().items()}
        assert all(torch.isfinite(one).all() for one in self.told(model.train()(pixels)))
        model.double().reset_head(3)
        assert {one.dtype for one in model.parameters()} == {torch.float64}
        with pytest.raises(UsageError, match="one class or more; 0 came"):
            model.reset_head(0)

    @torch.no_grad()
    def test_it_comes_back_from_a_file(self, kind: str, tmp_path: Path) -> None:
        model = self.small(kind)
        again: Any = load_model(save_model(model, tmp_path / "model"))
        assert again.config == model.config
        pixels = self.pictures(model, 1, self.sizes[1])
        for one, other in zip(self.told(again(pixels)), self.told(model(pixels)), strict=True):
            assert torch.equal(one, other)

    @torch.no_grad()
    def test_a_network_of_another_size_answers_the_same(self, kind: str) -> None:
        if not self.resizes:
            pytest.skip("This family knows its pictures' size.")
        model = self.small(kind)
        other = model.resized(self.sizes[-1])
        assert other.config.image_size == self.sizes[-1]
        pixels = self.pictures(model, 1, self.sizes[-1])
        for one, told in zip(self.told(other(pixels)), self.told(model(pixels)), strict=True):
            assert_close(one, told, 1e-5)

    @torch.no_grad()
    def test_attention_can_be_looked_at(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, self.sizes[0])
        if not self.maps.get(kind):
            with pytest.raises(UsageError), capture(model):
                model(pixels)
            return
        plain = list(self.told(model(pixels)))
        with capture(model) as maps:
            looked = list(self.told(model(pixels)))
        assert len(maps) == self.maps[kind]
        for one in maps:  # what windows pay to tokens that only fill them up is left out
            assert one.min() >= 0
            assert 0 < one.sum(-1).max() <= 1 + 1e-4
        for one, other in zip(looked, plain, strict=True):
            assert_close(one, other, 1e-4)

    @torch.no_grad()
    def test_a_pyramid_holds_what_passes(self, kind: str) -> None:
        model = self.small(kind)
        if not model.levels:
            with pytest.raises(UsageError, match="makes no maps of a picture"):
                model.pyramid(self.pictures(model, 1, self.sizes[0]))
            return
        for size in self.sizes:
            pixels = self.pictures(model, 2, size)
            found = model.pyramid(pixels)
            assert [(one.shape[1], stride) for one, stride in zip(found.maps, found.strides, strict=True)] == [
                (level.channels, level.stride) for level in model.levels
            ]
            for one, stride in zip(found.maps, found.strides, strict=True):
                assert torch.isfinite(one).all()
                assert all(abs(cells - side / stride) <= 1 for cells, side in zip(one.shape[2:], size, strict=True))
            chosen = model.pyramid(pixels, [-1])
            assert chosen.strides == found.strides[-1:]
            assert torch.equal(chosen.maps[0], found.maps[-1])
