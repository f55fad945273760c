"""The floors of the house: a file imports its own room and lower floors, never a sister, never up."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"

# Rooms on one floor are sisters and do not know each other. The command line stands one step above the other entrances,
# because its commands open them: `vitral serve`, `vitral demo`.
FLOORS = {
    "errors": 0,
    "base": 1,
    "layers": 2,
    "data": 2,
    "models": 3,
    "tasks": 4,
    "checkpoints": 4,
    "explanation": 5,
    "training": 5,
    "pipelines": 5,
    "serve": 6,
    "recipes": 6,
    "cli": 7,
    "__main__": 8,
    "": 9,  # the front door, vitral/__init__.py, which may see everything
}
FORBIDDEN_PACKAGES = ("torchvision", "timm", "transformers")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and the line that imports it."""

    module: str
    line: int


def module_name(page: Path, source: Path) -> str:
    """`src/vitral/base/image.py` is `vitral.base.image`; a package's `__init__.py` is the package."""
    parts = page.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(code: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import of a page, wherever it stands: top level, functions, TYPE_CHECKING blocks, import_module("…")."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")
            above = above[: len(above) - node.level + is_package] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(f"{origin}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"import_module", "__import__"}:
                yield Import(str(node.args[0].value), node.lineno)


def room_of(module: str) -> str:
    """`vitral.base.image` lies in `base`; the front door and what is defined there in ""."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""


def complaint(importer: str, imported: str) -> str | None:
    """Why this module may not import that one, or None if it may."""
    package = imported.split(".")[0]
    if package in FORBIDDEN_PACKAGES:
        return f"{package} may not be imported in src: a CPU machine must run without it"
    if package != "vitral":
        return None
    own, other = room_of(importer), room_of(imported)
    if own == other or imported == "vitral.__version__" or FLOORS[other] < FLOORS[own]:
        return None
    if other == "":
        return "the front door is above every room: import from the room where the name lives"
    return f"{other!r} is " + ("a sister of" if FLOORS[other] == FLOORS[own] else "above") + f" {own!r}"


def complaints(source: Path) -> list[str]:
    """Every import below `source` that breaks the floors, as "page:line: reason"."""
    found = []
    for page in sorted((source / "vitral").rglob("*.py")):
        module = module_name(page, source)
        for imported in imports_of(page.read_text(encoding="utf-8"), module, page.name == "__init__.py"):
            reason = complaint(module, imported.module)
            if reason:
                found.append(f"{page.relative_to(source)}:{imported.line}: imports {imported.module}; {reason}")
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {page.name.removesuffix(".py") for page in (SOURCE / "vitral").iterdir() if page.suffix == ".py"}
    rooms |= {page.parent.name for page in (SOURCE / "vitral").glob("*/__init__.py")}
    assert rooms - {"__init__"} <= FLOORS.keys(), "give the new room its floor in FLOORS"


def test_floors() -> None:
    assert complaints(SOURCE) == []


@pytest.mark.parametrize(
    ("page", "code"),
    [
        ("base/image.py", "from vitral.models.output import Output"),
        ("base/image.py", "def read():\n    import vitral.models.catalogue"),
        ("base/image.py", "if TYPE_CHECKING:\n    from vitral.tasks import classify"),
        ("base/image.py", "importlib.import_module('vitral.models')"),
        ("base/image.py", "from vitral import load_model"),
        ("base/image.py", "import vitral"),
        ("base/image.py", "from ..layers import attention"),
        ("base/image.py", "from .. import layers"),
        ("base/__init__.py", "from ..layers import attention"),
        ("errors.py", "from vitral.base.image import Picture"),
        ("layers/mlp.py", "from vitral.data.transforms import Preprocessing"),
        ("models/backbones/vit.py", "from ...checkpoints.load import load_model"),
        ("tasks/classify.py", "from vitral import checkpoints"),
        ("training/loop.py", "from vitral.pipelines.predictor import load"),
        ("serve/app.py", "from vitral.recipes.digits import digits"),
        ("data/transforms.py", "import torchvision.transforms as T"),
        ("models/vit.py", "from timm.layers import Mlp"),
        ("checkpoints/load.py", "def f():\n    from transformers import AutoModel"),
    ],
)
def test_the_checker_finds_a_planted_violation(tmp_path: Path, page: str, code: str) -> None:
    planted = tmp_path / "vitral" / page
    planted.parent.mkdir(parents=True)
    planted.write_text(code)
    assert len(complaints(tmp_path)) == 1


@pytest.mark.parametrize(
    ("page", "code"),
    [
        ("base/image.py", "from vitral.errors import PictureError\nfrom .frame import Frame\nimport torch"),
        ("base/hub.py", "from vitral import __version__, errors"),
        ("models/backbones/vit.py", "from ...layers.attention import Attention\nfrom ..output import Output"),
        ("pipelines/stream.py", "from vitral.tasks import classify\nfrom vitral.checkpoints.load import load_model"),
        ("cli/main.py", "from vitral.recipes import digits\nfrom vitral.serve import app\nimport vitral.training.loop"),
        ("__main__.py", "from vitral.cli.main import run"),
        ("__init__.py", "from vitral.cli.main import run\nfrom .training.loop import fit"),
    ],
)
def test_the_checker_lets_lower_floors_pass(tmp_path: Path, page: str, code: str) -> None:
    planted = tmp_path / "vitral" / page
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(code)
    assert complaints(tmp_path) == []


def test_no_room_is_a_drawer_for_everything() -> None:
    names = {part for page in (SOURCE / "vitral").rglob("*.py") for part in page.relative_to(SOURCE).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set(), "a thing lives where its concept lives"


def prints_in(code: str) -> list[int]:
    """The lines that call print."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_only_the_command_line_prints() -> None:
    assert prints_in("def f():\n    print('planted')") == [2]
    pages = [page for page in (SOURCE / "vitral").rglob("*.py") if "cli" not in page.relative_to(SOURCE).parts]
    found = [f"{page.relative_to(SOURCE)}:{line}" for page in pages for line in prints_in(page.read_text("utf-8"))]
    assert found == []


def heavy_modules_after(statement: str) -> list[str]:
    """The heavy packages a fresh interpreter has imported after a statement."""
    script = f"import sys\n{statement}\nprint(*sorted({{'torch', 'numpy', 'PIL', 'matplotlib'}} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return ran.stdout.split()


def test_the_front_door_is_light() -> None:
    assert heavy_modules_after("import PIL") == ["PIL"]
    assert heavy_modules_after("import vitral; dir(vitral); vitral.__version__; vitral.errors.VitralError") == []


# What only the machine or the moment of writing knows has no place in the tree.
PASSING = re.compile(r"/(?:work|root|home|Users|opt|tmp)/|\bissues? #|\b(?:fixes|closes) #\d", re.IGNORECASE)
WRITTEN = {".py", ".js", ".css", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".ini", ".sh", ".json"}


def written_pages() -> Iterator[Path]:
    """Every text of the repository that somebody wrote."""
    for folder in ("src", "tests", "docs", "benchmarks", "examples", ".ci", ".github"):
        yield from (page for page in (ROOT / folder).rglob("*") if page.suffix in WRITTEN or page.parent.name == ".ci")
    yield from (page for page in ROOT.iterdir() if page.is_file() and (page.suffix in WRITTEN or page.name == "Makefile"))


def test_the_tree_names_no_machine_and_no_moment() -> None:
    assert PASSING.search("see /" + "home/me/picture.jpg")
    assert PASSING.search("as asked in issue" + " #12")
    found = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()}"
        for page in sorted(written_pages())
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if PASSING.search(line)
    ]
    assert found == []
