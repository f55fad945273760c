"""Comparing: who is refused, what is measured, whom nobody beats, how costs grow, and equal budgets."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.checkpoints.save import save_model
from vitral.data.augment.chain import Augmentation
from vitral.data.pictures import PictureSet
from vitral.data.splits import Splits
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.models.profile import Cost
from vitral.training import compare
from vitral.training.compare import (
    Compared,
    Comparison,
    Learned,
    Speed,
    contender_of,
    contenders_of,
    exponent,
    learn,
    machine,
    measure,
)
from vitral.training.compare_page import comparison_page, growth_figure, pareto_figure
from vitral.training.footprint import peak_memory
from vitral.training.loop import Epoch, Step
from vitral.training.recipe import Recipe

TINY = "vit_ti16:patch_size=4,depth=1,width=16,heads=2,mlp_width=32"
OTHER = "cct_2_3x2_32:depth=1,width=16,heads=2,mlp_width=16,conv_channels=(8,)"
LATE = "vit_ti32:depth=1,width=16,heads=2,mlp_width=32"


# -- who is compared ----------------------------------------------------------------------------------------------------


def test_fields_are_read_and_checked_as_the_catalogue_does() -> None:
    one = contender_of("vit_ti16:patch-size=4, depth=6,prefix_positions=0,class_token=false,pool=mean")
    assert one.model == "vit_ti16"
    assert one.fields == {"patch_size": 4, "depth": 6, "prefix_positions": 0, "class_token": False, "pool": "mean"}
    assert contender_of("cct_7_3x1_32:conv_channels=(8,16),depth=2").fields == {"conv_channels": (8, 16), "depth": 2}
    assert contender_of("facebook/deit-tiny-patch16-224").fresh is False


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_ti61", "Did you mean 'vit_ti16'"),
        ("vit_ti16:dept=3", "Did you mean 'depth'"),
        ("vit_ti16:depth=three", "depth takes a whole number"),
        ("vit_ti16:depth", "NAME:field=value"),
        ("vit_ti16:", "NAME:field=value"),
        ("vit_ti16:depth=1,depth=2", "given twice"),
        ("vit_ti16:image_size=32", "all have the same sizes"),
        ("owner/name:depth=1", "is a checkpoint"),
    ],
)
def test_what_is_misspelt_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        contender_of(name)


def test_none_and_two_of_a_name_are_refused() -> None:
    with pytest.raises(UsageError, match="Say which networks"):
        contenders_of([])
    with pytest.raises(UsageError, match="given twice"):
        contenders_of(["vit_ti16", "vit_s16", "vit_ti16"])


# -- the front ----------------------------------------------------------------------------------------------------------


def invented(name: str, cost: int, top1: float | None, seconds: float = 1.0) -> Compared:
    """A network of which only what is plotted is known."""
    counted = Cost(
        size=(8, 8), batch=1, parameters=cost, multiply_adds=cost, attention=0, activations=cost, torch_flops=2 * cost
    )
    told = {"size": (8, 8), "fresh": True, "low": 0.0, "high": 1.0, "loss": 1.0, "judged": 9, "steps": 1, "epochs": 1.0}
    learned = None if top1 is None else Learned(**told, top1=top1, seconds=1.0)
    return Compared(name=name, costs=(counted,), speeds=(Speed(size=(8, 8), batch=2, seconds=seconds),), learned=learned)


def of(*models: Compared) -> Comparison:
    return Comparison(models=models, sizes=((8, 8),), batches=(2,), machine={})


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_front_is_whom_nobody_beats(points: list[tuple[int, int]]) -> None:
    found = of(*(invented(str(n), cost, top1 / 10, seconds=1 / cost) for n, (cost, top1) in enumerate(points)))
    unbeaten = {
        str(n)
        for n, (cost, top1) in enumerate(points)
        if not any(c <= cost and t >= top1 and (c, t) != (cost, top1) for c, t in points)
    }
    assert set(found.front("multiply_adds", "top1")) == unbeaten
    # The faster the better: now a greater number is, in both quantities.
    quickest = {
        str(n)
        for n, (cost, top1) in enumerate(points)
        if not any(c >= cost and t >= top1 and (c, t) != (cost, top1) for c, t in points)
    }
    assert set(found.front("pictures_per_second", "top1")) == quickest
    assert found.front("seconds_per_picture", "top1") == found.front("pictures_per_second", "top1")


def test_what_is_not_known_is_in_no_front(unchecked: None) -> None:
    found = of(invented("a", 5, 0.5), invented("b", 1, None))
    assert found.front("multiply_adds", "top1") == ("a",)
    assert found.front("multiply_adds", "parameters") == ("b",)
    assert found.front("memory", "top1") == ()
    with pytest.raises(UnknownNameError, match="multiply_adds"):
        found.front("multiply_add", "top1")  # type: ignore[arg-type]


# -- growth -------------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.floats(0.1, 10), st.lists(st.integers(1, 1000), min_size=2, max_size=6, unique=True))
@settings(max_examples=40, deadline=None)
def test_exponents_are_those_of_numpys_fit(power: float, factor: float, places: list[int]) -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, len(places))
    values = factor * np.array(places, np.float64) ** power * noise
    fitted = np.polyfit(np.log(places), np.log(values), 1)[0]
    assert exponent(list(zip(map(float, places), values.tolist(), strict=True))) == pytest.approx(fitted, abs=1e-6)


def test_one_point_tells_no_exponent() -> None:
    assert exponent([(4.0, 2.0)]) is None
    assert exponent([(4.0, 2.0), (4.0, 3.0)]) is None
    assert exponent([(4.0, 0.0), (8.0, 1.0)]) is None


# -- measuring ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two networks, a third that does not take the smaller size, and a checkpoint."""
    torch.manual_seed(0)
    model = create_model("vit_ti16", patch_size=8, depth=1, width=16, heads=2, mlp_width=32, image_size=16, num_classes=3)
    saved = save_model(model, tmp_path_factory.mktemp("saved"))
    sizes, batches = ((16, 16), (32, 32)), (1, 2)
    models = measure(contenders_of([TINY, OTHER, LATE, str(saved)]), sizes, batches, rounds=2, memory=False)
    return Comparison(models=models, sizes=sizes, batches=batches, machine=machine())


