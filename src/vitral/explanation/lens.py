"""The logit lens: what class each patch would be called, halfway through the network."""

from __future__ import annotations

from typing import Literal

import torch

from vitral.errors import UnknownNameError
from vitral.explanation.capture import LayerName, capture
from vitral.explanation.question import Heat, Question

__all__ = ["logit_lens"]


@torch.no_grad()
def logit_lens(question: Question, *, layer: LayerName = -1, value: Literal["probability", "logit"] = "probability") -> Heat:
    """The class's score at every patch, read by the model's own norm and classifier (nostalgebraist 2020, "interpreting GPT:
    the logit lens"; for patches Vilas et al. 2023, "Analyzing Vision Transformers for Image Classification in Class
    Embedding Space").

    Args:
        question: what to explain.
        layer: behind which block tokens are read.
        value: what heat is: the class's probability among all, or its logit.
    """
    if value not in ("probability", "logit"):
        raise UnknownNameError("value of the logit lens", value, ("probability", "logit"))
    with capture(question.model, layer, parts="residual_post") as captured:
        question.model(question.pixels)
    [tokens] = list(captured)
    logits = question.read_tokens(tokens)
    scores = logits if value == "logit" else question.probabilities(logits)
    return Heat(question.patches(question.of_class(scores)))
