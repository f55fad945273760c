"""Vitral: transformers in vision. Published checkpoints of every layout, from a picture to the right answer.

This page is the front door. Its names live in the rooms behind it and are fetched when first asked for, so that
`import vitral` costs milliseconds and does not import torch (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitral import errors

__all__ = [
    "__version__",
    "create_model",
    "errors",
    "explain",
    "list_models",
    "load",
    "load_model",
    "pipeline",
    "save_model",
    "train",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitral.checkpoints.load import load_model
    from vitral.checkpoints.save import save_model
    from vitral.explanation.explain import explain
    from vitral.models.catalogue import create_model, list_models
    from vitral.pipelines.pipeline import pipeline
    from vitral.pipelines.predictor import load
    from vitral.recipes.catalogue import train
else:
    # Hidden from type checkers, who would otherwise take every misspelt name for one that `__getattr__` may know.
    _HOME = {
        "create_model": "vitral.models.catalogue",
        "explain": "vitral.explanation.explain",
        "list_models": "vitral.models.catalogue",
        "load": "vitral.pipelines.predictor",
        "load_model": "vitral.checkpoints.load",
        "pipeline": "vitral.pipelines.pipeline",
        "save_model": "vitral.checkpoints.save",
        "train": "vitral.recipes.catalogue",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise _unknown(name)
        import importlib

        found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return found

    def _unknown(name: str) -> AttributeError:
        import difflib
        import sys

        near = difflib.get_close_matches(name, __all__, n=1, cutoff=0.5)
        advice = f"Did you mean {near[0]!r}?" if near else f"It offers {', '.join(__all__)}."
        return AttributeError(f"vitral has no {name!r}. {advice}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return list(__all__)
