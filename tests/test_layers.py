"""Imports go one way, as CONTRIBUTING.md has it, those within functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = "cartl_cli/core"
RECIPES = ("training", "evaluating", "sweeps", "reports")
LOWER = ("attacks", "data", "models", "records", "trust")
COMMANDS = ("cartl_cli.commands", "cartl_cli.app")
SCREEN = ("cartl_cli.display", "typer", "rich")


def imports(folder: str, whole: bool = True) -> Iterator[tuple[str, str]]:
    """Each file of a folder, without its sub-folders unless ``whole``, and what it imports."""
    for path in sorted((ROOT / folder).glob("**/*.py" if whole else "*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = str(path.relative_to(ROOT))
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


def recipes_but(*allowed: str) -> tuple[str, ...]:
    return tuple(f"cartl_cli.core.{name}" for name in RECIPES if name not in allowed)


@pytest.mark.parametrize(
    ("folder", "whole", "forbidden"),
    [
        (CORE, True, (*SCREEN, *COMMANDS)),
        ("cartl_cli/display", True, COMMANDS),
        (CORE, False, recipes_but()),
        *((f"{CORE}/{name}", True, recipes_but()) for name in LOWER),
        (f"{CORE}/evaluating", True, recipes_but("evaluating")),
        (f"{CORE}/training", True, recipes_but("training", "evaluating")),
        (f"{CORE}/sweeps", True, recipes_but("sweeps")),
        (f"{CORE}/reports", True, recipes_but("reports", "evaluating", "sweeps")),
    ],
    ids=str,
)
def test_imports_go_one_way(folder: str, whole: bool, forbidden: tuple[str, ...]) -> None:
    found = list(imports(folder, whole))
    assert len(found) > 10
    wrong = [
        f"{name} imports {what}"
        for name, what in found
        if any(what == one or what.startswith(f"{one}.") for one in forbidden)
    ]
    assert not wrong
