"""Groups, freezing and optimisers against timm's, torch's and sums done by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from vitral.errors import UnknownNameError, UsageError
from vitral.layers.block import DropPath
from vitral.models.catalogue import create_model
from vitral.training.optim import Lamb, build_optimizer, freeze, parameter_groups, training_mode


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As for users: annotations are not held against what comes, so the sentence that answers it is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def small_vit(**options: Any) -> Any:
    sizes = {"width": 16, "heads": 2, "depth": 3, "mlp_width": 32, "image_size": 32, "num_classes": 4}
    return create_model("vit_ti16", **sizes | options)


def scales_by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}


# Groups


def test_layer_decay_scales_are_timms() -> None:
    timm = pytest.importorskip("timm")
    optim = pytest.importorskip("timm.optim")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=16, num_heads=2, depth=3, num_classes=4)
    peer = scales_by_name(theirs, optim.param_groups_layer_decay(theirs, layer_decay=0.7))
    ours = small_vit()
    mine = scales_by_name(ours, parameter_groups(ours, 0.05, layer_decay=0.7))
    assert len(mine) == len(list(ours.parameters())) == len(peer)

    parts = {"cls_token": ("class_token",), "pos_embed": ("position_table",), "patch_embed": ("patch",), "head": ("head",)}
    parts |= {f"blocks.{index}": (f"blocks.{index}",) for index in range(3)}
    for part, (own,) in parts.items():
        [scale] = {value for name, value in peer.items() if name.startswith(part)}
        [found] = {value for name, value in mine.items() if name.startswith(own)}
        assert found == pytest.approx(scale, rel=1e-12)
    # The last norm stands behind the blocks, as in BEiT's and MAE's code; timm counts it to the last block.
    assert {value for name, value in mine.items() if name.startswith("norm.")} == {1.0}


def test_scale_is_the_power_of_the_depth_and_decay_stays_with_matrices() -> None:
    model = small_vit()
    groups = parameter_groups(model, 0.3, layer_decay=0.5)
    for name, scale in scales_by_name(model, groups).items():
        assert scale == 0.5 ** (3 + 1 - model.depth_of(name))
    plain = {decay: set() for decay in (0.3, 0.0)}
    layered = {decay: set() for decay in (0.3, 0.0)}
    for found, several in ((plain, parameter_groups(model, 0.3)), (layered, groups)):
        for group in several:
            found[group["weight_decay"]] |= {id(parameter) for parameter in group["params"]}
    assert plain == layered
    assert [group["weight_decay"] for group in groups] == [0.3] * 5 + [0.0] * 5
    assert [group["lr_scale"] for group in groups[:5]] == [0.0625, 0.125, 0.25, 0.5, 1.0]


def test_without_layer_decay_there_are_two_groups_whatever_the_module() -> None:
    groups = parameter_groups(nn.LayerNorm(3), 0.1)
    assert [(len(group["params"]), group["weight_decay"], group["lr_scale"]) for group in groups] == [
        (0, 0.1, 1.0),
        (2, 0.0, 1.0),
    ]


def test_a_module_that_knows_no_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear does not say how deep"):
        parameter_groups(nn.Linear(2, 2), 0.1, layer_decay=0.9)
    with pytest.raises(UsageError, match="Linear does not say how deep"):
        freeze(nn.Linear(2, 2), 1)
    freeze(nn.Linear(2, 2), 0)


@pytest.mark.parametrize("wrong", [{"layer_decay": 0.0}, {"layer_decay": 1.5}, {"weight_decay": -1}])
def test_rates_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        parameter_groups(small_vit(), **{"weight_decay": 0.1} | wrong)


# Freezing


def test_freezing_leaves_what_lies_behind() -> None:
    model = small_vit()
    for depth in range(5):
        freeze(model, depth)
        names = [name for name, one in model.named_parameters() if one.requires_grad]
        parts = {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}
        everything = ["patch", "class_token", "position_table", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
        assert parts == set(everything[(0, 3, 4, 5, 6)[depth] :])
    freeze(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(UsageError, match=r"from 0 \(nothing\) to 4 .* 5 came"):
        freeze(small_vit(), 5)


def test_a_step_moves_only_what_is_not_frozen() -> None:
    model = small_vit()
    freeze(model, 3)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer("adamw", parameter_groups(model, 0.05, layer_decay=0.8), learning_rate=0.1)
    model(torch.randn(2, 3, 32, 32)).logits.square().sum().backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith(("blocks.2", "norm", "head"))}


def test_frozen_blocks_drop_nothing_in_training() -> None:
    model = small_vit(drop_path=0.9, depth=4)
    freeze(model, 4)  # the embedding and blocks 0 to 2
    training_mode(model)
    dropping = {name: module.training for name, module in model.named_modules() if isinstance(module, DropPath)}
    assert dropping == {f"blocks.{index}.drop_path": index == 3 for index in (1, 2, 3)}
    assert model.training
    assert model.head.training
    seen: list[Tensor] = []
    model.blocks[2].register_forward_hook(lambda module, given, made: seen.append(made))
    pixels = torch.randn(4, 3, 32, 32)
    answers = [model(pixels).logits for _ in range(4)]
    assert all(torch.equal(seen[0], other) for other in seen[1:])
    assert not all(torch.equal(answers[0], other) for other in answers[1:])


# Optimisers


def quadratic(seed: int = 0) -> tuple[list[nn.Parameter], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (5,), (3, 4, 2), (2, 2)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    with torch.no_grad():
        parameters[3].zero_()  # a layer that starts at zero has no size to go by
    return parameters, [torch.randn(shape, generator=generator) for shape in shapes]


def descend(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], goals: list[Tensor], steps: int = 20) -> None:
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 40) * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        sum(((one - goal) ** 2).sum() * (step + 1) for one, goal in zip(parameters, goals, strict=True)).backward()
        if step == 7:
            parameters[2].grad = None  # a layer that a batch did not touch
        optimizer.step()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_lamb_is_timms(clip: float | None) -> None:
    optim = pytest.importorskip("timm.optim")
    (ours, goals), (theirs, _) = quadratic(), quadratic()
    group = [{"params": [0, 2, 3], "weight_decay": 0.1}, {"params": [1], "weight_decay": 0.0}]
    mine = Lamb([{**one, "params": [ours[i] for i in one["params"]]} for one in group])
    peer = optim.Lamb([{**one, "params": [theirs[i] for i in one["params"]]} for one in group], max_grad_norm=clip)
    for step in range(20):
        for optimizer, parameters in ((mine, ours), (peer, theirs)):
            for each in optimizer.param_groups:
                each["lr"] = 0.05 * (1 - step / 40)
            optimizer.zero_grad()
            sum(((one - goal) ** 2).sum() * (step + 1) for one, goal in zip(parameters, goals, strict=True)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(ours, clip)
        mine.step()
        peer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-6)


def test_lamb_is_algorithm_2_written_out() -> None:
    [weight, *_], _ = quadratic()
    weight = nn.Parameter(weight.detach().double())
    gradients = torch.randn(5, *weight.shape, dtype=torch.float64)
    x, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = Lamb([weight], lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        r = m / (1 - 0.8**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-3) + 0.1 * x
        x = x - 0.02 * x.norm() / r.norm() * r
        weight.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), x.detach(), rtol=1e-12, atol=1e-12)


def test_lamb_goes_on_from_its_state_to_the_bit() -> None:
    (whole, goals), (halves, _) = quadratic(), quadratic()
    descend(Lamb(whole, weight_decay=0.1), whole, goals, steps=2)
    first = Lamb(halves, weight_decay=0.1)
    descend(first, halves, goals, steps=1)
    second = Lamb(halves, weight_decay=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for group in second.param_groups:
        group["lr"] = 0.05 * (1 - 1 / 40)
    second.zero_grad()
    sum(((one - goal) ** 2).sum() * 2 for one, goal in zip(halves, goals, strict=True)).backward()
    second.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adamw", lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.99))),
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.7, nesterov=True)),
    ],
)
def test_optimisers_by_name_are_torchs(name: Any, theirs: Any) -> None:
    (ours, goals), (peer, _) = quadratic(), quadratic()
    groups = [{"params": one[:2], "weight_decay": 0.1, "lr_scale": 0.5} for one in (ours, peer)]
    rest = [{"params": one[2:], "weight_decay": 0.0} for one in (ours, peer)]
    mine = build_optimizer(name, [groups[0], rest[0]], learning_rate=0.05, momentum=0.7, betas=(0.8, 0.99))
    assert [group["lr"] for group in mine.param_groups] == [0.025, 0.05]
    descend(mine, ours, goals)
    descend(theirs([groups[1], rest[1]]), peer, goals)
    for one, other in zip(ours, peer, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_lamb_by_name_has_its_usual_numbers() -> None:
    optimizer = build_optimizer("lamb", parameter_groups(small_vit(), 0.02), learning_rate=0.004)
    assert isinstance(optimizer, Lamb)
    assert {(group["eps"], group["betas"]) for group in optimizer.param_groups} == {(1e-6, (0.9, 0.999))}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]


@pytest.mark.usefixtures("unchecked")
def test_wrong_names_and_numbers_are_refused() -> None:
    groups = parameter_groups(nn.Linear(2, 2), 0.1)
    with pytest.raises(UnknownNameError, match="'adamw'"):
        build_optimizer("adam", groups, learning_rate=0.1)  # type: ignore[arg-type]
    for wrong in ({"learning_rate": -1.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            build_optimizer("adamw", groups, **{"learning_rate": 0.1} | wrong)
