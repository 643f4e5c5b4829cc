"""Pieces of a benchmark in processes of their own.

What one library does to a process (how it holds memory, how many threads it starts) does not reach
the others.
"""

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

Figures = dict[str, Any]


@contextlib.contextmanager
def process(module: str, *arguments: str) -> Iterator[Callable[[], Figures]]:
    """``python -m MODULE``, which ``serve``s and has warmed up; each call is a round."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def answer() -> Figures:
            for line in child.stdout or ():
                if line.startswith("{"):
                    found: Figures = json.loads(line)
                    return found
            raise SystemExit(f"a competitor ended; try: {shlex.join(command)}")

        def go() -> Figures:
            with contextlib.suppress(BrokenPipeError):
                print(file=child.stdin, flush=True)
            return answer()

        answer()  # it has warmed up: nobody does so while another is timed
        yield go
        child.stdin.close()


def serve(go: Callable[[], Figures]) -> None:
    """Say that all is warm; then a round for each line that is read, and a line of JSON for it."""
    print("{}", flush=True)
    for _ in sys.stdin:
        print(json.dumps(go()), flush=True)


def last_number(code: str, *arguments: str) -> float:
    """What a process prints last that runs ``code``."""
    command = [sys.executable, "-c", code, *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(printed.split()[-1])
