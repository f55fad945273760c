"""Relevance, LeGrad and Grad-CAM against their published formulas over transformers' eager networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.explanation.conftest import Pair, question, tiny
from tests.parity.peers import pictures
from vitral.errors import UsageError
from vitral.explanation.relevance import grad_cam, legrad, relevance

TARGETS = [2, 5]


def close(found: Tensor, expected: Tensor | np.ndarray) -> None:
    expected = torch.as_tensor(expected).float().flatten(1)
    assert found.flatten(1).shape == expected.shape
    assert (found.flatten(1) - expected).abs().max() < 2e-4 * expected.abs().max()
    assert expected.std() > 0


def attended(theirs: Any, pixels: Tensor) -> tuple[list[Tensor], Any]:
    """Maps of transformers' eager attention, in the graph, and the output."""
    output = theirs(pixels.requires_grad_(), output_attentions=True, output_hidden_states=True)
    return list(output.attentions), output


def score(output: Any, targets: list[int]) -> Tensor:
    return sum(row[target] for row, target in zip(output.logits, targets, strict=True))  # type: ignore[return-value]


def read(theirs: Any, per_token: np.ndarray) -> np.ndarray:
    """The rows that the classifier reads: BEiT's mean over patches, else the class token's, and DINOv2's mean of both."""
    name = type(theirs).__name__
    if name.startswith("Beit"):
        return per_token[:, 1:].mean(1)
    if name.startswith("Dinov2"):
        return (per_token[:, 0] + per_token[:, 4:].mean(1)) / 2
    return per_token[:, 0]


def test_relevance_is_chefers(pair: Pair) -> None:
    ours, theirs = pair
    pixels = pictures(64, 64, 2)
    maps, output = attended(theirs, pixels.clone())
    gradients = torch.autograd.grad(score(output, TARGETS), maps)
    relevances = np.stack([np.eye(maps[0].shape[-1])] * 2)
    for gradient, map_ in zip(gradients, maps, strict=True):
        kept = np.maximum((gradient * map_).detach().double().numpy(), 0).mean(1)
        relevances = relevances + kept @ relevances
    asked = question(ours, pixels, TARGETS)
    close(relevance(asked).values, read(theirs, relevances)[:, asked.prefix :])


def test_legrad_is_the_published_sum_over_layers(pair: Pair) -> None:
    ours, theirs = pair
    pixels = pictures(64, 64, 2)
    maps, output = attended(theirs, pixels.clone())
    asked, expected = question(ours, pixels, TARGETS), 0.0
    for layer, map_ in enumerate(maps):
        mean = output.hidden_states[layer + 1].mean(1)
        if type(theirs).__name__.startswith("Beit"):
            logits = theirs.classifier(theirs.beit.pooler.layernorm(mean))
        elif type(theirs).__name__.startswith("Dinov2"):
            normed = theirs.dinov2_with_registers.layernorm(mean)
            logits = theirs.classifier(torch.cat([normed, normed], dim=1))
        else:
            logits = theirs.classifier(theirs.vit.layernorm(mean))
        one = sum(row[target] for row, target in zip(logits, TARGETS, strict=True))
        [gradient] = torch.autograd.grad(one, [map_], retain_graph=True)
        expected = expected + gradient.clamp(min=0).mean((1, 2))[:, asked.prefix :]
    close(legrad(asked).values, expected)


def test_grad_cam_weights_channels_with_their_mean_gradient(pair: Pair) -> None:
    ours, theirs = pair
    pixels = pictures(64, 64, 2)
    stem = next(one for one in ("vit", "beit", "dinov2_with_registers") if hasattr(theirs, one))
    [norm] = [
        module
        for name, module in getattr(theirs, stem).named_modules()
        if name.endswith(("layer.1.layernorm_before", "layers.1.layernorm_before", "layer.1.norm1", "layers.1.norm1"))
    ]
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda *given: seen.append(given[2]))
    _, output = attended(theirs, pixels.clone())
    handle.remove()
    [gradient] = torch.autograd.grad(score(output, TARGETS), seen)
    asked = question(ours, pixels, TARGETS)
    weights = gradient[:, asked.prefix :].mean(1, keepdim=True)
    expected = (weights * seen[0]).sum(2).clamp(min=0)[:, asked.prefix :].detach()
    close(grad_cam(asked, layer=1).values, expected)


@pytest.mark.parametrize("method", [relevance, legrad, grad_cam])
def test_a_batch_is_as_its_pictures_alone(method: Any) -> None:
    model, pixels = tiny(), pictures(32, 48, 3)
    together = method(question(model, pixels, [0, 3, 6])).values
    for place, target in enumerate([0, 3, 6]):
        alone = method(question(model, pixels[place : place + 1], [target])).values
        assert torch.allclose(together[place], alone[0], rtol=1e-4, atol=1e-4 * together.abs().max())


def test_a_models_weights_get_no_gradient_and_no_hook_stays() -> None:
    model = tiny()
    for method in (relevance, legrad, grad_cam):
        method(question(model, pictures(32, 48), [1]))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_frozen_weights_are_explained_alike() -> None:
    """With no weight asking for gradients, the maps still have them."""
    model, pixels = tiny(), pictures(32, 48)
    before = relevance(question(model, pixels, [1])).values
    model.requires_grad_(False)
    assert torch.equal(relevance(question(model, pixels, [1])).values, before)


