"""Which parameters an optimiser treats how: decay, layer-wise learning rates, freezing, and the optimisers themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from vitral.base.numbers import real_number, whole_number
from vitral.errors import UnknownNameError, UsageError
from vitral.models.network import Network, backbone_of

__all__ = ["Lamb", "OptimizerName", "build_optimizer", "freeze", "parameter_groups", "training_mode"]

OptimizerName = Literal["adamw", "sgd", "lamb"]
"""AdamW (Loshchilov and Hutter 2019), SGD with momentum, or LAMB (You et al. 2020)."""

_USUAL_EPS = {"adamw": 1e-8, "lamb": 1e-6}  # as their papers' code has them


def parameter_groups(
    model: nn.Module, weight_decay: float, *, layer_decay: float = 1.0, backbone_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: the matrices, which decay, and all the rest, which does not.

    Decay pulls towards zero, which for a matrix means towards a simpler map. For the scale of a norm, a bias, an
    embedding of position or a class token zero is no simpler than another value, so those are left alone, as in the
    trainings of ViT and DeiT. What decays is therefore recognised by what it does and not by its name: it is the
    `weight` (or the fused `in_proj_weight`) of a layer, has two or more dimensions and is not a table to look up in.

    With `layer_decay` below 1, layers near the input move less than those near the head: at depth t of a model of D
    blocks the learning rate is multiplied by layer_decay ** (D + 1 − t). (ELECTRA, Clark et al. 2020, appendix B;
    for pictures BEiT, Bao et al. 2022.) Each group carries its factor as "lr_scale"; whoever sets learning rates
    sets `group["lr"] = rate * group["lr_scale"]`.

    With a `backbone_rate`, what lies in the model's backbone moves by another rate than the rest: a network that has
    learned from pictures already needs smaller steps than what is new behind it (Carion et al. 2020, DETR, appendix A.4).

    Args:
        model: the model; parameters that need no gradient are left out, shared ones come once. For layer-wise rates a
            `Network`, whose `depths` of parameters are 0 before the blocks, i + 1 in block i and D + 1 behind them.
        weight_decay: the decay of the matrices.
        layer_decay: the factor per layer, in (0, 1].
        backbone_rate: the factor on the learning rate of the backbone.

    Returns:
        The groups in the form of `torch.optim`, the decaying ones first, each kind from the input to the head; together
        they hold every trained parameter. Without layer decay and backbone rate there are two, of which one may be empty.

    Raises:
        UsageError: a number out of its range, or a model that does not say how deep its parameters lie, or has no backbone.
    """
    if real_number("weight_decay", weight_decay) < 0:
        raise UsageError(f"weight_decay must be 0 or more; {weight_decay!r} came.")
    if not 0 < real_number("layer_decay", layer_decay) <= 1:
        raise UsageError(f"layer_decay must be in (0, 1]; {layer_decay!r} came.")
    if real_number("backbone_rate", backbone_rate) < 0:
        raise UsageError(f"backbone_rate must be 0 or more; {backbone_rate!r} came.")
    if backbone_rate != 1 and backbone_of(model) is None:
        raise UsageError(f"A {type(model).__name__} has no backbone to learn at another rate; leave backbone_rate at 1.")
    scale_of = _scales(model, layer_decay, backbone_rate)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    if layer_decay == 1:  # two in any case, so that a caller may count on them
        groups = {(decays, 1.0): _group(weight_decay if decays else 0.0, 1.0) for decays in (True, False)}
    for name, parameter, decays in _roles(model):
        if parameter.requires_grad:
            scale = scale_of(name)
            group = groups.setdefault((decays, scale), _group(weight_decay if decays else 0.0, scale))
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (not key[0], key[1]))]


def _group(weight_decay: float, scale: float) -> dict[str, Any]:
    return {"params": [], "weight_decay": weight_decay, "lr_scale": scale}


