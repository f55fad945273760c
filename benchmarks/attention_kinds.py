"""What each kind of attention costs as a picture grows, and what each kind of position makes of a larger picture.

    python benchmarks/attention_kinds.py growth        # one attention layer of every kind, time and multiplications
    python benchmarks/attention_kinds.py positions     # small transformers trained on 8 × 8 digits, asked about larger ones

Each writes benchmarks/results/<date>-attention_kinds-<name>.json and the picture that docs/guides/attention_kinds.md shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from timing import machine

from vitral.data.digits import digit_pictures, read_digits
from vitral.layers.kinds import Kind, attention_of
from vitral.recipes.digits import digits
from vitral.training.classification import ClassificationSubject
from vitral.training.loop import fit
from vitral.training.start import model_for

mpl.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["growth", "growth_figure", "positions", "positions_figure"]

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"

WIDTH, HEADS = 192, 3  # of ViT-Ti
OPTIONS = {"window": 8, "reduction": 2, "features": 128}
SIDES = (8, 16, 24, 32, 48, 64)
LOOKS: dict[str, tuple[str, str]] = {  # colour and marker, told apart also without colours
    "global": ("#222222", "o"),
    "window": ("#0072b2", "s"),
    "axial": ("#009e73", "^"),
    "spatial_reduction": ("#d55e00", "D"),
    "performer": ("#cc79a7", "v"),
    "cross_covariance": ("#e69f00", "P"),
}

POSITIONS: dict[str, dict[str, Any]] = {
    "learned": {"position": "learned", "prefix_positions": 1},
    "sinusoidal_1d": {"position": "sinusoidal_1d"},
    "sinusoidal_2d": {"position": "sinusoidal_2d"},
    "none": {"position": "none"},
    "rotary": {"position": "none", "rotary": True},
    "relative_bias": {"position": "none", "relative_bias": "per_block"},
}


def _run(kind: Kind, device: str, side: int) -> Callable[[], object]:
    """One attention layer of a kind on a grid, ready to be called."""
    with torch.device(device):
        attention = attention_of(kind, WIDTH, HEADS, block=1, **OPTIONS).eval()
        tokens = torch.randn(1, side * side, WIDTH)
    return (lambda: attention(tokens)) if kind == "global" else (lambda: attention(tokens, (side, side)))


def _thread_seconds(contenders: dict[Kind, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median of each, over rounds in which all of them run."""
    seconds: dict[str, list[float]] = {kind: [] for kind in contenders}
    for turn in range(rounds + 2):
        for kind, run in contenders.items():
            start = time.thread_time()
            run()
            if turn > 1:  # the first rounds warm up
                seconds[kind].append(time.thread_time() - start)
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def growth(quick: bool) -> dict[str, Any]:
    """Multiplications (all that PyTorch counts) and seconds of one layer, one picture, one thread, by tokens and kind.

    The seconds are the thread's own, not the clock's, so that whatever else runs on the machine counts less.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {"width": WIDTH, "heads": HEADS, "threads": torch.get_num_threads(), **OPTIONS, "tokens": {}}
    for side in SIDES[:3] if quick else SIDES:
        counted: dict[str, int] = {}
        for kind in get_args(Kind):
            with FlopCounterMode(display=False) as counter:
                _run(kind, "meta", side)()
            counted[kind] = counter.get_total_flops() // 2
        contenders = {kind: _run(kind, "cpu", side) for kind in get_args(Kind)}
        with torch.inference_mode():
            seconds = _thread_seconds(contenders, rounds=3 if quick else 15)
        found["tokens"][str(side * side)] = {"multiplications": counted, "seconds": seconds}
    return found


def growth_figure(found: dict[str, Any]) -> plt.Figure:
    """Both against the number of tokens, on logarithmic axes, where a power is a slope."""
    tokens = [int(count) for count in found["tokens"]]
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), constrained_layout=True)
    for axes, what, unit, per in zip(
        panels,
        ("multiplications", "seconds"),
        ("million multiplications", "milliseconds of one thread"),
        (1e6, 1e-3),
        strict=True,
    ):
        for kind, (colour, marker) in LOOKS.items():
            values = [row[what][kind] / per for row in found["tokens"].values()]
            axes.plot(tokens, values, color=colour, marker=marker, markersize=5, label=kind, linewidth=1.6)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit)
        axes.set_xticks(tokens, [str(count) for count in tokens])
        axes.minorticks_off()
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def positions(quick: bool) -> dict[str, Any]:
    """Share of held-out digits told rightly, by kind of position and by side of the pictures, of several seeds."""
    train, _ = digit_pictures()
    _, held_out = read_digits()
    pixels = torch.from_numpy(held_out.pictures)[:, None] / 255
    labels = torch.from_numpy(held_out.labels)
    sides, seeds, epochs = (8, 12, 16), range(1 if quick else 3), 1 if quick else 12
    found: dict[str, Any] = {"epochs": epochs, "seeds": len(seeds), "accuracy": {}}
    base = digits(quick=True)  # pictures are left as they are, so that their size alone changes
    for kind, fields in POSITIONS.items():
        scores: dict[int, list[float]] = {side: [] for side in sides}
        for seed in seeds:
            network = {**base.network, "class_token": True, "prefix_positions": 0, **fields}
            recipe = replace(base, network=network, epochs=epochs, warmup_epochs=epochs / 10, seed=seed)
            model = model_for(recipe, train.classes)
            fit(model, ClassificationSubject(train, recipe), recipe)
            model.eval()
            for side in sides:
                enlarged = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)
                with torch.inference_mode():
                    answers = model((enlarged - recipe.mean[0]) / recipe.std[0]).logits.argmax(1)
                scores[side].append((answers == labels).float().mean().item())
        found["accuracy"][kind] = {str(side): values for side, values in scores.items()}
    return found


def positions_figure(found: dict[str, Any]) -> plt.Figure:
    """The mean of the seeds by side of the pictures, and a dot for each seed."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), constrained_layout=True)
    for (kind, scores), (colour, marker) in zip(found["accuracy"].items(), LOOKS.values(), strict=True):
        sides = [int(side) for side in scores]
        means = [100 * statistics.mean(values) for values in scores.values()]
        axes.plot(sides, means, color=colour, marker=marker, markersize=6, label=kind, linewidth=1.6)
        for side, values in zip(sides, scores.values(), strict=True):
            axes.plot([side] * len(values), [100 * value for value in values], ".", color=colour, markersize=3)
    axes.set(
        xlabel="side of the pictures asked about, in pixels (trained at 8)", ylabel="% of held-out digits", ylim=(0, 101)
    )
    axes.set_xticks(sides)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Measure what is named, and keep result and picture; a quick run keeps nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("growth", "positions"))
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs; nothing is written")
    given = parser.parse_args()
    measure, draw = {"growth": (growth, growth_figure), "positions": (positions, positions_figure)}[given.name]
    found = {"machine": machine(), **measure(given.quick)}
    figure = draw(found)
    if given.quick:
        print(json.dumps(found, indent=1))
        return
    kept = RESULTS / f"{found['machine']['date']}-attention_kinds-{given.name}.json"
    kept.write_text(json.dumps(found, indent=1) + "\n")
    figure.savefig(PICTURES / f"attention-{given.name}.png", dpi=110)
    print(kept)


if __name__ == "__main__":
    main()
