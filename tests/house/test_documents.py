"""Every code block of README.md and docs/ runs, in the folder that its page describes.

A page's blocks share one namespace, from top to bottom, in a fresh folder that holds `photo.jpg` (a picture) and
`checkpoint/` (a tiny model with random weights, in Vitral's layout). A block opened with "```python no-run" (one that
needs the network, an extra or an hour) must only compile. Commands beginning with `vitral` must name a command that
exists, with options it has.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if page.exists()]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)(?P<note>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, what else the fence says, the line its code begins on, and its code."""

    language: str
    note: str
    line: int
    code: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page that name their language, from top to bottom."""
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("code")) + 1
        code = re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.M)
        yield Block(fence["language"], fence["note"].strip(), line, code)


def run(text: str, name: str) -> dict[str, Any]:
    """Run a page's Python blocks in one namespace; a traceback names the page and the line in it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, name, "exec")
            if "no-run" not in block.note.split():
                exec(code, namespace)
    return namespace


def commands(text: str) -> Iterator[list[str]]:
    """The words after `vitral` of every command in a page's bash and console blocks; lines ended by \\ go on."""
    for block in blocks(text):
        if block.language in {"bash", "console", "sh", "shell"}:
            for line in block.code.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ")
                if command.startswith("vitral "):
                    yield shlex.split(command, comments=True)[1:]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder each page finds itself in."""
    import vitral

    folder = tmp_path_factory.mktemp("page")
    y, x = np.mgrid[:240, :320]
    disc = (x - 200) ** 2 + (y - 100) ** 2 < 60**2
    picture = np.stack([x * 255 // 320, y * 255 // 240, np.where(disc, 230, 60)], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(folder / "photo.jpg", quality=95)
    vitral.save_model(vitral.create_model("vit_ti16", num_classes=10, **TINY), folder / "checkpoint")
    return folder


TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}


@pytest.fixture
def desk(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder, as the working directory."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_runs(page: Path, desk: Path) -> None:
    run(page.read_text("utf-8"), str(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists(page: Path) -> None:
    for words in commands(page.read_text("utf-8")):
        import typer.main

        from vitral.cli.main import app
        from vitral.training.recipe import option_names

        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        if command.name == "train":  # takes the options of a recipe as well
            known |= {f"--{name.replace('_', '-')}" for name in option_names()}
        given = {word.split("=")[0] for word in words if word.startswith("-") and len(word) > 1}
        given = {word for word in given if not word.startswith("--network.")}
        assert given - {"--help"} <= known, f"vitral {command.name} has no {given - known}"
        assert not hasattr(command, "commands") or not words or given, f"vitral has no command {words[0]!r}"


PAGE = """
# A page

```python
number = 20
```

Prose, and a block in a list:

- first
  ```python
  number += 1
  ```

```python no-run
number += 100
```

```text
not python
```

```python
answer = 2 * number
```

```bash
$ vitral classify photo.jpg \\
    --top 3  # the three likeliest
pip install vitral
```
"""


def test_blocks_share_a_namespace_and_no_run_blocks_do_not_run() -> None:
    assert run(PAGE, "page.md")["answer"] == 42


def test_commands_are_read_from_shell_blocks() -> None:
    assert list(commands(PAGE)) == [["classify", "photo.jpg", "--top", "3"]]


@pytest.mark.parametrize("planted", ["raise KeyError", "1 +"])
def test_a_failing_block_fails_and_names_its_line(planted: str) -> None:
    with pytest.raises((KeyError, SyntaxError)) as failure:
        run(f"# Title\n\n```python\n{planted}\n```\n", "page.md")
    error = failure.value
    assert (error.lineno if isinstance(error, SyntaxError) else failure.traceback[-1].lineno + 1) == 4


def test_a_no_run_block_must_compile() -> None:
    with pytest.raises(SyntaxError):
        run("```python no-run\n1 +\n```\n", "page.md")


def test_there_is_a_page() -> None:
    assert ROOT / "README.md" in PAGES
