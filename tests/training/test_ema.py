"""The moving average against its closed form."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitral.errors import CheckpointError, UsageError
from vitral.training.ema import Ema


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def moved(network: nn.Module, count: int) -> list[dict[str, Tensor]]:
    """So many random walks of a network's weights, buffers included, and where it stood after each."""
    stations = []
    for _ in range(count):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)
        stations.append(copy.deepcopy(network.state_dict()))
    return stations


def averaged_state(average: Ema, network: nn.Module) -> dict[str, Tensor]:
    with average.averaged(network) as inside:
        return copy.deepcopy(inside.state_dict())


@pytest.mark.parametrize("warmup", [False, True])
def test_the_closed_form(warmup: bool) -> None:
    network = model()
    first = copy.deepcopy(network.state_dict())
    average = Ema(network, 0.6, warmup)
    stations = []
    for _ in range(12):
        stations += moved(network, 1)
        average.update(network)
    decays = [min(0.6, (1 + s) / (10 + s)) if warmup else 0.6 for s in range(12)]
    assert (decays[0], decays[-1]) == ((0.1, 12 / 21) if warmup else (0.6, 0.6))
    # Station s is weighted by 1 − d_s and by every later decay; the start by all of them.
    weights = [(1 - decays[s]) * torch.tensor(decays[s + 1 :]).double().prod() for s in range(12)]
    start = torch.tensor(decays).double().prod()
    assert float(sum(weights) + start) == pytest.approx(1.0)
    kept = averaged_state(average, network)
    for name, _ in network.named_parameters():
        mean = start * first[name] + sum(w * station[name] for w, station in zip(weights, stations, strict=True))
        torch.testing.assert_close(kept[name].double(), mean.double(), rtol=1e-5, atol=1e-5)
    for name, buffer in network.named_buffers():
        assert torch.equal(kept[name], buffer)


def test_the_average_is_swapped_in_and_back_whatever_happens() -> None:
    network = model()
    average = Ema(network, 0.9)
    moved(network, 1)
    before = copy.deepcopy(network.state_dict())
    pointers = [parameter.data_ptr() for parameter in network.parameters()]

    def interrupted() -> None:
        with average.averaged(network) as inside:
            assert inside is network
            assert not torch.equal(network.state_dict()["0.weight"], before["0.weight"])
            assert torch.is_grad_enabled()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert pointers == [parameter.data_ptr() for parameter in network.parameters()]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_it_may_be_left_in_for_good() -> None:
    network = model()
    average = Ema(network, 0.9)
    moved(network, 1)
    average.update(network)
    wanted = averaged_state(average, network)
    average.copy_into(network)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())


def test_an_interrupted_average_goes_on_to_the_bit() -> None:
    whole = model()
    average = Ema(whole, 0.99)
    moved(whole, 1)
    average.update(whole)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    other = model(seed=9)
    resumed = Ema(other, 0.99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    moved(whole, 1)
    other.load_state_dict(whole.state_dict())
    average.update(whole)
    resumed.update(other)
    assert resumed.updates == 2
    mine, theirs = averaged_state(average, whole), averaged_state(resumed, other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_half_precision_is_averaged_in_single() -> None:
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(network.weight)
    average = Ema(network, 0.999, warmup=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    for _ in range(100):
        average.update(network)
    # In bfloat16 the first step, 1 + 0.001, would round back to 1.
    assert float(average.state_dict()["weights"]["weight"]) == pytest.approx(2 - 0.999**100, rel=1e-5)
    with average.averaged(network):
        assert network.weight.dtype == torch.bfloat16
        assert float(network.weight.detach()) == pytest.approx(1.0952, rel=0.005)


def test_another_model_is_refused_and_nothing_changes() -> None:
    average = Ema(model(), 0.9)
    with pytest.raises(UsageError, match="other parameters"):
        average.update(nn.Linear(3, 4))
    with pytest.raises(UsageError, match="other parameters"), average.averaged(nn.Linear(3, 4)):
        pass
    state: dict[str, Any] = copy.deepcopy(average.state_dict())
    kept = copy.deepcopy(state)
    state["weights"]["0.weight"] += 1
    for spoilt in (
        state | {"buffers": {}},
        state | {"weights": state["weights"] | {"2.weight": torch.zeros(5)}},
        {name: value for name, value in state.items() if name != "updates"},
    ):
        with pytest.raises(CheckpointError):
            average.load_state_dict(spoilt)
    assert torch.equal(average.state_dict()["weights"]["0.weight"], kept["weights"]["0.weight"])


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decays_out_of_range_are_refused(decay: float) -> None:
    with pytest.raises(UsageError, match="decay"):
        Ema(model(), decay)
