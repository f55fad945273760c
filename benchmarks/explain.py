"""Which explanations are true: every method beside heat that knows nothing, on a published network and real pictures.

    python benchmarks/explain.py                 # 40 pictures: about 20 minutes on two idle cores
    python benchmarks/explain.py --pictures 131  # all of them: 128 of COCO and three photographs
    python benchmarks/explain.py --quick         # four pictures, few steps and masks; nothing is written to results/

The network is DeiT-Tiny (ImageNet-1k). What is taken away or put back is measured on its best class for every picture; where
things are, on the pictures where one of its five best classes shows a category that COCO annotates there (coco_imagenet.py):
that class is explained, and its category's boxes (pointing, energy) and outlines (mIoU, average precision) are the truth.

Pictures are spread over one process per core, each computing on one thread, so seconds are those of one thread. Each is
written to build/ as soon as it is done: a run that was killed goes on where it stood if it is started again with the same
settings; `--fresh` starts anew. The result goes to results/<date>-explain.json.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))
from coco_imagenet import CATEGORY_OF
from timing import machine

import vitral
from vitral.explanation.faithfulness.baselines import BASELINES
from vitral.explanation.faithfulness.evaluate import MEASURES, Faithfulness, Sample, evaluate
from vitral.explanation.faithfulness.randomisation import randomisation_sensitivity
from vitral.explanation.methods import METHODS

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224"
PHOTOS = [SHARED / "data" / "photos" / f"{name}.jpg" for name in ("dog1", "dog2", "astronaut")]
COCO = SHARED / "data" / "coco128" / "coco128.tar"

FEWEST = 10
"""Pictures below which an interval says nothing: of one picture it has no width at all."""

LOCAL = ("pointing", "energy", "miou", "average_precision", "pixel_accuracy")
THOROUGH = {
    "steps": 16,
    "options": {
        "rise": {"masks": 300},
        "smoothgrad": {"samples": 16},
        "integrated_gradients": {"steps": 16, "max_steps": 64},
    },
}
QUICK = {
    "steps": 4,
    "options": {
        "rise": {"masks": 32},
        "smoothgrad": {"samples": 4},
        "integrated_gradients": {"steps": 8, "max_steps": 8},
        "occlusion": {"stride": 3},
    },
}
FORGETTING: dict[str, dict[str, Any]] = QUICK["options"] | {"rise": {"masks": 300}}
"""Options while the network forgets, where every method explains 17 times."""


@dataclass
class Thing:
    """A picture of a size (height, width), and by category the boxes (x0, y0, x1, y1) and outlines of things in it."""

    name: str
    data: bytes
    size: tuple[int, int]
    boxes: dict[str, list[list[float]]]
    outlines: dict[str, list[Any]]

    def mask(self, category: str) -> np.ndarray:
        return np.logical_or.reduce([outline(drawn, self.size) for drawn in self.outlines[category]])


@functools.cache
def pictures() -> list[Thing]:
    """The photographs, then COCO's pictures in an order that is shuffled once and for all."""
    found = [Thing(path.name, path.read_bytes(), (0, 0), {}, {}) for path in PHOTOS]
    with tarfile.open(COCO) as archive:
        read = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    coco = json.loads(read["annotations/instances_train2017.json"])
    categories = {one["id"]: one["name"] for one in coco["categories"]}
    order = np.random.default_rng(0).permutation(len(coco["images"]))
    for image in (coco["images"][place] for place in order):
        size = image["height"], image["width"]
        thing = Thing(image["file_name"], read[f"train2017/{image['file_name']}"], size, {}, {})
        for one in (one for one in coco["annotations"] if one["image_id"] == image["id"]):
            category = categories[one["category_id"]]
            thing.boxes.setdefault(category, []).append(corners(one["bbox"], size))
            thing.outlines.setdefault(category, []).append(one["segmentation"])
        found.append(thing)
    return found


def corners(box: list[float], size: tuple[int, int]) -> list[float]:
    """A box (x, y, width, height) as (x0, y0, x1, y1), within the picture."""
    x, y, width, height = box
    return [max(0.0, x), max(0.0, y), min(float(size[1]), x + width), min(float(size[0]), y + height)]


