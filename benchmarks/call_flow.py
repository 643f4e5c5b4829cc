"""How far a command goes through the files of cartl, on tiny runs.

    python -m benchmarks.call_flow

For pretrain, transfer and attack: the files whose functions run, the functions, and the pairs of
files of which one calls the other. What is executed by an import alone does not count. Fewer pairs
mean that a reader who follows a command turns fewer pages.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import cartl_cli
from cartl_cli.app import main as run_cartl

ROOT = Path(cartl_cli.__file__).parent
TINY = "--batch-size 16 --epochs 2 --seed 0 --device cpu --precision fp32"
COMMANDS = (
    f"pretrain {TINY} --classes disk,bar --arch wrn-10-1 --k 3 --pgd-steps 1 --fdm-lambda 0.01",
    f"transfer {TINY} --classes ring,grid --neft-beta 0.4 --freeze-bn affine",
    "attack --pgd-steps 2 --limit 20 --device cpu --precision fp32",
)


def followed(arguments: list[str]) -> tuple[set[tuple[str, str]], Counter[tuple[str, str]]]:
    """The functions that a command runs, as (file, name), and its calls from file to file."""
    functions: set[tuple[str, str]] = set()
    calls: Counter[tuple[str, str]] = Counter()
    inside = f"{ROOT}/"

    def look(frame: FrameType, event: str, argument: Any) -> None:
        called = frame.f_code.co_filename
        if event != "call" or not called.startswith(inside):
            return
        code, caller = frame.f_code, frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(inside):
            caller = caller.f_back  # a call through torch or pydantic is a call all the same
        if code.co_name == "<module>" or caller is None or caller.f_code.co_name == "<module>":
            return  # what an import executes
        functions.add((called, code.co_qualname))
        if called != caller.f_code.co_filename:
            calls[caller.f_code.co_filename, called] += 1

    with mock.patch.object(sys, "argv", ["cartl", *arguments]):
        sys.setprofile(look)
        try:
            run_cartl()
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            sys.setprofile(None)
    return functions, calls


def main() -> None:
    files = len([*ROOT.rglob("*.py")])
    lines = sum(len(path.read_text().splitlines()) for path in ROOT.rglob("*.py"))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for command in COMMANDS:
            arguments = [*command.split(), "--runs-dir", f"{place}/runs"]
            functions, calls = followed(arguments)
            entered = {name for name, _ in functions}
            rows.append((arguments[0], len(entered), len(functions), len(calls)))
    print(f"{files} files, {lines:,} lines")
    print(f"{'command':10} {'files':>6} {'functions':>10} {'file pairs':>11}")
    for name, *counted in rows:
        print(f"{name:10} {counted[0]:6} {counted[1]:10} {counted[2]:11}")


if __name__ == "__main__":
    main()
