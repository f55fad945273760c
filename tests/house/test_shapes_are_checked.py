"""The tests check shapes: an annotation is not a comment while they run, and costs nothing otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

PROBE = """
from jaxtyping import Float
from torch import Tensor


def total(tokens: Float[Tensor, "b n d"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    return (tokens * weights[..., None]).sum(1)
"""


def test_a_wrong_shape_raises_in_a_module_under_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shape_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with jaxtyping.install_import_hook("shape_probe", "beartype.beartype"):
        import shape_probe

    assert shape_probe.total(torch.ones(2, 3, 4), torch.ones(2, 3)).shape == (2, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        shape_probe.total(torch.ones(2, 3, 4), torch.ones(2, 5))


MISTAKEN_CALL = """
import torch

from vitral.layers.norm import LayerScale

scaled = LayerScale(3, 1.0)(torch.ones(2, 1))  # tokens have as many channels as there are gains
"""


def test_vitral_itself_is_under_the_hook() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        exec(MISTAKEN_CALL, {})


def test_without_the_hook_nothing_is_checked() -> None:
    script = MISTAKEN_CALL + "print(list(scaled.shape))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[2, 3]"
