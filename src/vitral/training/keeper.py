"""The folder of a training: what it was asked for, its journal, its checkpoints, the best and the last model.

```
out/
  recipe.json     every option, and which pictures
  journal.jsonl   what happened, row by row
  step-…/         the last few checkpoints, to go on from
  best/           the model that did best on the pictures held out
  last/           the model of the last step
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vitral.base.disk import alone_in, write_whole
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.network import Network
from vitral.training.checkpoint import Checkpoints, Saved
from vitral.training.journal import Journal
from vitral.training.recipe import Recipe, options_of
from vitral.training.subject import Pictures

__all__ = ["Keeper"]

# What may differ when a training goes on: how it is computed and watched, and what becomes of broken pictures.
_FREE = ("name", "workers", "bad_pictures", "save_every", "evaluate_every", "keep", "compile", "checkpointing")

# Options that a folder may not know yet, for it was written before there were any: it was trained with these.
_NEW = {
    "task": "classification",
    "backbone": None,
    "backbone_rate": 1.0,
    "drop_epochs": None,
    "drop_factor": 0.1,
}


class Keeper:
    """What a training writes, or, without a folder, does not.

    Args:
        out: the folder, made if it is not there; None to write nothing.
        recipe: what is trained with.
        pictures: what is trained on.
        held_out: what it is judged by.
        writes: whether this is the process that writes; the others only read.

    Raises:
        UsageError: the folder holds a training of other pictures or with other options, or something else.
    """

    def __init__(
        self, out: Path | None, recipe: Recipe, pictures: Pictures, held_out: Pictures | None, *, writes: bool = True
    ) -> None:
        self.out, self.writes = out, writes and out is not None
        self.checkpoints: Checkpoints | None = None
        self.journal: Journal | None = None
        if out is None:
            return
        asked = {"recipe": options_of(recipe), "pictures": _named(pictures), "held_out": held_out and _named(held_out)}
        _check_same(out, asked)
        self.checkpoints = Checkpoints(out, keep=recipe.keep)
        if self.writes:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / "recipe.json", json.dumps(asked, indent=2).encode())
            self.journal = Journal(out / "journal.jsonl")

    def alone(self) -> AbstractContextManager[None]:
        """While this lasts no other training writes to the folder.

        Raises:
            UsageError: one does already.
        """
        return alone_in(self.out) if self.writes and self.out else nullcontext()

    def newest(self) -> Saved | None:
        """The newest whole checkpoint, if there is one; the journal forgets what came after it."""
        saved = self.checkpoints.newest() if self.checkpoints else None
        if self.journal:
            self.journal.cut_after(saved.step if saved else 0)
            if self.checkpoints and saved:
                self.checkpoints.cut_after(saved.step)  # damaged later ones
            if saved:
                self.journal.append("resume", step=saved.step, skipped=list(saved.skipped))
        return saved

    def note(self, event: str, **values: Any) -> None:
        """A row in the journal."""
        if self.journal:
            with self._writing():
                self.journal.append(event, **values)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """A checkpoint to go on from, and the journal as far."""
        if self.writes and self.checkpoints and self.journal:
            with self._writing():
                self.journal.sync()
                self.checkpoints.save(step, state)

    def keep_best(self, model: Network, value: float, step: int) -> None:
        """The best model so far, in place of the one before."""
        if self.writes and self.checkpoints:
            with self._writing():
                self.checkpoints.save_best(value, step, lambda folder: save_model(model, folder))

    def has_best(self) -> bool:
        """Whether the best model so far is still there."""
        try:
            return self.checkpoints is not None and self.checkpoints.best() is not None
        except CheckpointError:
            return False

    def keep_last(self, model: Network) -> None:
        """The model of the last step."""
        if self.writes and self.out:
            with self._writing():
                save_model(model, self.out / "last")

    def saved_until(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return next(iter(self.checkpoints.steps()), None) if self.checkpoints else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """While this lasts, an error of the disk says as well what is safe, and how to go on."""
        try:
            yield
        except OSError as error:
            step = self.saved_until()
            safe = (
                f"No checkpoint was written to {self.out} yet"
                if step is None
                else f"The checkpoint of step {step} in {self.out} is whole"
            )
            where = f": {error.filename}" if error.filename else ""
            told = f"{error.strerror or error}{where}. {safe}; when there is room, the same command goes on"
            raise OSError(error.errno, told) from error


def _named(pictures: Pictures) -> dict[str, str]:
    return {"name": pictures.name, "fingerprint": pictures.fingerprint}


def _check_same(out: Path, asked: dict[str, Any]) -> None:
    """Refuse to go on with another training than the one in the folder."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a training needs a folder.")
    told = out / "recipe.json"
    if not told.exists():
        for name in ("step-*", "best", "last", "journal.jsonl"):
            if any(out.glob(name)):
                raise UsageError(f"{out} holds {name}, but no recipe.json of a training that wrote it. Give another folder.")
        return
    try:
        before = json.loads(told.read_text())
        recipe, pictures, held_out = dict(before["recipe"]), before["pictures"], before["held_out"]
        recipe = _NEW | recipe
        learned, judged = (str(pictures["name"]), pictures["fingerprint"]), held_out and held_out["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{told} cannot be read as the recipe of a training. Give another folder.") from error
    asked = json.loads(json.dumps(asked))  # as JSON has it
    if judged != (asked["held_out"] and asked["held_out"]["fingerprint"]):
        raise UsageError(f"{out} holds a training that is judged by other pictures. Give the same ones, or another folder.")
    if learned[1] != asked["pictures"]["fingerprint"]:
        raise UsageError(
            f"{out} holds a training on other pictures ({learned[0]}); files were added, removed or renamed since, or "
            "these are others. Give another folder to train on these."
        )
    names = sorted((recipe.keys() | asked["recipe"].keys()) - set(_FREE))
    other = [name for name in names if recipe.get(name) != asked["recipe"].get(name)]
    if other:
        told_by_name = ", ".join(f"{name} {recipe.get(name)!r}, now {asked['recipe'].get(name)!r}" for name in other[:5])
        raise UsageError(
            f"{out} holds a training with other options: {told_by_name}. Give the same ones, or another folder."
            f"{_onwards(out)}"
        )


def _onwards(out: Path) -> str:
    """How to go on from a training that was finished, as the end of a sentence."""
    kept = next((name for name in ("best", "last") if (out / name / "model.safetensors").is_file()), None)
    if kept is None or not (out / "last").is_dir():
        return ""
    return f" To go on from what was learned there, begin with its weights: --model {out / kept}, in another folder."
