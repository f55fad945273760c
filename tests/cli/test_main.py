"""The program as a shell runs it: fast to answer, quiet when its reader leaves, whole when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vitral

PROGRAM = (sys.executable, "-m", "vitral")


def run(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | dict(options.pop("env", {}))  # type: ignore[call-overload]
    return subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_version() -> None:
    ran = run("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"vitral {vitral.__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nsys.argv = ['vitral', '--help']\nfrom vitral.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'rich', 'jaxtyping'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == "[]\n"
    assert all(command in ran.stdout for command in ("predict", "explain", "models", "demo"))


@pytest.mark.parametrize("command", ["predict", "explain", "models", "demo"])
def test_every_command_has_help(command: str) -> None:
    ran = run(command, "--help")
    assert ran.returncode == 0
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_a_prediction_from_the_shell(checkpoint: Path, pictures: Path) -> None:
    ran = run("predict", pictures / "a.png", pictures / "broken.jpg", "--model", checkpoint, "--json")
    assert ran.returncode == 1
    first, second = map(json.loads, ran.stdout.splitlines())
    assert len(first["classes"]) == 3
    assert second["name"] == str(pictures / "broken.jpg")
    assert "Traceback" not in ran.stderr


def test_debug_by_environment_shows_the_traceback(pictures: Path) -> None:
    ran = run("predict", pictures / "a.png", "--model", "nowhere at all", env={"VITRAL_DEBUG": "1"})
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "CheckpointError" in ran.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes of another kind")
def test_a_reader_that_leaves_is_no_error(checkpoint: Path, pictures: Path) -> None:
    files = [str(pictures / "a.png")] * 40
    words = [*PROGRAM, "predict", *files, "--model", str(checkpoint), "--json", "--batch-size", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["name"] == files[0]
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) in (0, 141)


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra `demo`")
    out = tmp_path / "demo"
    with subprocess.Popen(
        [*PROGRAM, "demo", "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "learns" in process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors == "Interrupted.\n" or (errors == "" and process.returncode == -signal.SIGINT)
    # A shell reports both as 130: where the interruption fell into an `exec`, CPython ends by the signal itself.
    assert process.returncode in (130, -signal.SIGINT)
    assert not out.exists()
