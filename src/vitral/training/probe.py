"""How good are a frozen model's features? A linear classifier and the nearest neighbours are asked.

Both see one vector per picture (`training.features.features_of`) and train nothing of the network.

- Linear probe: multinomial logistic regression, its strength chosen on pictures held out of the training part
  (CLIP, Radford et al. 2021, appendix A.3; DINOv2, Oquab et al. 2023).
- Nearest neighbours: weighted votes of the k most similar training pictures (Wu et al. 2018, section 3.4, as used by
  DINO, Caron et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor

from vitral.base.numbers import all_finite, real_number, whole_number
from vitral.errors import UnknownNameError, UsageError
from vitral.models.network import Network, NetworkConfig
from vitral.training.features import Feature

__all__ = ["STRENGTHS", "KnnResult", "ProbeResult", "head_config", "knn", "linear_probe", "with_linear_head"]

STRENGTHS = tuple(10.0 ** (power / 4) for power in range(4, -25, -1))
"""The strengths of regularisation that are tried, from 10 down to 10⁻⁶, four to a power of ten."""

_HELD_OUT = 5  # a fifth of each class judges the strengths
_ITERATIONS = 500  # of L-BFGS at most; a few dozen are usual

# On the largest slope of the loss, at which the search ends: in single precision for the choice, where the loss is then
# within 1e-4 of its least, in double precision for the classifier, within 1e-6 (40,000 features of 192 numbers).
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-5}


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeResult:
    """A linear classifier on features, and how good it is.

    Attributes:
        accuracy: the share of test pictures whose likeliest class is the right one, in [0, 1].
        top5: the share whose class is among the five likeliest.
        strength: of the regularisation, as chosen or given; see `linear_probe`.
        curve: every strength tried and the accuracy on the held-out fifth of the training part, strongest first; empty where
            the strength was given.
        weight: one row for each class; logits = features @ weight.T + bias, for features as they come.
        bias: one number for each class.
    """

    accuracy: float
    top5: float
    strength: float
    curve: tuple[tuple[float, float], ...]
    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """One number for each vector and class, in double precision."""
        return np.asarray(features, np.float64) @ self.weight.T + self.bias


@dataclass(frozen=True, kw_only=True, eq=False)
class KnnResult:
    """What the nearest neighbours say.

    Attributes:
        accuracy: the share of test pictures whose most voted class is the right one, in [0, 1].
        top5: the share whose class is among the five with the most votes.
        k: how many neighbours vote.
        temperature: how fast their votes fall with distance; None for equal votes.
        predictions: the most voted class of each test picture.
    """

    accuracy: float
    top5: float
    k: int
    temperature: float | None
    predictions: Int64[np.ndarray, " n"]


def linear_probe(
    train_x: Float[np.ndarray, "n d"],
    train_y: Int[np.ndarray, " n"],
    test_x: Float[np.ndarray, "m d"],
    test_y: Int[np.ndarray, " m"],
    *,
    strength: float | None = None,
    strengths: Sequence[float] = STRENGTHS,
    classes: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_strength: Callable[[float, float], None] | None = None,
) -> ProbeResult:
    """Fit a linear classifier to features and judge it on others.

    Features are standardised (mean 0, deviation 1 over the training part). What is made small is

        mean cross-entropy + strength / 2 · ‖weights‖²

    over the standardised features, the bias being free; in scikit-learn's terms C = 1 / (strength · n). A fifth of every
    class, drawn by the seed, judges the strengths by accuracy, ties by cross-entropy; the best is then fitted to the whole
    training part. The test part is looked at once, at the end. The minimum is the only one, so that the result depends on
    the seed by the choice of strength alone, and is the same on every run.

    Args:
        train_x, train_y: features and classes (from 0) to fit.
        test_x, test_y: to judge by.
        strength: the strength, where it is known; None to choose it.
        strengths: to choose from.
        classes: how many there are; None for as many as the labels name.
        seed: fixes the held-out fifth.
        device: where to compute.
        on_strength: called with each strength tried and its held-out accuracy.

    Raises:
        UsageError: data that do not fit each other or are not finite, fewer than two classes, a strength that is not
            positive, or too few pictures to hold any out.
    """
    classes = _checked(train_x, train_y, test_x, test_y, classes)
    if len(np.unique(train_y)) < 2:
        raise UsageError("All pictures to learn from are of one class; a probe needs two at least.")
    tried = sorted((strengths if strength is None else [strength]), reverse=True)
    if not tried or min(real_number("A strength", one) for one in tried) <= 0:
        raise UsageError(f"Strengths must be more than 0, and one at least; {tried!r} came.")
    x, y = _to(train_x, device), torch.from_numpy(np.array(train_y, np.int64)).to(device)
    curve: list[tuple[float, float]] = []
    if strength is None:
        held = torch.from_numpy(_held_out(np.asarray(train_y), seed)).to(device)
        scores = []
        for one, weight, bias in _path(x[~held].float(), y[~held], tried, classes):
            logits = x[held].float() @ weight.T + bias
            accuracy = float((logits.argmax(-1) == y[held]).double().mean())
            scores.append((accuracy, -float(F.cross_entropy(logits, y[held]))))
            curve.append((one, accuracy))
            if on_strength is not None:
                on_strength(one, accuracy)
        strength = tried[scores.index(max(scores))]
    [(_, weight, bias)] = _path(x, y, [strength], classes)
    logits = _to(test_x, device) @ weight.T + bias
    accuracy, top5 = _accuracies(logits, torch.from_numpy(np.array(test_y, np.int64)).to(device))
    return ProbeResult(
        accuracy=accuracy,
        top5=top5,
        strength=float(strength),
        curve=tuple(curve),
        weight=weight.cpu().numpy(),
        bias=bias.cpu().numpy(),
    )


def _path(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], strengths: Sequence[float], classes: int
) -> Iterator[tuple[float, Float[Tensor, "c d"], Float[Tensor, " c"]]]:
    """The best classifier of each strength, each search beginning where the last one ended.

    Features lean on each other, which makes a long narrow valley of the loss. The search therefore goes in the
    coordinates of their principal axes, each stretched to about the same curvature: at even odds the curvature along
    an axis of variance v is v / c + strength (Böhning 1992). The minimum is the same, and found in dozens of steps
    instead of thousands.
    """
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 1e-12 * mean.abs().clamp(min=1e-12), deviation, 1.0)  # the same in all pictures
    standard = (x - mean) / deviation
    variances, axes = torch.linalg.eigh(standard.T @ standard / len(x))
    turned = standard @ axes
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device)  # along the axes
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device)
    for strength in strengths:
        stretch = (variances.clamp(min=0) / classes + strength).rsqrt()
        weight, bias = _minimum(turned, y, strength, stretch, weight, bias)
        folded = weight @ axes.T / deviation
        yield strength, folded, bias - folded @ mean


def _minimum(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    strength: float,
    stretch: Float[Tensor, " d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"],
) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
    """The weights and bias that make the regularised loss smallest, by L-BFGS from a start."""
    stretched = (weight / stretch).requires_grad_()
    bias = bias.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [stretched, bias],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        tolerance_grad=_TOLERANCES[x.dtype],
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        rows = stretched * stretch
        value = F.cross_entropy(x @ rows.T + bias, y) + strength / 2 * rows.square().sum()
        value.backward()
        return value

    search.step(cast(Callable[[], float], loss))
    return (stretched * stretch).detach(), bias.detach()


def _held_out(labels: Int[np.ndarray, " n"], seed: int) -> np.ndarray:
    """Which pictures judge the strengths: a fifth of each class, in the draw of a seed."""
    held = np.zeros(len(labels), dtype=bool)
    numbers = np.random.default_rng(seed)
    for label in np.unique(labels):
        places = numbers.permutation(np.flatnonzero(labels == label))
        held[places[: round(len(places) / _HELD_OUT)]] = True
    if not held.any():
        raise UsageError(
            f"{len(labels)} pictures of {len(np.unique(labels))} classes are too few to hold a fifth of each class out. "
            "Add pictures; or where you call linear_probe yourself, give it a strength (0.01 is a usual one)."
        )
    return held


def knn(
    train_x: Float[np.ndarray, "n d"],
    train_y: Int[np.ndarray, " n"],
    test_x: Float[np.ndarray, "m d"],
    test_y: Int[np.ndarray, " m"],
    *,
    k: int = 20,
    temperature: float | None = 0.07,
    classes: int | None = None,
    chunk: int = 1024,
    device: str | torch.device = "cpu",
) -> KnnResult:
    """Let the k most similar training pictures vote.

    Similarity is the cosine of two features; a neighbour of similarity s has exp(s / temperature) votes for its class.

    Args:
        train_x, train_y: features and classes (from 0) of those that vote.
        test_x, test_y: of those voted about.
        k: how many vote.
        temperature: see above; None for one vote each.
        classes: how many there are; None for as many as the labels name.
        chunk: test pictures compared at once, which bounds the memory to chunk · n numbers.
        device: where to compute.

    Raises:
        UsageError: data that do not fit each other or are not finite, or fewer training pictures than neighbours.
    """
    classes = _checked(train_x, train_y, test_x, test_y, classes)
    if whole_number("k", k) > len(train_x):
        raise UsageError(
            f"k = {k} neighbours are to vote, but there are only {len(train_x)} pictures to learn from. Give a k of at most "
            f"{len(train_x)}."
        )
    if temperature is not None and real_number("temperature", temperature) <= 0:
        raise UsageError(f"temperature must be more than 0, or None for equal votes; {temperature!r} came.")
    known = F.normalize(torch.from_numpy(np.array(train_x, np.float32)).to(device), dim=1)
    labels = torch.from_numpy(np.array(train_y, np.int64)).to(device)
    votes = []
    for part in torch.from_numpy(np.array(test_x, np.float32)).split(whole_number("chunk", chunk)):
        near, places = (F.normalize(part.to(device), dim=1) @ known.T).topk(k, dim=1)
        # The nearest has one vote, which changes no winner and keeps exp in range at any temperature.
        weights = torch.ones_like(near) if temperature is None else ((near - near[:, :1]) / temperature).exp()
        votes.append(torch.zeros(len(part), classes, device=device).scatter_add_(1, labels[places], weights))
    counted = torch.cat(votes)
    accuracy, top5 = _accuracies(counted, torch.from_numpy(np.array(test_y, np.int64)).to(device))
    predictions = counted.argmax(-1).cpu().numpy()
    return KnnResult(accuracy=accuracy, top5=top5, k=k, temperature=temperature, predictions=predictions)


_POOLING: dict[Feature, Literal["class", "mean", "class_and_mean"]] = {
    "class_token": "class",
    "mean_patches": "mean",
    "class_and_mean": "class_and_mean",
}


def head_config(config: NetworkConfig, feature: Feature, classes: int) -> Any:
    """The configuration of the same network with a classifier that reads a feature, and nothing in between.

    Raises:
        UsageError: the network cannot pool in that way.
    """
    if feature == "blocks":
        raise UsageError(
            "No classifier of a network reads all of its blocks; a probe of the feature 'blocks' stays a probe."
        )
    known = {field.name for field in fields(cast(Any, config))}
    changes: dict[str, Any] = {"num_classes": classes}
    if "distillation_head" in known:
        changes["distillation_head"] = False
    if feature != "pooled":
        if "pool" not in known:
            raise UsageError(
                f"A network of a {type(config).__name__} pools in one way only; a head can be had for its feature 'pooled'."
            )
        changes["pool"] = _POOLING[feature]
        changes |= {name: value for name, value in (("pool_norm", False), ("representation", None)) if name in known}
    return replace(cast(Any, config), **changes)


def with_linear_head(
    model: Network, probe: ProbeResult, *, feature: Feature = "pooled", labels: Sequence[str] = ()
) -> Network:
    """A copy of a model whose classifier is the probe: its logits are the probe's, and it can be saved and predicted with.

    For features other than "pooled" the copy pools in their way; a norm or a layer between pooling and classifier is left
    out, and so is a distillation head, which the probe knows nothing of.

    Args:
        model: the model whose features were probed.
        probe: the probe.
        feature: what it was fitted to.
        labels: the names of its classes.

    Raises:
        UnknownNameError: no such feature.
        UsageError: a probe of other features, labels of another number, or a model that cannot pool in that way.
    """
    if feature not in get_args(Feature):
        raise UnknownNameError("feature", feature, get_args(Feature))
    classes, width = probe.weight.shape
    if labels and len(labels) != classes:
        raise UsageError(f"{len(labels)} labels came for a probe of {classes} classes.")
    fitted: Any = type(model)(head_config(model.config, feature, classes))
    if tuple(fitted.head.weight.shape) != (classes, width):
        raise UsageError(
            f"The probe reads {width} numbers, but the model's {feature!r} has {fitted.head.weight.shape[1]}. Was it fitted "
            "to features of another kind or model?"
        )
    own = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("head.", "distillation_head."))
    }
    expected = fitted.state_dict().keys()
    fitted.load_state_dict({name: tensor for name, tensor in own.items() if name in expected}, strict=False)
    with torch.no_grad():
        fitted.head.weight.copy_(torch.from_numpy(probe.weight))
        fitted.head.bias.copy_(torch.from_numpy(probe.bias))
    note = f"The classifier is a linear probe of the features {feature!r}; nothing else was trained for its classes."
    fitted.record = replace(model.record, labels=tuple(labels), problem="single_label", notes=(*model.record.notes, note))
    device = next(model.parameters()).device
    return cast(Network, fitted.to(device).eval())


def _checked(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, classes: int | None) -> int:
    """Refuse what does not fit; how many classes there are."""
    for kind, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if len(x) == 0 or len(x) != len(y):
            raise UsageError(
                f"The {kind} part has {len(x)} features and {len(y)} labels; one of each per picture is needed."
            )
        all_finite(f"features of the {kind} part", x)
    if train_x.shape[1] != test_x.shape[1]:
        raise UsageError(f"Features of {train_x.shape[1]} and of {test_x.shape[1]} numbers came; both must be of one model.")
    least, most = min(train_y.min(), test_y.min()), max(train_y.max(), test_y.max())
    if least < 0 or (classes is not None and most >= classes):
        raise UsageError(
            f"Labels go from {least} to {most}; they must count from 0{f' to {classes - 1}' if classes else ''}."
        )
    return whole_number("classes", int(most) + 1 if classes is None else classes)


def _to(x: np.ndarray, device: str | torch.device) -> Float[Tensor, "n d"]:
    """In double precision, in which the search ends where it should, as far as the device has it."""
    kind = np.float32 if torch.device(device).type == "mps" else np.float64
    return torch.from_numpy(np.array(x, kind)).to(device)


def _accuracies(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> tuple[float, float]:
    """The shares of rows whose label has the highest score, and one of the five highest."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return float(best[:, 0].double().mean()), float(best.any(1).double().mean())
