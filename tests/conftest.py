"""What every test stands on: shapes are checked, seeds are fixed, and the peers import."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import jaxtyping

import tests.typechecker  # noqa: F401 - the hook looks it up by name

# Before anything imports vitral: from here on every annotated function and dataclass checks its shapes as it is called.
jaxtyping.install_import_hook("vitral", "tests.typechecker.checked")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Machines are shared: how long an example takes says nothing about what it found.
settings.register_profile("vitral", deadline=None)
settings.load_profile("vitral")

ROOT = Path(__file__).resolve().parents[1]

# torchvision's wheel expects two operators that only its CUDA library defines; it is imported here as an oracle, for
# which their names are enough. Where torchvision is whole they exist already, and defining them again is refused.
for operator in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

# Workers of pytest-xdist share the cores: more threads than cores make every one of them slower.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As for users: annotations are not held against what comes, so the sentence that answers it is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """The same random numbers for a test, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published pictures and weights beside the checkout; the test is skipped where there is none."""
    for folder in (ROOT / ".." / "shared", ROOT / "shared"):
        if (folder / "data").is_dir():
            return folder.resolve()
    pytest.skip("needs the folder of published pictures and weights, `shared`, beside the checkout")
