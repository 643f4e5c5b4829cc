"""Imports go one way, as docs/architecture.md shows, those within functions too."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cartl_cli"

BASE = {"choices", "errors", "statistics", "storage"}
FLOORS: dict[str, set[str]] = {
    "registry": BASE,
    "config": BASE | {"registry"},
    "runtime": BASE,
    "models": BASE | {"registry", "runtime"},
    "method": BASE | {"registry", "runtime", "models"},
    "attacks": BASE | {"registry", "runtime", "models", "method"},
    "data": BASE | {"config", "registry", "runtime"},
    "runs": BASE | {"config", "registry", "runtime", "models", "data"},
    "trust": BASE | {"runtime", "models", "method", "attacks", "runs"},
}
LOWER = BASE | FLOORS.keys()
UPPER: dict[str, set[str]] = {
    "evaluation": LOWER,
    "exports": LOWER | {"evaluation"},
    "imports": LOWER | {"evaluation"},
    "predictions": LOWER | {"evaluation"},
    "training": LOWER | {"evaluation"},
    "sweeps": LOWER | {"evaluation", "training"},
    "reports": LOWER | {"evaluation", "sweeps"},
}
CORE = FLOORS | UPPER
OUTER: dict[str, set[str]] = {
    "display": {"core"},
    "commands": {"core", "display"},
    "app": {"core", "display", "commands"},
}
"""Who may import whom: a folder, and the folders and files it may import beside itself."""


def imported(path: Path) -> set[str]:
    """What a file imports of the package, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(("cartl_cli.", "typer", "rich"))}


def core_folders(path: Path) -> set[str]:
    names = [name.split(".") for name in imported(path)]
    return {name[2] for name in names if name[:2] == ["cartl_cli", "core"] and len(name) > 2}


@pytest.mark.parametrize("folder", CORE)
def test_a_floor_imports_only_what_is_below_it(folder: str) -> None:
    files = sorted((PACKAGE / "core" / folder).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): strangers
        for path in files
        if (strangers := core_folders(path) - CORE[folder] - {folder})
    }
    assert not wrong


def test_every_folder_of_the_core_has_its_floor() -> None:
    entries = [path for path in (PACKAGE / "core").iterdir() if path.name != "__pycache__"]
    names = {path.stem for path in entries} - {"__init__"}
    assert names == BASE | CORE.keys()


def test_what_is_at_the_bottom_imports_nothing_above() -> None:
    for name in BASE:
        assert core_folders(PACKAGE / "core" / f"{name}.py") <= BASE - {name}, name


def test_the_core_knows_no_screen_and_no_command() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        outside = {
            name
            for name in imported(path)
            if name.startswith(("typer", "rich"))
            or (name.split(".")[1] in OUTER and name.split(".")[0] == "cartl_cli")
        }
        assert not outside, path


@pytest.mark.parametrize("folder", OUTER)
def test_commands_stand_over_core_and_display(folder: str) -> None:
    place = PACKAGE / folder
    files = sorted(place.rglob("*.py")) if place.is_dir() else [PACKAGE / "app.py"]
    assert files
    for path in files:
        parts = {name.split(".")[1] for name in imported(path) if name.startswith("cartl_cli.")}
        assert parts & {*OUTER, "core"} <= OUTER[folder] | {folder}, path


def test_no_folder_and_no_file_imports_itself_around_a_corner() -> None:
    """Those imports count that an interpreter makes, not those for a type checker."""
    graphlib.TopologicalSorter(CORE).prepare()  # raises CycleError
    files: dict[str, set[str]] = {}
    door = PACKAGE / "__init__.py"  # it loads what it offers when it is asked for it
    for path in {*PACKAGE.rglob("*.py")} - {door}:
        name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        files[name.removesuffix(".__init__")] = imported_when_run(path)
    graph = {
        name: {target for other in found if (target := known(other, files)) not in (None, name)}
        for name, found in files.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def imported_when_run(path: Path) -> set[str]:
    """What a file imports, in functions too, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def known(name: str, files: dict[str, set[str]]) -> str | None:
    """The file that an imported name means: a module, or the module that defines it."""
    if name in files:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in files else None


def test_the_table_is_the_one_that_is_shown() -> None:
    """docs/architecture.md has a row for each folder of the core, with what it may import."""
    shown = {}
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            shown[cells[0].strip("`/")] = {word.strip(" `/") for word in cells[2].split(",")}
    base, lower = {"the base"}, {"everything below"}
    expected = {name: allowed - BASE | base for name, allowed in FLOORS.items()}
    expected |= {name: allowed - LOWER | lower for name, allowed in UPPER.items()}
    assert shown == expected
