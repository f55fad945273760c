"""The logit lens: what class each patch would be called, halfway through the network."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch

from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import LayerName, capture
from vitral.explanation.question import Heat, Question
from vitral.layers.attention import ScaledDotProduct
from vitral.models.network import MapConfig

__all__ = ["logit_lens"]


@torch.no_grad()
def logit_lens(
    question: Question, *, layer: LayerName | None = None, value: Literal["probability", "logit"] = "probability"
) -> Heat:
    """The class's score at every patch, read by the model's own norm and classifier (nostalgebraist 2020, "interpreting GPT:
    the logit lens"; for patches Vilas et al. 2023, "Analyzing Vision Transformers for Image Classification in Class
    Embedding Space"). Of a network of maps whose mean is classified this is, as logits, the class activation map (Zhou et
    al. 2016).

    Args:
        question: what to explain.
        layer: behind which block tokens are read; by default what the classifier reads. Of a hierarchy it must be one of the
            last stage's, as the classifier can read no other tokens; a network without attention has the last map alone.
        value: what heat is: the class's probability among all, or its logit.

    Raises:
        UsageError: the model's classifier cannot read a token alone, or not those of that layer.
    """
    if value not in ("probability", "logit"):
        raise UnknownNameError("value of the logit lens", value, ("probability", "logit"))
    model = cast(Any, question.model)
    looks = any(isinstance(module, ScaledDotProduct) for module in model.modules())
    if layer is None and (not looks or isinstance(model.config, MapConfig)) and model.levels:
        tokens = model.pyramid(question.pixels, [len(model.levels) - 1]).maps[0].flatten(2).transpose(1, 2)
    else:
        with capture(question.model, -1 if layer is None else layer, parts="residual_post") as captured:
            output = question.model(question.pixels)
        [tokens], [name] = list(captured), captured.layers
        if tokens.shape[1:] != output.tokens.shape[1:]:
            raise UsageError(
                f"Behind {name} there are {tokens.shape[1]} tokens of {tokens.shape[2]} channels; the classifier reads "
                f"those of the last stage, {output.tokens.shape[1]} of {output.tokens.shape[2]}. "
                "Choose a layer of it, such as -1."
            )
    logits = question.read_tokens(tokens)
    scores = logits if value == "logit" else question.probabilities(logits)
    return Heat(question.patches(question.of_class(scores)))
