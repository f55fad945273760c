"""Relevance of patches for a class, by gradients of its score by the attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.numbers import as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import Captured, Layer, LayerName, Part, attention_layers, capture
from vitral.explanation.question import Heat, Question, gradients
from vitral.explanation.rollout import Backwards
from vitral.explanation.stages import moved
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.position import Grid
from vitral.models.network import MapConfig
from vitral.models.output import Level

__all__ = ["grad_cam", "legrad", "relevance"]


def relevance(question: Question) -> Heat:
    """Gradient × attention (Chefer et al. 2021, ICCV, "Generic Attention-model Explainability", equations 5 and 6).

    Relevance starts as the identity, and each layer adds what its attention carries, where the score would rise with it:
    R ← R + mean over heads of (∇A ⊙ A)⁺ · R. The row of the class token is the heat; where a model reads the mean of its
    patches, their mean row, and where it pools by attention, what the pool's map carries by the same rule. Between the
    stages of a hierarchy it goes as in rollout.
    """
    with capture(question.model, gradients=True, whole=False) as captured:
        score = question.logit(question.model(question.differentiable()))
    looking = [name for name in captured.layers if not captured.channels(name)]
    maps = [captured[name] for name in looking]
    carried = {
        name: (gradient * map_.detach()).clamp(min=0).mean(1).float()
        for name, gradient, map_ in zip(looking, gradients(score, maps), maps, strict=True)
    }
    pool = None if captured.pool is None else carried[captured.pool]
    way = Backwards(captured, question.reading(pool), question.grid, question.prefix)
    for name in way.layers():
        way.to(name)
        attention = captured.whole(name, carried[name][:, None])[:, 0]
        asking = way.of_asking(attention)
        way.add(torch.zeros_like(asking), attention, asking)
    return way.heat()


def legrad(question: Question, *, start: SupportsIndex = 0) -> Heat:
    """LeGrad (Bousselham et al. 2024, "LeGrad", section 3): how each layer's attention forms the class.

    The tokens behind every layer are read as if it were the last, and the score so read is differentiated by that layer's
    attention map; its positive gradients are averaged over heads and asking tokens, and layers are summed. As in the
    authors' code (WalBouss/LeGrad, legrad/wrapper.py) it is the mean of all tokens that is read, also where a model reads
    its class token; and where one pools by attention, the pool reads the tokens of every layer, and the score is
    differentiated by the pool's map instead of the layer's.

    Args:
        question: what to explain.
        start: the first layer that counts, 0 for all. Of a hierarchy only the last stage's count, as its classifier can read
            no other tokens.
    """
    pool = next((layer.name for layer in attention_layers(question.model) if layer.block is None), None)
    parts: tuple[Part, ...] = ("attention", "residual_post") if pool is None else ("residual_post",)
    with capture(question.model, parts=parts, gradients=True, whole=False) as captured:
        question.model(question.differentiable())
    found = []
    for name in _readable(question, captured, start):
        tokens = captured[name, "residual_post"]
        if pool is None:
            logits = question.read_tokens(tokens.mean(1, keepdim=True))[:, 0]
            score, map_ = question.of_class(logits.float()), captured[name, "attention"]
        else:
            with capture(question.model, pool, gradients=True) as reading:
                score = question.logit(question.read_out(tokens))
            map_ = reading[pool]
        [gradient] = gradients(score, [map_], keep=True)
        positive = gradient.clamp(min=0).mean(1, keepdim=True)
        if pool is None:
            positive = captured.whole(name, positive)
            received = moved(positive.mean((1, 2)), captured.asked_grid(name), captured.grid(name))
        else:
            received = positive.mean((1, 2))
        found.append(received)
    return Heat(question.patches(torch.stack(found).sum(0)))


def _readable(question: Question, captured: Captured, start: SupportsIndex) -> list[str]:
    """The layers, from one on, behind which tokens are those that the classifier reads: of a hierarchy the last stage's.

    Raises:
        UsageError: there is none.
    """
    asked = captured.blocks(start)
    found = [
        name
        for name in asked
        if captured[name, "residual_post"].shape[1:] == (question.tokens, captured[asked[-1], "residual_post"].shape[2])
        and not captured.channels(name)
    ]
    if not found:
        raise UsageError("No layer looks at the tokens that the classifier reads, so LeGrad has nothing to sum over.")
    return found


def grad_cam(question: Question, *, layer: LayerName | None = None) -> Heat:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2), of convolutional networks and of transformers.

    Channels of a map are weighted with the mean gradient of the score over its cells, and what is positive in the sum
    remains. Where the mean of the last map is classified by one linear layer, this is what is positive of the class
    activation map (Zhou et al. 2016), divided by the number of cells.

    By default the map is the last one, which the classifier reads the mean of. Where it reads a class token or pools by
    attention, the map are the tokens that the last block's attention reads, as no other token's gradient is left behind it.

    Args:
        question: what to explain.
        layer: which map. Of a network with attention a layer's number or name: the tokens that this attention reads. Of
            another one of `model.levels`, by its number: the map at the end of a stage. Of any the name of a module that
            gives a map or tokens: "stages.2".
    """
    attentions = _attentions(question.model)
    config: Any = cast(Any, question.model).config
    if (
        layer is None
        and not attentions
        and config.pool in ("class", "class_and_mean")
        and len(cast(Any, question.model).blocks) > 1
    ):
        # Attention of another kind, which nothing looks into: behind the last block only the class token has a gradient.
        score, left = _watched(question, [cast(Any, question.model).blocks[-2]])
        return _grad_cam(question, score, *left[-1])
    if layer is None and (not attentions or (isinstance(config, MapConfig) and config.pool == "mean")):
        output = question.model(question.differentiable())
        return _grad_cam(question, question.logit(output), output.tokens, output.grid)
    if attentions and not (isinstance(layer, str) and _is_module(question.model, layer, attentions)):
        with capture(question.model, -1 if layer is None else layer, parts="attention_input", gradients=True) as captured:
            score = question.logit(question.model(question.differentiable()))
        [tokens], [name] = list(captured), captured.layers
        return _grad_cam(question, score, tokens, captured.grid(name))
    score, tokens, grid = _at_module(question, layer) if isinstance(layer, str) else _at_level(question, layer)
    return _grad_cam(question, score, tokens, grid)


