"""Relevance of patches for a class, by gradients of its score by the attention maps."""

from __future__ import annotations

from typing import SupportsIndex

import torch

from vitral.explanation.capture import LayerName, Part, attention_layers, capture
from vitral.explanation.question import Heat, Question, gradients, read_back

__all__ = ["grad_cam", "legrad", "relevance"]


def relevance(question: Question) -> Heat:
    """Gradient × attention (Chefer et al. 2021, ICCV, "Generic Attention-model Explainability", equations 5 and 6).

    Relevance starts as the identity, and each layer adds what its attention carries, where the score would rise with it:
    R ← R + mean over heads of (∇A ⊙ A)⁺ · R. The row of the class token is the heat; where a model reads the mean of its
    patches, their mean row, and where it pools by attention, what the pool's map carries by the same rule.
    """
    with capture(question.model, gradients=True) as captured:
        score = question.logit(question.model(question.differentiable()))
    maps = list(captured)
    carried = {
        name: (gradient * map_.detach()).clamp(min=0).mean(1).float()
        for name, gradient, map_ in zip(captured.layers, gradients(score, maps), maps, strict=True)
    }
    flow = torch.eye(question.tokens, device=score.device).expand(len(score), -1, -1)
    for name in captured.blocks():
        flow = flow + carried[name] @ flow
    pool = None if captured.pool is None else carried[captured.pool]
    return Heat(question.patches(read_back(question.model, flow, pool)))


def legrad(question: Question, *, start: SupportsIndex = 0) -> Heat:
    """LeGrad (Bousselham et al. 2024, "LeGrad", section 3): how each layer's attention forms the class.

    The tokens behind every layer are read as if it were the last, and the score so read is differentiated by that layer's
    attention map; its positive gradients are averaged over heads and asking tokens, and layers are summed. As in the
    authors' code (WalBouss/LeGrad, legrad/wrapper.py) it is the mean of all tokens that is read, also where a model reads
    its class token; and where one pools by attention, the pool reads the tokens of every layer, and the score is
    differentiated by the pool's map instead of the layer's.

    Args:
        question: what to explain.
        start: the first layer that counts, 0 for all.
    """
    pool = next((layer.name for layer in attention_layers(question.model) if layer.block is None), None)
    parts: tuple[Part, ...] = ("attention", "residual_post") if pool is None else ("residual_post",)
    with capture(question.model, parts=parts, gradients=True) as captured:
        question.model(question.differentiable())
    found = []
    for name in captured.blocks(start):
        tokens = captured[name, "residual_post"]
        if pool is None:
            logits = question.read_tokens(tokens.mean(1, keepdim=True))[:, 0]
            score, map_ = question.of_class(logits.float()), captured[name, "attention"]
        else:
            with capture(question.model, pool, gradients=True) as reading:
                score = question.logit(question.read_out(tokens))
            map_ = reading[pool]
        [gradient] = gradients(score, [map_], keep=True)
        found.append(gradient.clamp(min=0).mean((1, 2)))
    return Heat(question.patches(torch.stack(found).sum(0)))


def grad_cam(question: Question, *, layer: LayerName = -1) -> Heat:
    """Grad-CAM on tokens (Selvaraju et al. 2017, equations 1 and 2).

    Channels of the tokens that a layer's attention reads are weighted with the mean gradient of the score over the
    patches, and what is positive in the sum remains. (The tokens behind the last attention are of no use where a class
    token is read: no other token's gradient is left there.)

    Args:
        question: what to explain.
        layer: which.
    """
    with capture(question.model, layer, parts="attention_input", gradients=True) as captured:
        score = question.logit(question.model(question.differentiable()))
    [tokens] = list(captured)
    [gradient] = gradients(score, [tokens])
    importance = gradient[:, question.prefix :].mean(1)
    weighted = torch.einsum("bnd,bd->bn", tokens.detach().float(), importance)
    return Heat(question.patches(weighted.clamp(min=0)))