def outline(drawn: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Polygons, or the runs of a crowd (down the columns, beginning with background), as a mask."""
    if isinstance(drawn, dict):
        runs = np.repeat(np.arange(len(drawn["counts"])) % 2 == 1, drawn["counts"])
        return runs.reshape(size[::-1]).T
    # Pillow colours every pixel that an edge touches; on a sheet four times as fine that is an eighth of a pixel.
    fine = Image.new("L", (4 * size[1], 4 * size[0]))
    for polygon in drawn:
        ImageDraw.Draw(fine).polygon([4 * coordinate - 0.5 for coordinate in polygon], fill=255)
    return np.asarray(fine.reduce(4)) > 127


def measured(predictor: Any, thing: Thing, settings: dict[str, Any]) -> list[Faithfulness]:
    """One evaluation of a picture, or two where the class that COCO annotates is not the model's best."""
    answer = predictor(thing.data, top_k=5)
    best = [int(place) for place in answer.indices]
    named = next((place for place in best if CATEGORY_OF.get(place) in thing.boxes), None)
    truth: dict[str, Any] = {}
    # A picture that was turned upright no longer fits its annotations.
    if named is not None and answer.size == thing.size:
        mask = thing.mask(CATEGORY_OF[named])
        if seen(predictor, thing, mask):
            truth = {"mask": mask, "boxes": np.array(thing.boxes[CATEGORY_OF[named]])}
    if named == best[0] or not truth:
        return [evaluate(predictor, [Sample(thing.data, best[0], **truth)], **settings)]
    model = [measure for measure in MEASURES if measure not in LOCAL]
    return [
        evaluate(predictor, [Sample(thing.data, best[0])], measures=model, **settings),
        evaluate(predictor, [Sample(thing.data, named, **truth)], measures=LOCAL, **settings),
    ]


def seen(predictor: Any, thing: Thing, mask: np.ndarray) -> bool:
    """Whether any of a mask lies in the middle of the picture that the preprocessing keeps."""
    x0, y0, x1, y1 = (round(side) for side in predictor.prepare(thing.data)[1].frame.window)
    return bool(mask[max(0, y0) : y1, max(0, x0) : x1].any())


def forgetting(predictor: Any, method: str) -> dict[str, float]:
    """Rank correlations with the trained network's heat as it forgets (Adebayo et al. 2018), on one photograph."""
    found = randomisation_sensitivity(predictor, PHOTOS[1], method=method, **FORGETTING.get(method, {}))
    return {stage["stage"]: round(stage["correlation"], 3) for stage in found.to_dict()["stages"]}


@functools.cache
def network() -> Any:
    """The network of this process, on one thread: on a busy machine two of them wait for each other most of the time."""
    torch.set_num_threads(1)
    return vitral.load(WEIGHTS)


def worked(job: tuple[str, Any]) -> tuple[str, Any]:
    """One picture, or one method of the network that forgets, in a process of the pool."""
    key, what = job
    if key.startswith("forgetting "):
        return key, forgetting(network(), what)
    number, settings = what
    return key, [one.to_dict() for one in measured(network(), pictures()[number], settings)]


def fingerprint(settings: dict[str, Any]) -> str:
    """Another for other settings, and for other code: figures of two versions of a method do not belong into one table."""
    told = hashlib.sha256(json.dumps([settings, FORGETTING]).encode())
    for name in sorted(name for name in sys.modules if name.startswith("vitral.explanation")):
        told.update(Path(sys.modules[name].__file__).read_bytes())
    return told.hexdigest()[:8]


def kept(path: Path) -> dict[str, Any]:
    """What an earlier run with the same settings has measured; a line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["key"]] = row["found"]
    return found


def worked_off(jobs: dict[str, Any], path: Path, workers: int) -> dict[str, Any]:
    """What every job found, now or in an earlier run."""
    done, start = kept(path), time.perf_counter()
    todo = [(key, what) for key, what in jobs.items() if key not in done]
    if path.exists() and not path.read_text().endswith("\n"):
        path.write_text("".join(json.dumps({"key": key, "found": found}) + "\n" for key, found in done.items()))
    with multiprocessing.get_context("spawn").Pool(workers) as pool, path.open("a") as file:
        for count, (key, found) in enumerate(pool.imap_unordered(worked, todo), start=1):
            done[key] = found
            file.write(json.dumps({"key": key, "found": found}) + "\n")
            file.flush()
            print(f"{count}/{len(todo)} {key}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return {key: done[key] for key in jobs}


def beaten(found: Faithfulness) -> dict[str, dict[str, list[str]]]:
    """Method → baseline → the measures on which it is surely better: the interval of paired differences excludes none."""
    ranked = [measure for measure in found.pictures if MEASURES[measure]]
    return {
        method: {
            baseline: [measure for measure in ranked if surely_better(found, method, baseline, measure)]
            for baseline in BASELINES
        }
        for method in found.scores
        if method not in BASELINES
    }


def surely_better(found: Faithfulness, method: str, baseline: str, measure: str) -> bool:
    difference = found.difference(method, baseline, measure)
    return difference.pictures >= FEWEST and (difference.low if MEASURES[measure] > 0 else -difference.high) > 0


def beaten_table(found: Faithfulness, beats: dict[str, dict[str, list[str]]]) -> str:
    enough = sum(bool(MEASURES[measure]) and count >= FEWEST for measure, count in found.pictures.items())
    lines = [["method", *BASELINES], ["---"] * (len(BASELINES) + 1)]
    lines += [[method, *(f"{len(one[name])} of {enough}" for name in BASELINES)] for method, one in beats.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def forgetting_table(rows: dict[str, dict[str, float]]) -> str:
    stages = list(next(iter(rows.values())))
    shown = [stage for place, stage in enumerate(stages) if place % 4 == 1 or place == len(stages) - 1]
    lines = [["forgotten down to", *shown], ["---"] * (len(shown) + 1)]
    lines += [[method, *(f"{row[stage]:.2f}" for stage in shown)] for method, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four pictures, few steps and masks")
    parser.add_argument("--pictures", type=int, help="how many; 131 are all of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; one per core unless told")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has measured")
    parser.add_argument("--no-sanity", action="store_true", help="leave out the network that forgets")
    told = parser.parse_args()
    settings = QUICK if told.quick else THOROUGH
    things = pictures()[: told.pictures or (4 if told.quick else 40)]
    jobs: dict[str, Any] = {thing.name: (number, settings) for number, thing in enumerate(things)}
    if not told.no_sanity:
        jobs |= {f"forgetting {method}": method for method in METHODS}
    path = HERE.parent / "build" / f"explain-{fingerprint(settings)}.jsonl"
    path.parent.mkdir(exist_ok=True)
    if told.fresh:
        path.unlink(missing_ok=True)
    done = worked_off(jobs, path, told.workers)
    parts = [Faithfulness.from_dict(one) for thing in things for one in done[thing.name]]
    found = Faithfulness.joined(parts)
    beats = beaten(found)
    print(f"DeiT-Tiny, {len(things)} pictures; {json.dumps(found.settings)}\n\n{found.table()}\n")
    if any(count >= FEWEST for count in found.pictures.values()):
        print(
            f"Measures on which a method is surely better than a baseline (at least {FEWEST} pictures; 95 % interval of the"
        )
        print(f"paired differences):\n\n{beaten_table(found, beats)}")
    plain = {name: value for name, value in found.to_dict().items() if name not in ("scores", "seconds")}
    plain |= {"seconds": {method: float(np.mean(times)) for method, times in found.seconds.items()}, "beats": beats}
    if not told.no_sanity:
        plain["forgetting"] = {method: done[f"forgetting {method}"] for method in METHODS}
        print("\nRank correlation with the trained network's heat while it forgets, from its head down (dog2.jpg):\n")
        print(forgetting_table(plain["forgetting"]))
    report = {"benchmark": "explain", "machine": machine(), "found": plain}
    if not told.quick:
        result = HERE / "results" / f"{report['machine']['date']}-explain.json"
        result.parent.mkdir(exist_ok=True)
        result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