def _grad_cam(question: Question, score: Float[Tensor, " b"], tokens: Float[Tensor, "b n d"], grid: Grid) -> Heat:
    [gradient] = gradients(score, [tokens])
    importance = gradient[:, -grid[0] * grid[1] :].mean(1)
    weighted = torch.einsum("bnd,bd->bn", tokens.detach().float(), importance)
    return Heat(question.patches(weighted.clamp(min=0), grid))


def _attentions(model: nn.Module) -> tuple[Layer, ...]:
    """The attentions of a network; none where it has none."""
    return attention_layers(model) if any(isinstance(module, ScaledDotProduct) for module in model.modules()) else ()


def _is_module(model: nn.Module, name: str, attentions: tuple[Layer, ...]) -> bool:
    """Whether a name is that of a module which is no attention and no block of one."""
    known = {one.name for one in attentions} | {one.name.removesuffix(".attention") for one in attentions}
    return name not in known and name in dict(model.named_modules())


def _at_level(question: Question, level: Any) -> tuple[Tensor, Tensor, Grid]:
    """The score, and the map of one of a network's levels as tokens, in the graph: what a block left that ends it."""
    model, size = cast(Any, question.model), question.pixels.shape[2:]
    levels: tuple[Level, ...] = model.levels
    place = as_integer(level)
    if place is None or not -len(levels) <= place < len(levels):
        raise UsageError(
            f"There is no map {level!r} in a {type(model).__name__}: it has {len(levels)}, numbered 0 to {len(levels) - 1}; "
            "the name of a module does as well."
        )
    if place % len(levels) == len(levels) - 1:
        output = model(question.differentiable())
        if output.tokens.shape[2] == levels[-1].channels:
            return question.logit(output), output.tokens, output.grid
    score, left = _watched(question, list(model.blocks))
    if len(model.blocks) == len(levels) == len(left):
        return score, *left[place]
    wanted = levels[place]
    for tokens, grid in reversed(left):
        near = all(abs(cells - side / wanted.stride) <= 1 for cells, side in zip(grid, size, strict=True))
        if near and tokens.shape[2] == wanted.channels:
            return score, tokens, grid
    raise UsageError(f"No block of a {type(model).__name__} ends with its map {level!r}; name a module instead.")


def _at_module(question: Question, name: str) -> tuple[Tensor, Tensor, Grid]:
    """The score, and what a module gave as tokens, in the graph."""
    modules = dict(question.model.named_modules())
    if name not in modules:
        raise UnknownNameError("module", name, [one for one in modules if one])
    score, left = _watched(question, [modules[name]])
    if not left:
        raise UsageError(f"{name} gave no map when the picture passed.")
    return score, *left[-1]


def _watched(
    question: Question, modules: Sequence[nn.Module]
) -> tuple[Float[Tensor, " b"], list[tuple[Float[Tensor, "b n d"], Grid]]]:
    """The score; and what modules gave on the way to it as tokens, in the graph, each with its grid."""
    left: list[tuple[Tensor, Grid]] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return None
        if output.ndim == 3:
            if output.shape[1] != question.tokens:
                return None
            left.append((output, question.grid))
        else:
            left.append((output.flatten(2).transpose(1, 2), (output.shape[2], output.shape[3])))
        # What follows is made of what was kept, and as a copy: it may overwrite what it is given (a ReLU in place).
        tokens = left[-1][0].clone()
        return tokens if output.ndim == 3 else tokens.transpose(1, 2).reshape(output.shape)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        return question.logit(question.model(question.differentiable())), left
    finally:
        for handle in handles:
            handle.remove()
