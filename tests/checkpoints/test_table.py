"""Name tables: each row undoes itself, and a model is filled whole or left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitral.checkpoints.table import fill, foreign_state, permuted, renamed, same, shaped, stacked
from vitral.errors import CheckpointError, MismatchError


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.kernel = nn.Parameter(torch.randn(2, 3, 5))
        self.token = nn.Parameter(torch.randn(1, 1, 4))


ROWS = [
    stacked("linear.weight", "q", "k"),
    same("linear.bias", "shift"),
    permuted("kernel", "flax", (2, 0, 1)),
    shaped("token", "flat", (1, 1, 4), (1, 4)),
]


def test_writing_and_reading_are_inverse() -> None:
    toy, other = Toy(), Toy()
    state = foreign_state(toy, ROWS)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "q": (3, 4),
        "k": (3, 4),
        "shift": (6,),
        "flax": (3, 5, 2),
        "flat": (1, 4),
    }
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state), "no two views of one storage"
    assert fill(other, ROWS, state, source="toy") == []
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, toy.get_parameter(name))
        assert parameter.requires_grad


@given(st.permutations(range(4)))
def test_a_permutation_is_undone(order: list[int]) -> None:
    row, theirs = permuted("ours", "theirs", order), torch.randn(2, 3, 4, 5)
    ours = row.read([theirs])
    assert tuple(ours.shape) == tuple(theirs.shape[axis] for axis in order)
    assert torch.equal(row.write(ours)[0], theirs)


def test_renamed_names_weight_and_bias() -> None:
    assert [(row.ours, row.theirs) for row in renamed("a", "b")] == [("a.weight", ("b.weight",)), ("a.bias", ("b.bias",))]
    assert [row.ours for row in renamed("a", "b", bias=False)] == ["a.weight"]


def test_a_model_is_filled_whole_or_left_alone() -> None:
    toy = Toy()
    before = {name: parameter.detach().clone() for name, parameter in toy.named_parameters()}
    state = foreign_state(Toy(), ROWS)
    for spoilt, kind in (
        ({name: tensor for name, tensor in state.items() if name != "k"}, MismatchError),
        ({**state, "more": torch.zeros(1)}, MismatchError),
        ({**state, "flat": torch.zeros(1, 5)}, MismatchError),
        ({**state, "flat": torch.full((1, 4), torch.nan)}, CheckpointError),
        ({**state, "flat": torch.zeros(1, 4, dtype=torch.int32)}, CheckpointError),
    ):
        with pytest.raises(kind):
            fill(toy, ROWS, spoilt, source="toy", advice="Think again.")
        assert all(torch.equal(parameter, before[name]) for name, parameter in toy.named_parameters())


def test_the_table_of_a_mismatch_names_everything_and_ends_with_advice() -> None:
    state = foreign_state(Toy(), ROWS)
    del state["q"]
    state |= {"flax": torch.zeros(2, 2), "more": torch.zeros(7)}
    with pytest.raises(MismatchError) as caught:
        fill(Toy(), ROWS, state, source="the toy", advice="Think again.")
    assert str(caught.value).splitlines() == [
        "The tensors of the toy do not fit the model (1 missing, 1 unexpected, 1 misshaped). Nothing was loaded.",
        f"  {'':<10}  tensor  in the file           in the model",
        "  missing     q     -                     (3, 4)",
        "  unexpected  more  (7,)                  -",
        "  misshaped   flax  (2, 2)                (3, 5, 2)",
        "Think again.",
    ]


def test_what_is_ignored_is_returned_and_matched_as_a_whole() -> None:
    state = {**foreign_state(Toy(), ROWS), "decoder.weight": torch.zeros(1), "step": torch.zeros((), dtype=torch.int64)}
    dropped = fill(Toy(), ROWS, state, source="toy", ignored=(r"decoder\..*", "step"))
    assert sorted(dropped) == ["decoder.weight", "step"]
    with pytest.raises(MismatchError) as caught:
        fill(Toy(), ROWS, state, source="toy", ignored=("decoder", "step"))
    assert caught.value.unexpected == (("decoder.weight", (1,)),)


def test_numbers_are_read_in_single_precision() -> None:
    toy = Toy()
    state = {name: tensor.to(torch.float16) for name, tensor in foreign_state(toy, ROWS).items()}
    fill(toy, ROWS, state, source="toy")
    assert {parameter.dtype for parameter in toy.parameters()} == {torch.float32}


def test_a_missing_tensor_does_not_hide_its_misshaped_neighbour() -> None:
    state = foreign_state(Toy(), ROWS)
    del state["q"]
    state["k"] = torch.zeros(2, 2)
    with pytest.raises(MismatchError) as caught:
        fill(Toy(), ROWS, state, source="toy")
    assert caught.value.missing == (("q", (3, 4)),)
    assert caught.value.misshaped == (("k", (2, 2), (3, 4)),)
