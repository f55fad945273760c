"""What every network of the house must do, whatever its family.

A family's tests name small networks of every kind it has, and inherit the rest:

    class TestSwin(Harness):
        kinds = {"swin_ti_w7": {"depths": (1, 1), …}, …}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.models.catalogue import create_model
from vitral.models.network import Network, NetworkConfig

__all__ = ["Harness", "assert_close", "stirred"]


def stirred(model: Network, seed: int = 0) -> Network:
    """Every part of a network made to matter, the statistics of batch norms included; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # keeps the scale of what passes
                nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
            else:
                parameter.normal_(0.5, 0.3, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
    return model.eval()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """At most `tolerance` apart, in units of the largest number (but of one, where all are smaller)."""
    assert ours.shape == theirs.shape
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance * scale, rtol=0)


class Harness:
    """Attributes: `kinds`, small networks by catalogue name (or "name: remark") with overrides; `sizes`, to be tried."""

    kinds: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((64, 64), (61, 43), (75, 130))
    has_pyramid: ClassVar[bool] = True
    bf16: ClassVar[float] = 2e-2

    @classmethod
    def small(cls, kind: str, **overrides: Any) -> Network:
        """A network of a kind with weights large enough for every part to matter, for five classes."""
        options = {"num_classes": 5, **cls.kinds[kind], **overrides}
        return stirred(create_model(kind.partition(":")[0], **options))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", list(self.kinds))

    def pictures(self, model: Network, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, model.config.channels, *size, generator=generator)

    def test_it_is_a_network(self, kind: str) -> None:
        model = self.small(kind)
        assert isinstance(model.config, NetworkConfig)
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
            assert out.grid == model.config.grid_of(size)
            assert out.prefix == model.config.prefix
            assert out.tokens.shape == (2, out.prefix + out.grid[0] * out.grid[1], model.config.width)
            assert out.feature_map.shape == (2, model.config.width, *out.grid)
            assert out.logits.shape == (2, 5)
            assert torch.isfinite(out.logits).all()

    @torch.no_grad()
    def test_a_picture_alone_is_answered_as_in_a_batch(self, kind: str) -> None:
        model = self.small(kind)
        for size in self.sizes[:2]:
            pixels = self.pictures(model, 3, size)
            together = model(pixels)
            for place in range(3):
                alone = model(pixels[place : place + 1])
                assert_close(alone.logits, together.logits[place : place + 1], 1e-5)
                assert_close(alone.tokens, together.tokens[place : place + 1], 1e-5)
            assert (together.logits[0] - together.logits[1]).abs().max() > 1e-4  # pictures matter

    def test_gradients_reach_every_parameter_and_the_picture(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[-1]).requires_grad_()
        out = model(pixels)
        (out.logits.square().sum() + out.tokens.square().sum()).backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        still = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.abs().max() > 0]
        assert (without, still) == ([], [])
        assert pixels.grad is not None
        assert pixels.grad.abs().max() > 0

    @torch.no_grad()
    def test_half_precision_stays_close(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[0])
        whole = model(pixels).logits
        half = model.to(torch.bfloat16)(pixels.to(torch.bfloat16)).logits.float()
        assert ((half - whole).norm() / whole.norm()).item() < self.bf16

    @torch.no_grad()
    def test_a_classifier_can_be_replaced_or_taken_off(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, self.sizes[0])
        pooled = model(pixels).pooled
        model.reset_head(7)
        assert model.config.num_classes == 7
        assert model(pixels).logits.shape == (1, 7)
        model.reset_head(0)
        out = model(pixels)
        assert out.logits is None
        assert out.heads == ()
        assert torch.equal(out.pooled, pooled)

    @torch.no_grad()
    def test_it_comes_back_from_a_file(self, kind: str, tmp_path: Path) -> None:
        model = self.small(kind)
        again: Any = load_model(save_model(model, tmp_path / "model"))
        assert again.config == model.config
        pixels = self.pictures(model, 1, self.sizes[1])
        assert torch.equal(again(pixels).logits, model(pixels).logits)

    @torch.no_grad()
    def test_a_pyramid_holds_what_passes(self, kind: str) -> None:
        if not self.has_pyramid:
            pytest.skip("This family makes no maps.")
        model = self.small(kind)
        for size in self.sizes:
            pixels = self.pictures(model, 2, size)
            found = model.pyramid(pixels)
            assert list(found.strides) == sorted(found.strides)
            assert len(found.maps) == len(found.strides) >= 1
            for one, stride in zip(found.maps, found.strides, strict=True):
                assert torch.isfinite(one).all()
                assert all(abs(cells - side / stride) <= 1 for cells, side in zip(one.shape[2:], size, strict=True))
            chosen = model.pyramid(pixels, [0, -1])
            last = len(model.levels) - 1
            assert chosen.strides == (model.levels[0].stride, model.levels[last].stride)
            assert [one.shape[1] for one in chosen.maps] == [model.levels[0].channels, model.levels[last].channels]
            assert torch.equal(chosen.maps[-1], found.maps[-1])
