"""Checkpoints of a run: what is saved comes back to the bit; no kill, full disk or flipped bit passes for a whole one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from vitral.errors import CheckpointError, UsageError
from vitral.training import checkpoint
from vitral.training.checkpoint import Best, Checkpoints, Saved


def same(one: Any, other: Any) -> bool:
    """Equal in type, nesting, order of keys and every bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and torch.equal(one.detach().reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is saved comes back.

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits, of any kind, of any shape; some are views into others, out of order."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = math.prod(shape) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        content = bytes(byte & 1 for byte in content)
    made = (
        torch.tensor(list(content), dtype=torch.uint8).view(dtype).reshape(shape) if size else torch.zeros(shape).to(dtype)
    )
    return made.t() if made.ndim == 2 and draw(st.booleans()) else made


keys = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(["$tensor", "$", "a/b"]),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=3,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(max_size=5) | st.sampled_from(["$tensor", "__metadata__"]), values, max_size=4))
def test_any_state_comes_back_to_the_bit(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what stays after a power cut is not asked here
    saved = Checkpoints(tmp_path / "run").save(7, state)
    assert same(state, saved.state)
    newest = Checkpoints(tmp_path / "run").newest()
    assert newest is not None
    assert same(state, newest.state)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lbfgs"])
def test_an_optimiser_goes_on_from_its_state(kind: str, tmp_path: Path) -> None:
    """torch itself is asked: the restored optimiser takes the very step that the first one takes."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
        if kind == "adamw":
            return model, torch.optim.AdamW(groups, betas=(0.9, 0.95), amsgrad=True)
        if kind == "sgd":
            return model, torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        return model, torch.optim.LBFGS(model.parameters(), max_iter=3)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    model, optimizer = made()
    for seed in range(3):
        step(model, optimizer, seed)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "python": random.getstate(),
    }
    back = Checkpoints(tmp_path).save(3, state).state
    assert isinstance(back["model"], dict)
    assert same({**state, "model": dict(state["model"])}, back)
    again, other = made()
    again.load_state_dict(back["model"])
    other.load_state_dict(back["optimizer"])
    random.setstate(back["python"])
    step(model, optimizer, 9)
    step(again, other, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_tensors_that_share_memory_are_each_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    state = {"a": base, "b": base, "part": base[2:4], "turned": base.view(2, 3).t(), "wide": base[:1].expand(3)}
    back = Checkpoints(tmp_path).save(0, {**state, "learnt": nn.Parameter(base)}).state
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert type(back["learnt"]) is Tensor
    assert not back["learnt"].requires_grad
    back["a"][0] = 9
    assert back["b"][0] == 0


def test_what_was_loaded_does_not_hang_on_its_file(tmp_path: Path) -> None:
    state = Checkpoints(tmp_path).save(0, {"x": torch.arange(4096.0)}).state
    (tmp_path / "step-00000000" / "state.safetensors").write_bytes(b"")
    assert torch.equal(state["x"], torch.arange(4096.0))


def test_the_files_are_what_others_read(tmp_path: Path) -> None:
    """safetensors and json read them, and the tensors have the names that lead to them."""
    state = {"model": {"w": torch.ones(3), 0: torch.zeros(2), "0": torch.ones(2)}, "betas": (0.9, float("inf")), "epoch": 3}
    folder = Checkpoints(tmp_path).save(12, state).folder
    assert folder.name == "step-00000012"
    read = load_file(folder / "state.safetensors")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "model/w": [1, 1, 1],
        "model/0": [0, 0],
        "model/0~2": [1, 1],
    }
    strict = json.loads((folder / "state.json").read_bytes(), parse_constant=pytest.fail)
    assert strict["betas"] == {"$tuple": [0.9, {"$float": "inf"}]}
    assert strict["epoch"] == 3
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert (manifest["format"], manifest["step"]) == (1, 12)
    for name in ("state.safetensors", "state.json"):
        content = (folder / name).read_bytes()
        assert manifest["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["files"].keys() == {"state.safetensors", "state.json"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(1.0), r"state\['a'\]\[1\] is a numpy\.float64, which would not come back the same"),
        (np.zeros(2), r"is a numpy\.ndarray"),
        (Counter("aa"), r"is a collections\.Counter"),
        (b"x", r"is a builtins\.bytes"),
        (torch.float32, r"is a torch\.dtype"),
        (torch.zeros(2, dtype=torch.complex64), r"tensor of torch\.complex64.*torch\.view_as_real"),
        (torch.zeros(2).to_sparse(), r"torch\.sparse_coo"),
        (torch.zeros(2, device="meta"), r"on meta"),
        ({torch.zeros(1): 1}, r"is a torch\.Tensor, which would not"),
    ],
    ids=str,
)
def test_what_would_not_come_back_the_same_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        Checkpoints(tmp_path / "run").save(1, {"a": [0, value]})
    assert not (tmp_path / "run").exists()


def test_an_ordered_dictionary_comes_back_as_a_plain_one(tmp_path: Path) -> None:
    back = Checkpoints(tmp_path).save(0, {"x": OrderedDict([("b", 1), ("a", 2)])}).state
    assert type(back["x"]) is dict
    assert list(back["x"]) == ["b", "a"]


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (True, 2), (1, 0), (1, -1)])
def test_numbers_that_count_nothing_are_refused(step: Any, keep: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a whole number of at least"):
        Checkpoints(tmp_path / "run", keep=keep).save(step, {})
    assert not (tmp_path / "run").exists()


# Which are kept, and which is found.


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_ones_are_kept(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in (5, 99, 100, 1000, 123_456_789):
        checkpoints.save(step, {"step": step})
    assert steps_in(tmp_path) == ["step-00000100", "step-00001000", "step-123456789"][-keep:]
    newest = checkpoints.newest()
    assert newest == Saved(step=123_456_789, folder=tmp_path / "step-123456789")


def test_of_an_empty_or_absent_folder_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "run").newest() is None
    assert Checkpoints(tmp_path).newest() is None
    assert Checkpoints(tmp_path).best() is None
    assert not (tmp_path / "run").exists()


def test_files_of_others_are_left(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-12").mkdir()  # not of our naming
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, {})
    assert steps_in(tmp_path) == ["notes.txt", "step-00000002", "step-12"]


def test_a_step_is_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.save(4, {"x": 1}).folder / "more").write_text("old")
    checkpoints.save(4, {"x": 2})
    assert steps_in(tmp_path) == ["step-00000004"]
    assert checkpoints.save(4, {"x": 3}).state == {"x": 3}
    assert not (tmp_path / "step-00000004" / "more").exists()
    assert checkpoints.steps() == [4]


def test_later_ones_are_cut(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step in (1, 2, 3):
        checkpoints.save(step, {})
    checkpoints.cut_after(1)
    assert steps_in(tmp_path) == ["step-00000001"]
    checkpoints.cut_after(1)
    assert steps_in(tmp_path) == ["step-00000001"]


def test_going_on_from_an_older_one_does_not_lose_it(tmp_path: Path) -> None:
    """Steps 10 to 30 are there, 30 is damaged, and the run saves step 25 next: 20 must outlive that."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, {})
    (tmp_path / "step-00000030" / "manifest.json").unlink()
    checkpoints.save(25, {})
    assert steps_in(tmp_path) == ["step-00000020", "step-00000025", "step-00000030"]


# Damage.


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _manifest(folder: Path, change: Any) -> None:
    told = json.loads((folder / "manifest.json").read_bytes())
    change(told)
    (folder / "manifest.json").write_text(json.dumps(told))


DAMAGES: list[tuple[str, Any, str]] = [
    (
        "a flipped bit",
        lambda f: _flip(f / "state.safetensors", -1),
        r"state\.safetensors is not what was written \(its SHA-256",
    ),
    ("a flipped bit in json", lambda f: _flip(f / "state.json", 8), r"state\.json is not what was written"),
    (
        "cut short",
        lambda f: os.truncate(f / "state.safetensors", 99),
        r"state\.safetensors has 99 bytes where \d+ were written",
    ),
    ("empty", lambda f: os.truncate(f / "state.json", 0), r"state\.json has 0 bytes"),
    ("a file gone", lambda f: (f / "state.safetensors").unlink(), r"state\.safetensors is missing"),
    ("no manifest", lambda f: (f / "manifest.json").unlink(), r"no manifest\.json"),
    ("half a manifest", lambda f: os.truncate(f / "manifest.json", 40), r"manifest\.json cannot be understood"),
    ("no object", lambda f: (f / "manifest.json").write_text("[1]"), r"manifest\.json cannot be understood"),
    ("nested too deep", lambda f: (f / "manifest.json").write_text("[" * 100_000), r"manifest\.json cannot be understood"),
    ("not text", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\0"), r"manifest\.json cannot be understood"),
    (
        "a wrong hash",
        lambda f: _manifest(f, lambda told: told["files"]["state.json"].update(sha256="0" * 64)),
        r"state\.json is not what was written",
    ),
    ("unlisted", lambda f: _manifest(f, lambda told: told["files"].pop("state.json")), r"does not list state\.json"),
    ("another step", lambda f: _manifest(f, lambda told: told.update(step=3)), r"is of step 3, its folder's name of step 2"),
    ("of the future", lambda f: _manifest(f, lambda told: told.update(format=2)), r"of format 2, and this version"),
    ("a file in its place", lambda f: (shutil.rmtree(f), f.write_text("")), r"no manifest\.json"),
]


@pytest.mark.parametrize(("damage", "sentence"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_a_damaged_one_is_skipped_and_told_of(damage: Any, sentence: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "x": torch.full((64,), step)})
    damage(tmp_path / "step-00000002")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    assert same(found.state, {"step": 1, "x": torch.full((64,), 1)})
    (told,) = found.skipped
    assert told.startswith(f"The checkpoint {tmp_path / 'step-00000002'} was skipped: ")
    assert re.search(sentence, told), told
    assert (tmp_path / "step-00000002").exists(), "a reader removes nothing"


def test_every_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path).save(1, {"x": torch.arange(3), "y": (1, 2.5)}).folder
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 3):
            if path.name == "manifest.json" and content[place : place + 1].isspace():
                continue  # one kind of white space for another says the same
            _flip(path, place)
            with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole"):
                Checkpoints(tmp_path).newest()
            path.write_bytes(content)
    assert Checkpoints(tmp_path).newest() is not None


def test_where_all_are_damaged_nobody_starts_anew_unasked(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        (checkpoints.save(step, {}).folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="Move the folder elsewhere to start anew") as caught:
        checkpoints.newest()
    assert all(f"step-0000000{step} was skipped" in str(caught.value) for step in (1, 2))


def test_damage_after_it_was_found_is_a_sentence(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for name, content in (("state.safetensors", b"{"), ("state.json", b"[1]"), ("state.json", b'{"$tensor": "q"}')):
        checkpoints.save(1, {"x": torch.ones(2)})
        found = checkpoints.newest()
        assert found is not None
        (found.folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=str(found.folder)):
            _ = found.state


# The best.


def test_the_best_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    best = checkpoints.save_best(0.1 + 0.2, 0, lambda folder: (folder / "model").write_text("first"))
    assert checkpoints.best() == best == Best(value=0.30000000000000004, step=0, folder=tmp_path / "best")
    before = bytes_in(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_best(0.5, 9, fails)
    with pytest.raises(UsageError, match="value must be a finite number; nan came"):
        checkpoints.save_best(float("nan"), 9, fails)
    assert bytes_in(tmp_path) == before
    checkpoints.save_best(0.5, 9, lambda folder: (folder / "other").write_text("second"))
    assert bytes_in(tmp_path).keys() == {"best/other", "best/best.json"}
    assert checkpoints.best() == Best(value=0.5, step=9, folder=tmp_path / "best")
    (tmp_path / "best" / "best.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"best\.json does not tell a value and a step"):
        checkpoints.best()


# Disks that fill, and that refuse.


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("a small disk cannot be mounted here; it takes root, and Linux")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_what_will_not_fit_is_refused_before_a_byte_is_written(tiny_disk: Path) -> None:
    checkpoints = Checkpoints(tiny_disk)
    checkpoints.save(1, {"x": torch.ones(250_000)})
    before = bytes_in(tiny_disk)
    with pytest.raises(OSError, match=r"Not enough room on the disk: 5\.0 MB are needed and 3\.\d MB are free") as caught:
        checkpoints.save(2, {"x": torch.ones(1_000_000 - 40_000)})
    assert caught.value.filename == str(tiny_disk)
    assert bytes_in(tiny_disk) == before


def test_a_disk_that_fills_keeps_what_was_there(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tiny_disk)
    checkpoints.save(1, {"x": torch.ones(250_000)})
    checkpoints.save_best(1.0, 1, lambda folder: (folder / "model").write_bytes(b"m" * 1000))
    (tiny_disk / "big").write_bytes(b"b" * 2_500_000)  # another program's, in the moment after the space was asked for
    monkeypatch.setattr(checkpoint, "check_space", lambda folder, needed: None)
    before = bytes_in(tiny_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.save(2, {"x": torch.ones(250_000)})
    assert Path(caught.value.filename).is_relative_to(tiny_disk / "step-00000002")
    assert bytes_in(tiny_disk) == before
    assert [path.name for path in tiny_disk.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save_best(2.0, 2, lambda folder: (folder / "model").write_bytes(b"m" * 10_000_000))
    assert bytes_in(tiny_disk) == before
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1


def test_a_disk_that_refuses_at_any_call_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that reaches the disk fails once, the first, the second, … until one saving goes through."""
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    checkpoints.save(1, {"x": 1})
    before = bytes_in(tmp_path)
    caught: list[OSError] = []
    calls = 1
    for number in range(1, 100):
        if calls < number - 1:
            break
        calls = 0

        def failing(real: Any, number: int = number) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    raise OSError(28, "No space left on device")
                return real(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "mkdir"):
                patch.setattr(os, name, failing(getattr(os, name)))
            patch.setattr(Path, "open", failing(Path.open))
            try:
                checkpoints.save(2, {"x": 2})
            except OSError as error:
                caught.append(error)
        found = checkpoints.newest()
        assert found is not None
        assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []
        if found.step == 1:
            assert bytes_in(tmp_path) == before
        else:  # it was saved, if perhaps the old one could not be removed
            assert found.state == {"x": 2}
            shutil.rmtree(found.folder)
            checkpoints.save(1, {"x": 1})
    assert len(caught) > 15
    assert {error.errno for error in caught} == {28}
    for error in caught:
        assert re.fullmatch(rf"\[Errno 28\] No space left on device: '{tmp_path}/run[\w/.-]*'", str(error))
        assert ".vitral-" not in str(error)


def test_a_folder_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="file") as caught:
            Checkpoints(folder).save(1, {"x": 1})
        assert str(caught.value.filename).startswith(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut takes what was not flushed: every file and folder is, before the rename, and the rename after it."""
    flushed: set[int] = set()
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        flushed.add(os.fstat(handle).st_ino)
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "step-00000001":
            inside = [Path(source), *Path(source).rglob("*")]
            assert {path.name for path in inside} == {"step-00000001", *NAMES}
            assert {path.stat().st_ino for path in inside} <= flushed
            flushed.clear()
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)

    Checkpoints(tmp_path).save(1, {"x": torch.ones(3)})
    assert tmp_path.stat().st_ino in flushed


NAMES = ("manifest.json", "state.json", "state.safetensors")


# Kills.


def state_of(step: int) -> dict[str, Any]:
    """3 MB that only this step has."""
    numbers = torch.arange(step, step + 750_000, dtype=torch.float32)
    return {"step": step, "optimizer": {"state": {0: {"exp_avg": numbers}}, "betas": (0.9, step / 7)}}


def save_for_ever(folder: Path, tell: int) -> None:
    """Go on from the newest; the pipe is told "b" when saving begins, and each step that was saved."""
    checkpoints = Checkpoints(folder)
    newest = checkpoints.newest()
    step = 0 if newest is None else newest.step
    os.write(tell, b"b\n")
    while True:
        step += 1
        checkpoints.save(step, state_of(step))
        content = b"%09d" % step * 1000
        checkpoints.save_best(float(step), step, lambda to, content=content: (to / "model").write_bytes(content))
        os.write(tell, b"%d\n" % step)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_fifty_kills_while_saving_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoints = Checkpoints(folder)
    moments = random.Random(0)
    before, best_before, mid_save, most = 0, 0, 0, 2
    for _ in range(50):
        ear, mouth = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                torch.set_num_threads(1)
                save_for_ever(folder, mouth)
            finally:
                os._exit(1)
        os.close(mouth)
        with os.fdopen(ear, "rb") as told:
            assert told.readline() == b"b\n"
            time.sleep(moments.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            promised = [int(line) for line in told.read().splitlines()]
        assert os.WIFSIGNALED(status), "it was killed, and did not end by itself"
        mid_save += any(path.name.startswith(".vitral-") for path in folder.iterdir())

        found, best = checkpoints.newest(), checkpoints.best()
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], "leftovers are swept"
        if found is None:
            assert not promised
            continue
        assert found.step >= max([before, *promised]), "what was said to be saved is there"
        assert found.skipped == (), "no half checkpoint ever had its name"
        assert same(found.state, state_of(found.step))
        best_before = max([best_before, *promised])
        assert best is not None or not best_before
        if best is not None:
            assert best_before <= best.step <= found.step
            assert best.value == best.step
            assert (best.folder / "model").read_bytes() == b"%09d" % best.step * 1000
            best_before = best.step
        names = [name for name in steps_in(folder) if name != "best"]
        assert names[-1] == found.folder.name
        most = 3 if promised else most + 1  # two are kept, and one more if the kill came between saving and removing
        assert len(names) <= most
        for name in names[:-1]:  # the older ones are whole, too
            (tmp_path / "alone").mkdir()
            (tmp_path / "alone" / name).symlink_to(folder / name)
            assert Checkpoints(tmp_path / "alone").newest() == Saved(step=int(name[5:]), folder=tmp_path / "alone" / name)
            shutil.rmtree(tmp_path / "alone")
        before = found.step
    assert before > 0
    assert mid_save > 10, "the kills came while something was being written"
