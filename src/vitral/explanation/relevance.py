"""Relevance of patches for a class, by gradients of its score by the attention maps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vitral.errors import UsageError
from vitral.explanation.capture import LayerName, capture
from vitral.explanation.question import Heat, Question, read_back

__all__ = ["grad_cam", "legrad", "relevance"]


def relevance(question: Question) -> Heat:
    """Gradient × attention (Chefer et al. 2021, ICCV, "Generic Attention-model Explainability", equations 5 and 6).

    Relevance starts as the identity, and each layer adds what its attention carries, where the score would rise with it:
    R ← R + mean over heads of (∇A ⊙ A)⁺ · R.
    """
    with capture(question.model, gradients=True) as captured:
        score = question.logit(question.model(question.differentiable()))
    maps = list(captured)
    carried = [
        (gradient * map_.detach()).clamp(min=0).mean(1).float()
        for gradient, map_ in zip(_gradients(score, maps), maps, strict=True)
    ]
    flow, pool = torch.eye(question.tokens, device=score.device).expand(len(score), -1, -1), None
    for name, one in zip(captured.layers, carried, strict=True):
        if captured.inside(name):
            flow = flow + one @ flow
        else:
            pool = one
    return Heat(question.patches(read_back(question.model, flow, pool)))


def legrad(question: Question, *, start: int = 0) -> Heat:
    """LeGrad (Bousselham et al. 2024, "LeGrad", section 3): how each layer's attention forms the class.

    The mean token behind every layer is read as if it were the picture's, and the score so read is differentiated by that
    layer's attention map. Positive gradients are averaged over heads and asking tokens, and layers are summed.

    Args:
        question: what to explain.
        start: the first layer that counts, 0 for all.
    """
    with capture(question.model, parts=("attention", "residual_post"), gradients=True) as captured:
        question.model(question.differentiable())
    if not -len(captured) <= start < len(captured):
        raise UsageError(f"start={start}, but the model has {len(captured)} layers, numbered 0 to {len(captured) - 1}.")
    found = torch.zeros(len(question.pixels), question.tokens, device=question.pixels.device)
    for name in captured.layers[start:]:
        tokens = captured[name, "residual_post"]
        logits = question.read_tokens(tokens.mean(1, keepdim=True))[:, 0]
        score = logits.float().gather(1, question.classes[:, None])[:, 0]
        [gradient] = _gradients(score, [captured[name]], keep=True)
        found = found + gradient.clamp(min=0).mean((1, 2)).float()
    return Heat(question.patches(found))


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
    [gradient] = _gradients(score, [tokens])
    importance = gradient[:, question.prefix :].float().mean(1)
    weighted = torch.einsum("bnd,bd->bn", tokens.detach().float(), importance)
    return Heat(question.patches(weighted.clamp(min=0)))


def _gradients(score: Float[Tensor, " b"], by: list[Tensor], *, keep: bool = False) -> list[Tensor]:
    """Gradients of each picture's score by each of some tensors; a picture's score depends on no other picture."""
    if not torch.isfinite(score).all():
        raise UsageError("The score to be explained is not a finite number (NaN or infinity). Try dtype='float32'.")
    return list(torch.autograd.grad(score.sum(), by, retain_graph=keep))