def test_relevance_through_attention_pooling() -> None:
    """The pool's map carries what the blocks gathered: R_pool = A_pool · R, by the same rule as a block."""
    model = tiny(class_token=False, prefix_positions=0, pool="attention", depth=1)
    pixels = pictures(32, 48)
    found = relevance(question(model, pixels, [4])).values
    attention: Any = model.blocks[0].attention  # type: ignore[union-attr]
    tokens, _ = model.embed(pixels)
    block: Any = model.blocks[0]
    normed = block.norm1(tokens)
    q, k, v = attention.qkv(normed).view(1, 24, 3, 2, 16).permute(2, 0, 3, 1, 4)
    first = (q @ k.transpose(2, 3) / 4).softmax(-1)
    tokens = tokens + attention.projection((first @ v).transpose(1, 2).flatten(2))
    tokens = model.norm(tokens + block.mlp(block.norm2(tokens)))
    pool: Any = model.pool
    asking = pool.query_projection(pool.query).view(1, 1, 2, 16).transpose(1, 2)
    k, v = pool.key_value(tokens).view(1, 24, 2, 2, 16).permute(2, 0, 3, 1, 4)
    second = (asking @ k.transpose(2, 3) / 4).softmax(-1)
    pooled = pool.projection((second @ v).transpose(1, 2).flatten(2))
    logits = model.head((pooled + pool.mlp(pool.norm(pooled)))[:, 0])  # type: ignore[misc]
    gradients = torch.autograd.grad(logits[0, 4], [first, second])
    kept = [(g * a).clamp(min=0).mean(1) for g, a in zip(gradients, (first, second), strict=True)]
    close(found, (kept[1] @ (torch.eye(24) + kept[0]))[:, 0].detach())


@pytest.mark.parametrize("options", [{"class_token": False, "prefix_positions": 0}, {"registers": 2, "pool_prefix": True}])
def test_legrad_differentiates_by_the_map_of_an_attention_pool(options: dict[str, Any]) -> None:
    """As the authors treat SigLIP: the pool reads every layer's tokens, and the score is differentiated by the pool's map"""
    model = tiny(pool="attention", **options)
    pixels, before = pictures(32, 48, 2), model.config.prefix if "registers" in options else 0
    streams: list[Tensor] = []
    handles = [block.register_forward_hook(lambda *given: streams.append(given[2].detach())) for block in model.blocks]
    model(pixels)
    for handle in handles:
        handle.remove()
    expected, pool = torch.zeros(2, before + 24), model.pool
    assert pool is not None
    for stream in streams:
        tokens = model.norm(stream)
        asking = pool.query_projection(pool.query).view(1, 1, 2, 16).transpose(1, 2)
        keys, values = pool.key_value(tokens).view(2, -1, 2, 2, 16).permute(2, 0, 3, 1, 4)
        map_ = (asking @ keys.transpose(2, 3) / 4).softmax(-1)
        pooled = pool.projection((map_ @ values).transpose(1, 2).flatten(2))
        logits = model.head((pooled + pool.mlp(pool.norm(pooled)))[:, 0])  # type: ignore[misc]
        [gradient] = torch.autograd.grad(logits[0, 2] + logits[1, 5], [map_])
        expected = expected + gradient.clamp(min=0).mean(1)[:, 0]
    close(legrad(question(model, pixels, TARGETS)).values, expected[:, before:])


def test_a_score_of_ones_own_can_be_explained() -> None:
    model, pixels = tiny(), pictures(32, 48)
    by_class = relevance(question(model, pixels, [3])).values
    assert torch.equal(relevance(question(model, pixels, lambda output: output.logits[:, 3])).values, by_class)
    with pytest.raises(UsageError, match="target cannot be a score of your own"):
        legrad(question(model, pixels, lambda output: output.logits[:, 3]))


@pytest.mark.parametrize(
    ("score", "came"),
    [
        (lambda output: output.logits, r"of shape \(2, 7\)"),
        (lambda output: output.logits[:, 3].sum(), r"of shape \(\)"),
    ],
)
def test_a_score_that_is_not_one_number_per_picture_is_refused(score: Any, came: str) -> None:
    with pytest.raises(UsageError, match=f"must be one number per picture, here 2; .*{came} came"):
        relevance(question(tiny(), pictures(32, 48, 2), score))


def test_a_score_that_nothing_leads_to_is_refused() -> None:
    with pytest.raises(UsageError, match="leads back to nothing that can be differentiated"):
        relevance(question(tiny(), pictures(32, 48), lambda output: output.logits[:, 3].detach()))
    pooling = tiny(class_token=False, prefix_positions=0, pool="attention")
    with pytest.raises(UsageError, match="does not depend on everything that this method looks at"):
        relevance(question(pooling, pictures(32, 48), lambda output: output.tokens[:, 0, 0]))


def test_a_score_that_is_no_number_is_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.head.bias[:] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="not a finite number"):
        relevance(question(model, pictures(32, 48), [3]))
