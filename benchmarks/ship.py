"""Put a trained model into the box: `python benchmarks/ship.py run/best cifar10.tar.gz`.

Weights become half precision, the whole must fit in 3 MiB, and what its record says of its accuracy is measured again on
the weights as they are shipped.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from vitral.checkpoints.box import BOXED, folder_of
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.splits import read_pictures
from vitral.training.evaluate import evaluate

_MOST = 3 * 2**20  # bytes


def ship(source: str, data: str) -> None:
    """Shrink, judge, write."""
    model = load_model(source).half().float()
    record = model.record
    evaluation = evaluate(model, read_pictures(data, "test"))
    print(f"{evaluation.top1:.2%} of {len(evaluation)} pictures, {evaluation.intervals()['top1']}")
    training = replace(
        record.training, top1=evaluation.top1, judged=len(evaluation), data="CIFAR-10, train", judged_by="CIFAR-10, test"
    )
    notes = ("Knows ten things in pictures of 32x32 pixels (Krizhevsky 2009), and takes everything else for one of them.",)
    model.record = replace(record, training=training, notes=notes, licence="Apache-2.0", source="")
    folder = folder_of(BOXED)
    assert folder is not None
    save_model(model.half(), folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size:,} bytes")
    if size > _MOST:
        sys.exit(f"{size:,} bytes are more than the {_MOST:,} that the box holds.")


if __name__ == "__main__":
    ship(*sys.argv[1:])