def test_everything_asked_for_is_measured(measured: Comparison) -> None:
    for model in (measured.models[0], measured.models[1], measured.models[3]):
        assert model.failed == ()
        assert [(one.size, one.batch) for one in model.speeds] == [(s, b) for s in measured.sizes for b in (1, 2)]
        assert all(one.seconds > 0 and one.pictures_per_second == one.batch / one.seconds for one in model.speeds)
        assert [one.size for one in model.costs] == [(16, 16), (32, 32), (64, 64)]
        assert all(one.agrees and one.batch == 1 for one in model.costs)


def test_one_that_fails_is_named_and_the_others_go_on(measured: Comparison) -> None:
    late = measured.models[2]
    [failed] = late.failed
    assert (failed.what, failed.size) == ("counting", (16, 16))
    assert "smaller than one patch" in str(failed)
    assert [one.size for one in late.speeds] == [(32, 32)] * 2
    assert measured.value(late, "multiply_adds") is None


def test_growth_of_global_attention_comes_near_the_square(measured: Comparison) -> None:
    tiny = measured.models[0]
    tokens = [(side // 4) ** 2 + 1 for side in (16, 32, 64)]
    expected = np.polyfit(np.log([16**2, 32**2, 64**2]), 2 * np.log(tokens), 1)[0]
    assert tiny.growth("attention") == pytest.approx(expected)
    assert 1 < tiny.growth("multiply_adds") < tiny.growth("attention") < 2  # type: ignore[operator]


def test_json_gives_everything_back(measured: Comparison) -> None:
    told = measured.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert {"date", "processor", "threads", "torch"} <= told["machine"].keys()
    assert told["machine"]["torch"] == torch.__version__
    assert [one["name"] for one in told["models"]] == [model.name for model in measured.models]
    assert told["models"][2]["failed"][0]["size"] == [16, 16]
    assert told["fronts"][0]["names"] == list(measured.front("multiply_adds", "parameters"))


def test_the_page_and_the_pictures_show_every_name(measured: Comparison) -> None:
    page = comparison_page(measured)
    assert all(page.count(model.name) >= 3 for model in measured.models)
    assert "smaller than one patch" in page
    assert "http" not in page.replace("http-equiv", "")
    drawn = {text.get_text() for text in pareto_figure(measured).axes[0].texts}
    assert len(drawn) == 3  # the third has no cost at the first size
    legend = [text.get_text() for text in growth_figure(measured).axes[0].get_legend().get_texts()]
    assert legend[0].endswith(f"pixels^{measured.models[0].growth('multiply_adds'):.2f}")


def test_the_line_of_the_picture_is_the_front() -> None:
    found = of(*(invented(name, cost, top1) for name, cost, top1 in (("a", 1, 0.2), ("b", 2, 0.1), ("c", 4, 0.6))))
    axes = pareto_figure(found).axes[0]
    front = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2)
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(1.0, 0.2), (4.0, 0.6)]
    with pytest.raises(UsageError, match="nothing to draw"):
        pareto_figure(of(invented("a", 1, None)), up="top1")
    with pytest.raises(UsageError, match="two sizes"):
        growth_figure(found)


