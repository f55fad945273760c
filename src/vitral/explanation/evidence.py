"""Heat by the gradients of a score: one way through a network, and one way back for each thing that is to be explained.

Whoever explains objects or segments says what the score of each is, and how what attention carries becomes a map of the
picture; this page says the rest: Grad-CAM, gradient × input, and the gradients by which attention is weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.frame import Seen
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import Captured, Watch, attention_layers, capture, find_layer
from vitral.explanation.object_relevance import carried
from vitral.explanation.prepares import Prepares
from vitral.explanation.stages import steps
from vitral.layers.position import Grid

__all__ = ["Evidence", "Inquiry", "found_by_gradients", "plain"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method found: a number for each cell, and the size of a cell in pixels of the input."""

    values: Float[np.ndarray, "i j"]
    cell: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inquiry:
    """What is asked about one picture.

    Attributes:
        seen: the picture.
        methods: some of "relevance", "grad_cam" and "gradient_times_input".
        scores: of each thing that is to be explained, from the model's output to one number in the graph.
        what: what the scores are of, for a message: "object".
        attentions: the names of the attentions that relevance follows.
        relevance: from the place of a thing, what each attention carries (w n m), and what was captured, to its heat.
        map_of: the module whose map Grad-CAM weighs unless a layer is named; None: the tokens that the last attention reads.
        layer: the name of a module that gives a map, for Grad-CAM.
    """

    seen: Seen
    methods: Sequence[str]
    scores: Sequence[Callable[[Any], Float[Tensor, ""]]]
    what: str
    attentions: Sequence[str]
    relevance: Callable[[int, Mapping[str, Float[Tensor, "w n m"]], Captured], Evidence]
    map_of: nn.Module | None
    layer: str | None = None


@dataclass
class _Kept:
    """What was seen on the way through the network, in the graph."""

    tokens: list[Tensor] = field(default_factory=list)


def found_by_gradients(predictor: Prepares, inquiry: Inquiry) -> Iterator[dict[str, Evidence]]:
    """Heat by each method, for one thing after another.

    Raises:
        UsageError: the picture was not kept, or a score or its gradient is not finite.
        UnknownNameError: no module of this name.
    """
    model, methods = predictor.model, inquiry.methods
    if inquiry.seen.picture is None:
        raise UsageError(f"The picture of {inquiry.seen.name} was not kept, so nothing can be computed of it again.")
    pixels, _ = predictor.prepare(inquiry.seen.picture)
    # A caller's inference mode would forbid the gradients.
    with torch.inference_mode(False), torch.enable_grad():
        batch = pixels[None].clone().to(predictor.device, predictor.dtype).requires_grad_()
        names = dict.fromkeys(inquiry.attentions) if "relevance" in methods else {}
        captured: Captured | None = None
        with _watched(model, inquiry if "grad_cam" in methods else None) as kept:
            if names:
                with capture(model, names, gradients=True, whole=False) as captured:
                    output = model(batch)
                by = [captured[name] for name in names]
            else:
                output, by = model(batch), []
        wanted = [batch, *kept.tokens, *by]
        for place, score_of in enumerate(inquiry.scores):
            score = score_of(output)
            last = place == len(inquiry.scores) - 1
            slopes = torch.autograd.grad(score, wanted, retain_graph=not last, allow_unused=True)
            slopes = tuple(
                torch.zeros_like(one) if slope is None else slope for one, slope in zip(wanted, slopes, strict=True)
            )
            if not all(torch.isfinite(one).all() for one in (score, *slopes)):
                raise UsageError(
                    f"The {inquiry.what}'s score, or its gradient, is not a finite number. Try dtype='float32'."
                )
            heats: dict[str, Evidence] = {}
            if "gradient_times_input" in methods:
                heats["gradient_times_input"] = Evidence(plain((slopes[0] * batch.detach())[0].sum(0)), (1, 1))
            if "grad_cam" in methods:
                heats["grad_cam"] = _cam(model, kept.tokens[0], slopes[1], (batch.shape[2], batch.shape[3]))
            if captured is not None:
                first = 1 + len(kept.tokens)
                weighed = zip(names, by, slopes[first:], strict=True)
                taken = {name: carried(weights, slope) for name, weights, slope in weighed}
                heats["relevance"] = inquiry.relevance(place, taken, captured)
            yield heats


@contextmanager
def _watched(model: nn.Module, inquiry: Inquiry | None) -> Iterator[_Kept]:
    """Keep the map that Grad-CAM weighs, in the graph; nothing where it is not asked for."""
    kept = _Kept()
    if inquiry is None:
        yield kept
        return
    layer, watch = inquiry.layer, Watch()
    modules = dict(model.named_modules())
    if layer is not None and layer not in modules:
        raise UnknownNameError("module", layer, modules)

    def leaving(_: nn.Module, __: Any, output: Any) -> Tensor:
        maps = isinstance(output, Tensor) and (output.ndim == 4 or (layer is None and output.ndim == 3))
        if not maps:
            raise UsageError(f"{layer} gives no map (b d i j) that Grad-CAM could weigh; name another module.")
        kept.tokens[:] = [output]
        # What follows is made of a copy: it may overwrite what it is given (a ReLU in place).
        return cast(Tensor, output.clone())

    def entering(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.tokens[:] = [inputs[0]]

    module = modules[layer] if layer is not None else inquiry.map_of
    if module is not None:
        handle = module.register_forward_hook(watch.only(module, leaving))
    else:  # tokens behind the last attention are read one by one; those that it reads have a gradient all
        module = cast(Any, find_layer(attention_layers(model), -1)).layout.around
        handle = module.register_forward_pre_hook(watch.only(module, entering))
    try:
        yield kept
    finally:
        watch.over = True
        handle.remove()


def _cam(model: nn.Module, tokens: Tensor, slope: Tensor, size: tuple[int, int]) -> Evidence:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) of a map (1 d i j), or of tokens (1 n d) behind others."""
    if tokens.ndim == 3:
        grid: Grid = cast(Any, model).config.grid_of(size)
        tokens, slope = (one[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid) for one in (tokens, slope))
        cell: tuple[int, int] = cast(Any, model).config.patch_size
    else:
        down, across = tokens.shape[2:]
        cell = steps((max(size[0], down), max(size[1], across)), (down, across))
    importance = slope.float().mean((2, 3), keepdim=True)
    weighted = (importance * tokens.detach().float()).sum(1).clamp(min=0)
    return Evidence(plain(weighted[0]), cell)


def plain(x: Float[Tensor, "*n"]) -> Float[np.ndarray, "*n"]:
    """Numbers outside the graph, in single precision."""
    return x.detach().float().cpu().numpy()
