"""The training loop against loops, schedules and groups that were written by others or by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.errors import TrainingError, UsageError
from vitral.training.loop import Epoch, evaluate, fit, order_of
from vitral.training.optim import parameter_groups
from vitral.training.schedule import warmup_cosine


class Tiny(nn.Module):
    """A classifier of 1x2x2 pictures with one norm and, if asked, dropout."""

    def __init__(self, classes: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, classes)

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.dropout(self.norm(pixels.flatten(1)))))


def tiny(**options: Any) -> Tiny:
    torch.manual_seed(3)
    return Tiny(**options)


def stripes(count: int = 40) -> tuple[Tensor, Tensor]:
    """Pictures bright above (class 0) or bright below (class 1), with noise."""
    generator = torch.Generator().manual_seed(7)
    targets = torch.arange(count) % 2
    pixels = 0.3 * torch.randn(count, 1, 2, 2, generator=generator)
    pixels[torch.arange(count), 0, targets] += 1
    return pixels, targets


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# The schedule


def test_the_schedule_has_its_closed_form() -> None:
    factors = [warmup_cosine(step, steps=12, warmup_steps=4) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[6] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert factors[12] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_cosine_is_the_one_of_torch(floor: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=floor)
    for step in range(20):
        assert warmup_cosine(step, steps=20, floor=floor) == pytest.approx(schedule.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        schedule.step()
    assert warmup_cosine(10**6, steps=20, floor=floor) == floor


def test_warm_up_and_cosine_are_the_ones_of_transformers() -> None:
    transformers = pytest.importorskip("transformers.optimization")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=30)
    for step in range(30):
        theirs = schedule.get_last_lr()[0]  # whose warm-up begins with a step that does not move
        ours = warmup_cosine(step, steps=30, warmup_steps=5)
        assert ours == pytest.approx(theirs + 0.2 if step < 5 else theirs, abs=1e-9)
        optimizer.step()
        schedule.step()


# The groups


def test_groups_are_the_ones_of_timm_on_its_own_vit() -> None:
    timm = pytest.importorskip("timm")
    optim = pytest.importorskip("timm.optim")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, init_values=1e-5, reg_tokens=2)
    # timm names the table and the class token; that registers are tokens as well is written here.
    theirs = optim.param_groups_weight_decay(model, 0.1, no_weight_decay_list={*model.no_weight_decay(), "reg_token"})
    ours = parameter_groups(model, 0.1)
    for decay in (0.1, 0.0):
        [group], [peer] = ([g for g in groups if g["weight_decay"] == decay] for groups in (ours, theirs))
        assert {id(p) for p in group["params"]} == {id(p) for p in peer["params"]}


def test_only_matrices_of_layers_decay() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 2)
            self.attention = nn.MultiheadAttention(4, 2)
            self.norm = nn.LayerNorm(4)
            self.table = nn.Embedding(5, 4)
            self.class_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.position_table = nn.Parameter(torch.zeros(1, 5, 4))
            self.head = nn.Linear(4, 2)
            self.tied = self.head
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    model = Parts()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying, free = ({names[p] for p in group["params"]} for group in parameter_groups(model, 0.3))
    assert decaying == {
        "convolution.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    }
    assert decaying | free == {name for name in names.values() if not name.startswith("frozen")}


# The loop


def test_the_loop_takes_the_steps_of_one_written_out() -> None:
    pixels, targets = stripes(10)
    ours, theirs = tiny(), tiny()
    fit(ours, pixels, targets, epochs=3, batch_size=4, learning_rate=0.05, weight_decay=0.5, warmup=1 / 3, seed=5)

    matrix = [theirs.head.weight]
    others = [theirs.norm.weight, theirs.norm.bias, theirs.head.bias]
    optimizer = torch.optim.AdamW([{"params": matrix}, {"params": others, "weight_decay": 0.0}], weight_decay=0.5)
    rates = [1 / 3, 2 / 3, 1.0] + [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    batches = [
        order_of(10, seed=5, epoch=epoch)[cut] for epoch in (1, 2, 3) for cut in (slice(4), slice(4, 8), slice(8, 10))
    ]
    for rate, batch in zip(rates, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * rate
        loss = -F.log_softmax(theirs(pixels[batch]).logits, -1)[torch.arange(len(batch)), targets[batch]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-6)


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + 0.1 * torch.randn(pixels.shape, generator=generator)


def test_one_seed_gives_the_same_weights_to_the_bit_and_another_does_not() -> None:
    pixels, targets = stripes()
    trained = []
    for seed in (1, 1, 2):
        model = tiny(dropout=0.3)
        torch.rand(seed)  # what the caller drew before has no part in it
        fit(model, pixels, targets, epochs=2, batch_size=8, learning_rate=0.01, augment=jitter, seed=seed)
        trained.append(weights(model))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_the_callers_random_numbers_and_pictures_are_left_alone() -> None:
    pixels, targets = stripes()
    before, state = pixels.clone(), torch.get_rng_state()
    model = tiny(dropout=0.3)
    torch.set_rng_state(state)
    fit(model, pixels, targets, epochs=1, batch_size=8, learning_rate=0.01, augment=jitter)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels, before)


def test_the_order_is_a_permutation_that_seed_and_epoch_alone_decide() -> None:
    orders = {(seed, epoch): order_of(50, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)}
    assert all(order.sort().values.equal(torch.arange(50)) for order in orders.values())
    assert len({tuple(order.tolist()) for order in orders.values()}) == 9
    assert order_of(50, seed=1, epoch=2).equal(orders[1, 2])


def test_it_learns_what_can_be_separated() -> None:
    pixels, targets = stripes()
    model = tiny()
    history = fit(model, pixels, targets, epochs=40, batch_size=8, learning_rate=0.05)
    assert evaluate(model, pixels, targets) == 1.0
    assert history.losses[-1] < 0.1 < history.losses[0]
    assert not model.training


def test_smoothing_keeps_the_loss_above_the_entropy_of_the_targets() -> None:
    pixels, targets = stripes()
    history = fit(tiny(), pixels, targets, epochs=60, batch_size=8, learning_rate=0.05, label_smoothing=0.2)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert entropy < history.losses[-1] < entropy + 0.1


def test_the_callback_sees_every_epoch_and_may_evaluate() -> None:
    pixels, targets = stripes()
    model, seen = tiny(), []

    def look(epoch: Epoch) -> None:
        seen.append((epoch, evaluate(model, pixels, targets)))

    history = fit(model, pixels, targets, epochs=3, batch_size=16, learning_rate=0.01, on_epoch=look)
    assert tuple(epoch for epoch, _ in seen) == history.epochs
    assert [epoch.number for epoch in history.epochs] == [1, 2, 3]
    assert history.epochs[0].learning_rate > history.epochs[2].learning_rate > 0
    assert history.seconds == pytest.approx(sum(epoch.seconds for epoch in history.epochs))


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_step() -> None:
    pixels, targets = stripes(8)
    pixels[int(order_of(8, seed=0, epoch=1)[5])] = math.nan
    model = tiny()
    with pytest.raises(TrainingError, match=r"nan at step 3 of 8 \(epoch 1"):
        fit(model, pixels, targets, epochs=2, batch_size=2, learning_rate=0.01)
    assert weights(model).isfinite().all()
    assert not model.training


def test_accuracy_is_the_share_of_right_answers() -> None:
    class Echo(nn.Module):
        def forward(self, pixels: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=pixels.flatten(1))

    pixels = torch.eye(4).reshape(4, 4, 1, 1)
    for batch_size in (1, 3, 256):
        assert evaluate(Echo(), pixels, torch.tensor([0, 1, 2, 0]), batch_size=batch_size) == 0.75


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"warmup": 1.0}, {"warmup": -0.1}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 0.1} | wrong
    with pytest.raises(UsageError, match=next(iter(wrong))):
        fit(tiny(), *stripes(), **options)


def test_no_pictures_are_refused() -> None:
    with pytest.raises(UsageError, match="0 pictures and 0 targets"):
        fit(tiny(), torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.long), epochs=1, batch_size=1, learning_rate=0.1)
