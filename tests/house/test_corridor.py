"""One prediction walks through few rooms: a stranger can follow it with a finger on the page."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

import vitral

# In a process of its own: here every function is wrapped to have its shapes checked.
WALK = """
    import sys, vitral
    predictor = vitral.load("model")
    predictor("photo.jpg")
    walked = set()

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and "/vitral/" in code.co_filename.replace("\\\\", "/"):
            walked.add((code.co_filename, code.co_firstlineno, code.co_name))

    sys.setprofile(note)
    answer = predictor("photo.jpg")
    sys.setprofile(None)
    assert len(answer) == 7
    print(len({file for file, _, _ in walked}), len(walked))
    for file, line, name in sorted(walked):
        print(file, line, name)
"""


def test_a_prediction_passes_at_most_12_files_and_40_functions(tmp_path: Path) -> None:
    model = vitral.create_model("vit_ti16", width=32, heads=2, depth=2, mlp_width=64, num_classes=7)
    vitral.save_model(model, tmp_path / "model")
    Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WALK)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    files, functions = map(int, run.stdout.splitlines()[0].split())
    assert files <= 12, run.stdout
    assert functions <= 40, run.stdout
    assert files >= 8, "the walk was not seen"
