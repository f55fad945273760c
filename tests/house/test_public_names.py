"""Every module says exactly what it offers, everything offered is explained, and the front door opens."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import vitral

SOURCE = Path(__file__).resolve().parents[2] / "src"
PAGES = sorted((SOURCE / "vitral").rglob("*.py"))
FRONT_DOOR = SOURCE / "vitral" / "__init__.py"


def name_of(page: Path) -> str:
    return page.relative_to(SOURCE).as_posix()


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The top-level statements, those inside top-level `if`, `try` and `with` included."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from statements(getattr(node, part, []))
        if isinstance(node, ast.Try):
            yield from (inner for handler in node.handlers for inner in statements(handler.body))


def targets(node: ast.expr) -> Iterator[str]:
    """The names an assignment binds."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Tuple | ast.List):
        for element in node.elts:
            yield from targets(element)


def defined(tree: ast.Module) -> set[str]:
    """The names a module defines itself: functions, classes and constants, not what it imports."""
    names: set[str] = set()
    for node in statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(name for target in node.targets for name in targets(target))
        elif isinstance(node, ast.AnnAssign):
            names.update(targets(node.target))
    return names


def imported(tree: ast.Module) -> set[str]:
    """The names a module imports at top level."""
    nodes = [node for node in statements(tree.body) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def offered(tree: ast.Module) -> list[str] | None:
    """What `__all__` lists, or None if there is none written out."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__" and isinstance(node, ast.Assign | ast.AnnAssign):
            return list(ast.literal_eval(node.value)) if node.value is not None else None
    return None


def wrong_names(code: str, is_room: bool = False) -> str | None:
    """What is wrong with a module's `__all__`, or None. (That it is sorted, ruff's RUF022 sees to.)"""
    tree = ast.parse(code)
    listed = offered(tree)
    if listed is None:
        return "has no __all__"
    if len(set(listed)) < len(listed):
        return f"lists a name twice: {listed}"
    public = {name for name in defined(tree) if not name.startswith("_")}
    unlisted, unknown = public - set(listed), set(listed) - public - (imported(tree) if is_room else set())
    if unlisted or unknown:
        return f"defines but does not list {sorted(unlisted)}; lists but does not define {sorted(unknown)}"
    return None


def undocumented(code: str) -> list[str]:
    """The public functions, classes and methods without a docstring; `@overload`s have theirs at the implementation."""
    found: list[str] = []

    def visit(body: Iterable[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                overloads = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
                setters = any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list)
                if not ast.get_docstring(node) and not overloads and not setters:
                    found.append(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")

    tree = ast.parse(code)
    if not ast.get_docstring(tree):
        found.append("(the module)")
    visit(statements(tree.body), "")
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page != FRONT_DOOR], ids=name_of)
def test_all_is_exact(page: Path) -> None:
    assert wrong_names(page.read_text("utf-8"), is_room=page.name == "__init__.py") is None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_everything_public_is_documented(page: Path) -> None:
    assert undocumented(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "__main__"], ids=name_of)
def test_every_module_imports_and_has_what_it_offers(page: Path) -> None:
    parts = page.relative_to(SOURCE).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    "code",
    [
        "def f(): ...",
        "__all__ = ['f', 'g']\ndef f(): ...",
        "__all__ = []\nSIZE = 3",
        "__all__: list[str] = []\nif True:\n    def f(): ...",
        "__all__ = ['f', 'f']\ndef f(): ...",
        "from a import b\n__all__ = ['b']",
    ],
)
def test_the_checker_finds_a_planted_wrong_name(code: str) -> None:
    assert wrong_names(code) is not None


def test_the_checker_lets_an_exact_all_pass() -> None:
    code = "from a import b\n__all__ = ['A', 'f']\n_x = 1\nclass A: ...\ndef f(): ...\ndef _g(): ..."
    assert wrong_names(code) is None
    assert wrong_names("from .a import b\n__all__ = ['b']", is_room=True) is None


def test_the_checker_finds_a_planted_missing_docstring() -> None:
    code = "'''.'''\nclass A:\n    '''.'''\n    def f(self): ...\n    def _g(self): ...\ndef h(): ..."
    assert undocumented(code) == ["A.f", "h"]


def test_every_name_at_the_front_door_opens() -> None:
    assert [name for name in vitral.__all__ if getattr(vitral, name, None) is None] == []


def test_the_front_door_shows_type_checkers_what_it_opens() -> None:
    tree = ast.parse(FRONT_DOOR.read_text("utf-8"))
    assert set(vitral.__all__) <= imported(tree) | defined(tree)
    fetched = {
        (alias.name, node.module)
        for node in statements(tree.body)
        if isinstance(node, ast.ImportFrom) and node.module not in {"__future__", "typing", "vitral"}
        for alias in node.names
    }
    assert fetched == set(vitral._HOME.items())


def test_the_front_door_lists_its_names() -> None:
    assert dir(vitral) == sorted(vitral.__all__)


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"vitral has no 'load_modle'. Did you mean 'load_model'\?"):
        vitral.load_modle  # noqa: B018
    with pytest.raises(AttributeError, match=r"It offers .*create_model"):
        vitral.qqqqqq  # noqa: B018