def test_the_median_of_turns_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0.0, *[1.0, 0.0] * 2, 5.0, 0.0, 3.0, 0.0, 40.0, 0.0]).tolist())
    monkeypatch.setattr(compare.time, "perf_counter", lambda: next(clock))
    [model] = measure(contenders_of([TINY]), [(16, 16)], [1], rounds=3, memory=False)
    assert model.speeds[0].seconds == 5.0


@pytest.mark.parametrize(
    ("sizes", "batches", "rounds"), [([], [1], 1), ([(8, 8)], [], 1), ([(8, 8)], [0], 1), ([(8, 8)], [1], 0)]
)
def test_nothing_to_measure_is_refused(sizes: Any, batches: Any, rounds: int) -> None:
    with pytest.raises(UsageError):
        measure(contenders_of([TINY]), sizes, batches, rounds=rounds, memory=False)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory as Linux tells it")
def test_memory_is_that_of_a_fresh_process() -> None:
    ballast = torch.ones(200 * 2**20 // 4)  # what this process holds does not count
    fields = {"patch_size": 8, "width": 64, "depth": 1, "heads": 2, "mlp_width": 512}
    peaks = peak_memory("vit_ti16", fields, (32, 32), [256, 1])
    pixels, hidden = 256 * 3 * 32 * 32 * 4, 256 * 17 * 512 * 4
    assert list(peaks) == [1, 256]
    assert peaks[1] < 30 * 2**20 < ballast.nbytes
    assert hidden <= peaks[256] - peaks[1] <= 4 * (pixels + hidden)


# -- learning -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def splits(colours: PictureSet) -> Splits:
    return Splits(train=colours, held_out=colours, test=None)


RECIPE = Recipe(
    epochs=2, batch_size=6, warmup_epochs=0.5, learning_rate=3e-3, workers=0, augment=Augmentation(crop="none", flip=0.5)
)


def test_equal_steps_are_equal_for_all(splits: Splits) -> None:
    for name in (TINY, OTHER):
        losses: list[Step | Epoch] = []
        found = learn(contender_of(name), splits, RECIPE, (16, 16), device="cpu", watch=losses.append)
        assert (found.steps, found.epochs) == (12, 2.0)
        assert sum(isinstance(one, Step) for one in losses) == 12
        assert 0 <= found.low <= found.top1 <= found.high <= 1
        assert found.judged == 36
        assert found.fresh
        assert found.size == (16, 16)


def test_equal_time_is_as_many_steps_as_fit(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[Recipe] = []
    real = compare.fit

    def noted(model: Any, pictures: Any, recipe: Recipe, **how: Any) -> Any:
        trainings.append(recipe)
        watch = how.get("watch")
        if len(trainings) == 1:  # as though a step took a tenth of a second, the first two longer
            slow = iter([5.0, 5.0, 0.1, 0.1, 0.1, 0.1])
            how["watch"] = lambda event: watch(
                replace(event, pictures_per_second=6 / next(slow)) if isinstance(event, Step) else event
            )
        return real(model, pictures, recipe, **how)

    monkeypatch.setattr(compare, "fit", noted)
    found = learn(contender_of(TINY), splits, RECIPE, (16, 16), budget="seconds", seconds=0.95, device="cpu")
    assert found.steps == 9
    tried, own = trainings
    assert math.isclose(own.epochs, 9 * 6 / 36)
    assert math.isclose(own.warmup_epochs / own.epochs, 0.25)  # of its length, as in the recipe
    assert tried.network == own.network == contender_of(TINY).fields


def test_budgets_that_make_no_sense_are_refused(splits: Splits, unchecked: None) -> None:
    one = contender_of(TINY)
    with pytest.raises(UsageError, match="needs its seconds"):
        learn(one, splits, RECIPE, (16, 16), budget="seconds")
    with pytest.raises(UsageError, match="needs its seconds"):
        learn(one, splits, RECIPE, (16, 16), seconds=3.0)
    with pytest.raises(UsageError, match="more than 0"):
        learn(one, splits, RECIPE, (16, 16), budget="seconds", seconds=0.0)
    with pytest.raises(UnknownNameError, match="steps"):
        learn(one, splits, RECIPE, (16, 16), budget="step")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="holds no pictures out"):
        learn(one, replace(splits, held_out=None), RECIPE, (16, 16))