def _roles(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Every parameter once, with its name and whether it is a matrix that decays."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                is_matrix = name in {"weight", "in_proj_weight"} and parameter.ndim >= 2
                full_name = f"{prefix}.{name}" if prefix else name
                yield full_name, parameter, is_matrix and not isinstance(module, nn.Embedding)


def _scales(model: nn.Module, layer_decay: float, backbone_rate: float) -> Callable[[str], float]:
    """From a parameter's name to the factor on its learning rate."""

    found = backbone_of(model)
    begin = "" if found is None else f"{found[0]}."

    def of_part(name: str) -> float:
        return backbone_rate if begin and name.startswith(begin) else 1.0

    if layer_decay == 1:
        return of_part
    network = _network(model)
    depths = network.depths()
    return lambda name: float(layer_decay ** (network.depth + 1 - depths[name])) * of_part(name)


def _network(model: nn.Module) -> Network:
    """A model that knows how deep its parameters lie."""
    if not isinstance(model, Network):
        raise UsageError(
            f"A {type(model).__name__} does not say how deep its parameters lie, which freezing and layer-wise learning "
            "rates need. Leave layer_decay at 1 and freeze nothing, or make it a vitral.models.network.Network."
        )
    return model


def freeze(model: nn.Module, depth: int) -> None:
    """Let everything before some depth stay as it is.

    What is frozen needs no gradient, so the backward pass ends there, which saves up to two thirds of a step. Call it
    before `parameter_groups`, and train in `training_mode`, which keeps dropout and stochastic depth out of the frozen
    blocks: they are to give what they gave when they were trained. A later call with a smaller depth thaws what lies
    between.

    Args:
        model: a `Network` of D blocks; any module, where nothing is to be frozen.
        depth: 0 freezes nothing, 1 what stands before the blocks (patches, tokens, positions), i + 1 the first i blocks as
            well, D + 1 everything but what stands behind the last block (the last norm and the head).

    Raises:
        UsageError: no such depth, or a model that does not know its own.
    """
    depth = whole_number("The depth to freeze", depth, least=0)
    if depth == 0 and not isinstance(model, Network):
        model.requires_grad_(True)
        return
    network = _network(model)
    if depth > network.depth + 1:
        raise UsageError(
            f"The depth to freeze must be from 0 (nothing) to {network.depth + 1} (all but what stands behind the last of "
            f"{network.depth} blocks); {depth} came, which would leave nothing to train."
        )
    depths = network.depths()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(depths[name] >= depth)


def training_mode(model: nn.Module) -> None:
    """Put a model into training mode, except for its frozen parts.

    A module whose parameters are all frozen stays in evaluation mode, with what lies in it: no dropout, no stochastic depth,
    no moving statistics. A module without parameters follows the one it lies in.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def build_optimizer(
    name: OptimizerName,
    groups: Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | None = None,
    nesterov: bool = True,
) -> Optimizer:
    """An optimiser by its name.

    Args:
        name: "adamw", "sgd" or "lamb".
        groups: see `parameter_groups`; each begins at the learning rate times its "lr_scale".
        learning_rate: the rate it begins with.
        momentum: of SGD.
        betas: of AdamW and LAMB: how slowly the averages of the gradient and of its square move.
        eps: added to the denominator of AdamW and LAMB; None for the usual 1e-8 and 1e-6.
        nesterov: whether SGD's momentum looks ahead (Sutskever et al. 2013, equations 3 and 4).

    Raises:
        UnknownNameError: no such optimiser.
        UsageError: a number out of its range.
    """
    if name not in get_args(OptimizerName):
        raise UnknownNameError("optimizer", name, get_args(OptimizerName))
    _check_rates(learning_rate, momentum, betas, eps)
    eps = _USUAL_EPS.get(name) if eps is None else eps
    scaled = [{**group, "lr": learning_rate * group.get("lr_scale", 1.0)} for group in groups]
    if name == "sgd":
        return torch.optim.SGD(scaled, lr=learning_rate, momentum=momentum, nesterov=nesterov and momentum > 0)
    if name == "lamb":
        return Lamb(scaled, lr=learning_rate, betas=betas, eps=cast(float, eps))
    parameters = [parameter for group in scaled for parameter in group["params"]]
    fused = all(one.is_floating_point() and one.device.type in {"cpu", "cuda", "mps"} for one in parameters)
    return torch.optim.AdamW(scaled, lr=learning_rate, betas=betas, eps=cast(float, eps), fused=fused or None)


def _check_rates(learning_rate: float, momentum: float, betas: tuple[float, float], eps: float | None) -> None:
    """Refuse numbers no optimiser can begin with."""
    if real_number("learning_rate", learning_rate) < 0:
        raise UsageError(f"learning_rate must be 0 or more; {learning_rate!r} came.")
    for kind, number in (("momentum", momentum), ("The first of betas", betas[0]), ("The second of betas", betas[1])):
        if not 0 <= real_number(kind, number) < 1:
            raise UsageError(f"{kind} must be in [0, 1); {number!r} came.")
    if eps is not None and real_number("eps", eps) <= 0:
        raise UsageError(f"eps must be more than 0; {eps!r} came.")


class Lamb(Optimizer):
    """Adam whose every layer moves by the learning rate times the size of its weights.

    You et al. 2020, "Large Batch Optimization for Deep Learning" (https://arxiv.org/abs/1904.00962), algorithm 2, with
    φ(z) = z:

        r = m̂ / (√v̂ + eps)            the step Adam would take
        x ← x − lr · ‖x‖ / ‖r + λx‖ · (r + λx)

    Layers in groups without weight decay (norms, biases) are left at Adam's step, as in the authors' code, and so are
    layers that are all zero. Clip the gradients yourself where you want them clipped: the paper's code and DeiT III (Touvron
    et al. 2022) clip to norm 1.

    Args:
        params: parameters or groups of them.
        lr: the learning rate.
        betas: how slowly the averages of the gradient, m, and of its square, v, move.
        eps: added to the denominator.
        weight_decay: λ.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: computes the loss and its gradients anew; its value is given back.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                self._move(moved, group)
        return loss

    def _move(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        """A step of one group, over all its layers at once."""
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        gradients = [cast(Tensor, parameter.grad) for parameter in moved]
        states = [self.state[parameter] for parameter in moved]
        for parameter, state in zip(moved, states, strict=True):
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        # m̂ and v̂ are m and v divided by 1 − β ** step: both begin at zero (Kingma and Ba 2015, section 3).
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, [(1 - beta2 ** state["step"]) ** 0.5 for state in states])
        torch._foreach_add_(below, group["eps"])
        moves = torch._foreach_div(means, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_div_(moves, below)
        if decay != 0:
            torch._foreach_add_(moves, moved, alpha=decay)
            torch._foreach_mul_(moves, _trust(torch._foreach_norm(moved), torch._foreach_norm(moves)))
        torch._foreach_add_(moved, moves, alpha=-group["lr"])


def _trust(weights: Iterable[Float[Tensor, ""]], moves: Iterable[Float[Tensor, ""]]) -> list[Float[Tensor, ""]]:
    """How much longer each layer's move becomes: ‖x‖ / ‖r + λx‖, or 1 where one of them is zero."""
    sizes, lengths = torch.stack(list(weights)), torch.stack(list(moves))
    ratios = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
    return list(ratios.unbind())
