"""Vitral beside its peers, here: `make bench`, or `python benchmarks/run.py` and the names of some (`--help` lists them).

Every comparison is made in one run, contenders taking turns, medians reported, and written to
benchmarks/results/<date>-<name>.json with the machine. benchmarks/RESULTS.md tells what they mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import peers
from backbones import backbones
from detection import detection
from look import look
from segmentation import segmentation
from timing import interleaved, machine, whole_process
from train import train

RESULTS = Path(__file__).parent / "results"


def start(quick: bool) -> dict[str, object]:
    """Cold starts as whole processes: importing, asking for help, and one photograph from nothing."""
    python, rounds = sys.executable, 3 if quick else 9
    vitral = str(Path(python).with_name("vitral"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = peers.weights(folder / "vit-s", "S")
        [photo] = peers.photographs(folder, 1, 960, 1280)
        script = folder / "theirs.py"
        script.write_text(
            "import torch\n"
            "for operator in ('nms', 'qnms'):\n"
            "    torch.library.define(f'torchvision::{operator}', '(Tensor a, Tensor b, float c) -> Tensor')\n"
            "from transformers import pipeline\n"
            f"print(pipeline('image-classification', model={str(weights)!r})({str(photo)!r}))\n"
        )
        bare = whole_process(
            {"python -c pass": [python, "-c", "pass"], "import vitral": [python, "-c", "import vitral"]}, rounds
        )
        help_page = whole_process({"vitral --help": [vitral, "--help"]}, rounds)
        cold = whole_process(
            {
                "vitral predict": [vitral, "predict", str(photo), "--model", str(weights)],
                "transformers pipeline": [python, str(script)],
                "import torch": [python, "-c", "import torch"],
            },
            rounds,
        )
    seconds = {**bare, **help_page, **cold}
    ratio = cold["transformers pipeline"] / cold["vitral predict"]
    own = bare["import vitral"] - bare["python -c pass"]
    return {"seconds": seconds, "import vitral, without Python itself": own, "transformers / vitral": ratio}


def model(quick: bool) -> dict[str, object]:
    """The network alone, random weights, 224 × 224, single precision."""
    import vitral

    found: dict[str, object] = {}
    for size in ("Ti", "S") if quick else peers.SIZES:
        ours = vitral.create_model(peers.SIZES[size][0]).eval()
        timm, transformers = peers.timm_vit(size), peers.transformers_vit(size)
        for batch in (1, 8):
            pixels = torch.randn(batch, 3, 224, 224)
            rounds = 5 if quick else {"Ti": 41, "S": 25, "B": 15}[size]
            contenders: dict[str, Callable[[], object]] = {
                "vitral": lambda run=ours, x=pixels: run(x),
                "timm": lambda run=timm, x=pixels: run(x),
                "transformers": lambda run=transformers, x=pixels: run(x),
            }
            with torch.inference_mode():
                seconds = interleaved(contenders, rounds)
            best = min(seconds["timm"], seconds["transformers"])
            found[f"{size}/16, batch {batch}"] = {"seconds": seconds, "best peer / vitral": best / seconds["vitral"]}
    return found


def folder(quick: bool) -> dict[str, object]:
    """A folder of 12-megapixel JPEGs, ViT-S/16, batch 8, from files to labels."""
    import transformers

    import vitral

    count = 8 if quick else 32
    with tempfile.TemporaryDirectory() as name:
        weights = peers.weights(Path(name) / "vit-s", "S")
        paths = [str(path) for path in peers.photographs(Path(name) / "photos", count)]
        theirs = transformers.pipeline("image-classification", model=str(weights))
        fast = vitral.pipeline("image-classification", model=str(weights))
        exact = vitral.pipeline("image-classification", model=str(weights), decoding="exact")
        contenders: dict[str, Callable[[], list[list[dict[str, object]]]]] = {
            "vitral": lambda: fast(paths, batch_size=8),
            "vitral, decoding='exact'": lambda: exact(paths, batch_size=8),
            "transformers, batch 8": lambda: theirs(paths, batch_size=8),
        }
        tops = {label: [answer[0]["label"] for answer in run()] for label, run in contenders.items()}
        seconds = interleaved(contenders, 2 if quick else 5, warmups=0)
    agreement = {
        label: sum(a == b for a, b in zip(top, tops["transformers, batch 8"], strict=True)) / count
        for label, top in tops.items()
    }
    return {
        "pictures per second": {label: count / value for label, value in seconds.items()},
        "transformers / vitral": seconds["transformers, batch 8"] / seconds["vitral"],
        "transformers / vitral, decoding='exact'": seconds["transformers, batch 8"] / seconds["vitral, decoding='exact'"],
        "same top-1 as transformers": agreement,
        "distinct answers": len(set(tops["vitral"])),
    }


def memory(quick: bool) -> dict[str, object]:
    """The most memory a stream of 100 and of 10,000 pictures takes, each in a process of its own (Linux only)."""
    script = (
        "import sys, numpy as np, vitral\n"
        "model = vitral.create_model('vit_ti16', width=64, heads=2, mlp_width=128, depth=2, image_size=64, num_classes=10)\n"
        "from vitral.data.transforms import Preprocessing\n"
        "from vitral.models.record import Record\n"
        "model.record = Record(preprocessing=Preprocessing(size=(64, 64)))\n"
        "run = vitral.pipeline('image-classification', model=model)\n"
        "numbers = np.random.default_rng(0)\n"
        "pictures = (numbers.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(int(sys.argv[1])))\n"
        "count = sum(len(answer) == 5 for answer in run(pictures, batch_size=8))\n"
        "assert count == int(sys.argv[1])\n"
        "[peak] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(int(peak.split()[1]) / 1024)\n"
    )
    counts = (100, 1000) if quick else (100, 10_000)
    peaks = {
        count: float(subprocess.run([sys.executable, "-c", script, str(count)], check=True, capture_output=True).stdout)
        for count in counts
    }
    few, many = counts
    return {"peak MiB": {str(count): peak for count, peak in peaks.items()}, "more MiB": peaks[many] - peaks[few]}


BENCHMARKS = {
    "start": start,
    "model": model,
    "backbones": backbones,
    "detection": detection,
    "segmentation": segmentation,
    "folder": folder,
    "memory": memory,
    "look": look,
    "train": train,
}


def main() -> None:
    """Run the named benchmarks and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=[], help="which; all unless told")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    told = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    names = told.names or list(BENCHMARKS)
    if len(names) > 1:
        # Each in a process of its own: a large model leaves the memory allocator in a state that suits later contenders.
        for name in names:
            quick = ["--quick"] if told.quick else []
            subprocess.run([sys.executable, __file__, name, *quick], check=True)
        return
    for name in names:
        report = {"benchmark": name, "machine": machine(), "found": BENCHMARKS[name](told.quick)}
        print(json.dumps(report, indent=2), flush=True)
        if not told.quick:
            path = RESULTS / f"{report['machine']['date']}-{name}.json"
            path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
