"""What looking costs: one row of attention on a large picture, and every map of a small network, beside the peers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import peers
import timm
import torch
import transformers
from timing import interleaved

import vitral
from vitral.explanation.capture import capture

__all__ = ["look"]

_LARGE = """
import sys, torch, vitral
from contextlib import nullcontext
from vitral.explanation.capture import capture
side, what = int(sys.argv[1]), sys.argv[2]
model = vitral.create_model("vit_b16", image_size=(side, side)).eval()
pixels = torch.randn(1, 3, side, side)
watching = {
    "plain": nullcontext,
    "row": lambda: capture(model, -1, queries=0),
    "rows": lambda: capture(model, queries=0),
    "map": lambda: capture(model, -1),
}[what]
with torch.inference_mode(), watching():
    model(pixels)
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 1024)
"""


def look(quick: bool) -> dict[str, object]:
    """One row of one layer of a B/16 at 1024 × 1024, and all maps of an S/16 at 224 × 224; random weights."""
    return {"one row": _row(quick), "all maps": _maps(quick)}


def _row(quick: bool) -> dict[str, object]:
    """The last layer's class token: peak memory in processes of their own (Linux only), and seconds."""
    side, rounds = (512, 3) if quick else (1024, 9)
    peaks = {
        what: float(subprocess.run([sys.executable, "-c", _LARGE, str(side), what], check=True, capture_output=True).stdout)
        for what in ("plain", "row", "rows", "map")
    }
    model = vitral.create_model("vit_b16", image_size=(side, side)).eval()
    pixels = torch.randn(1, 3, side, side)

    def watched(**options: Any) -> None:
        with capture(model, **options):
            model(pixels)

    contenders: dict[str, Callable[[], object]] = {
        "plain": lambda: model(pixels),
        "row": lambda: watched(layers=-1, queries=0),
        "rows": lambda: watched(queries=0),
    }
    with torch.inference_mode():
        seconds = interleaved(contenders, rounds)
    return {
        "side": side,
        "peak MiB": peaks,
        "seconds": seconds,
        "peak, row / plain": peaks["row"] / peaks["plain"],
        "seconds, row / plain": seconds["row"] / seconds["plain"],
        "seconds, a row of every layer / plain": seconds["rows"] / seconds["plain"],
    }


def _maps(quick: bool) -> dict[str, object]:
    """Every layer's whole map, as each library gives it: transformers mixes in the open, timm's are drawn off by hooks."""
    ours = vitral.create_model("vit_s16").eval()
    _, name, width, heads = peers.SIZES["S"]
    config = transformers.ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=1000,
        attn_implementation="eager",
    )
    open_transformers = transformers.ViTForImageClassification(config).eval()
    timm.layers.set_fused_attn(False)
    open_timm = timm.utils.AttentionExtract(timm.create_model(name), method="hook")
    timm.layers.set_fused_attn(True)

    def captured(pixels: torch.Tensor) -> list[torch.Tensor]:
        with capture(ours) as maps:
            ours(pixels)
        return list(maps)

    found: dict[str, object] = {}
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, 224, 224)
        contenders: dict[str, Callable[[], Any]] = {
            "vitral": lambda x=pixels: captured(x),
            "transformers": lambda x=pixels: open_transformers(x, output_attentions=True).attentions,
            "timm": lambda x=pixels: list(open_timm(x).values()),
            "vitral, not looking": lambda x=pixels: ours(x),
        }
        with torch.inference_mode():
            for label in ("vitral", "transformers", "timm"):
                shapes = [tuple(one.shape) for one in contenders[label]()]
                if shapes != [(batch, heads, 197, 197)] * 12:
                    raise RuntimeError(f"{label} gave maps of other shapes: {shapes}")
            seconds = interleaved(contenders, 5 if quick else 25)
        found[f"batch {batch}"] = {
            "seconds": seconds,
            "transformers / vitral": seconds["transformers"] / seconds["vitral"],
            "timm / vitral": seconds["timm"] / seconds["vitral"],
            "looking / not looking": seconds["vitral"] / seconds["vitral, not looking"],
        }
    return found
