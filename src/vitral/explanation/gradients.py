"""Gradients of a class's score by the pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitral.base.numbers import real_number, whole_number
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.question import Heat, Question, gradients

__all__ = ["integrated_gradients", "saliency", "smoothgrad"]


def saliency(question: Question) -> Heat:
    """The gradient's magnitude, greatest over the channels (Simonyan et al. 2014, section 3.1)."""
    return Heat(_gradient(question, question.pixels).abs().amax(1))


def smoothgrad(question: Question, *, samples: int = 32, noise: float = 0.15, seed: int = 0) -> Heat:
    """The gradient averaged over noisy copies of the picture, then its magnitude (Smilkov et al. 2017, section 2).

    Args:
        question: what to explain.
        samples: how many copies.
        noise: standard deviation of the noise, as a share of the picture's range.
        seed: of the noise, which is the same for every picture.
    """
    samples = whole_number("samples", samples)
    if not real_number("noise", noise) > 0:
        raise UsageError(f"noise must be above 0; {noise!r} came.")
    pixels = question.pixels
    deviation = noise * (pixels.amax((1, 2, 3), keepdim=True) - pixels.amin((1, 2, 3), keepdim=True))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(pixels, dtype=torch.float32)
    for _ in range(samples):
        shaken = torch.randn(pixels.shape[1:], generator=generator).to(pixels) * deviation
        total += _gradient(question, pixels + shaken)
    return Heat((total / samples).abs().amax(1))


def integrated_gradients(
    question: Question,
    *,
    baseline: Literal["grey", "black"] = "grey",
    steps: int = 32,
    tolerance: float = 0.01,
    max_steps: int = 1024,
    batch_size: int = 16,
) -> Heat:
    """Integrated gradients (Sundararajan et al. 2017, equation 1); positive heat speaks for the class, negative against it.

    Heat sums to the difference between the score of the picture and of the baseline (their "completeness", proposition 1).
    The integral is taken by Gauss and Legendre's rule, with twice as many points until it is complete enough.

    Args:
        question: what to explain.
        baseline: the picture that shows nothing: grey, the mean of the preprocessing (zero behind it), or black.
        steps: points on the way from the baseline at first.
        tolerance: how far the sum may be off, as a share of the difference.
        max_steps: points to stop at, complete or not.
        batch_size: points computed at once.

    Returns:
        Signed heat per pixel, summed over channels; the note "completeness_gap" is what share of the difference is missing.
    """
    steps, max_steps = whole_number("steps", steps), whole_number("max_steps", max_steps)
    batch_size = whole_number("batch_size", batch_size)
    if not real_number("tolerance", tolerance) > 0:
        raise UsageError(f"tolerance must be above 0; {tolerance!r} came.")
    if baseline not in ("grey", "black"):
        raise UnknownNameError("baseline", baseline, ("grey", "black"))
    found = [
        _integrated(question.alone(place), baseline, steps, tolerance, max_steps, batch_size)
        for place in range(len(question.pixels))
    ]
    heats, gaps = zip(*found, strict=True)
    return Heat(torch.stack(heats), {"completeness_gap": torch.tensor(gaps)})


def _integrated(
    question: Question, baseline: str, steps: int, tolerance: float, max_steps: int, batch_size: int
) -> tuple[Float[Tensor, "y x"], float]:
    """Heat of one picture, and the share of the score's difference that it misses."""
    start = torch.zeros_like(question.pixels) if baseline == "grey" else question.black.expand_as(question.pixels)
    way = question.pixels - start
    with torch.no_grad():
        ends = question.logit(question.model(torch.cat([start, question.pixels])))
    difference = (ends[1] - ends[0]).item()
    while True:
        points, weights = (torch.from_numpy(one).float() for one in np.polynomial.legendre.leggauss(steps))
        mean = torch.zeros_like(way, dtype=torch.float32)
        for at, weight in zip(((points + 1) / 2).split(batch_size), (weights / 2).split(batch_size), strict=True):
            between = start + at.to(way).view(-1, 1, 1, 1) * way
            gradient = _gradient(question, between)
            mean += torch.einsum("s,scyx->cyx", weight.to(gradient), gradient)
        heat = (mean * way)[0].sum(0)
        gap = abs(heat.sum().item() - difference) / max(abs(difference), 1e-6)
        if gap <= tolerance or 2 * steps > max_steps:
            return heat, gap
        steps *= 2


def _gradient(question: Question, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
    """The gradient of each picture's score by its pixels."""
    pixels = pixels.detach().requires_grad_()
    [gradient] = gradients(question.logit(question.model(pixels)), [pixels])
    return gradient
