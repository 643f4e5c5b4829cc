"""The command line: registers the commands and turns errors into one line and an exit code."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from cartl_cli import __version__
from cartl_cli.core.errors import CartlError, StoppedError, UsageError
from cartl_cli.display.streams import Lasting, lasting_streams, silent
from cartl_cli.display.terminal import printable

COMMANDS = {
    "pretrain": "Train a robust source model: adversarial training and feature distance "
    "minimization.",
    "import": "Make a source run of a model that was trained elsewhere, and measure it.",
    "transfer": "Fine-tune the last k blocks of a source model on your images.",
    "attack": "Attack a run's model with PGD and say how much accuracy is left.",
    "predict": "Answer for your photographs: the class of each, and whether it survives an attack.",
    "sweep": "Run a grid of settings: every source model, its transfers, an attack on each.",
    "sweep tune": "Choose k, the method and its settings for your images, on the training images "
    "alone.",
    "report": "Tables, plots and tests from any attacks, over seeds and beside the paper.",
    "export": "Write a run's model as files that are used without cartl.",
}
ALONE = ("import", "predict", "sweep", "sweep tune", "report", "export")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cartl {__version__}")
        raise typer.Exit


def cartl(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train robust image classifiers by transfer.

    Adversarially pre-train a source model, transfer it to your images, and measure how robust the
    result is. The three commands also work one after another without any setting.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
    if context.invoked_subcommand in ALONE and _many():
        raise UsageError(f"{context.invoked_subcommand}: is one process; start it without torchrun")


class Commands(TyperGroup):
    """The commands by name, of which ``sweep tune`` has two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first words name, and what is left of them."""
        if (two := " ".join(args[:2])) in self.commands:
            args = [two, *args[2:]]
        return super().resolve_command(ctx, args)


def build_app(arguments: list[str]) -> typer.Typer:
    """The command line; of the commands only one that is asked for is imported.

    The others are stand-ins with their summaries, so that --help comes at once.
    """
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(cartl)
    completing = "_CARTL_COMPLETE" in os.environ
    for name, summary in COMMANDS.items():
        command = _stand_in
        *_, module = words = name.split()
        if completing or set(words) <= set(arguments):
            module += "_" * iskeyword(module)
            command = getattr(import_module(f"cartl_cli.commands.{module}"), module)
        app.command(name, help=summary)(command)
    return app


def _stand_in() -> None:
    """What a command that is not asked for does."""


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 2 usage, 1 anything else, 128 + n on signal n."""
    with lasting_streams() as out, ExitStack() as held:
        _main(held, out)


def _main(held: ExitStack, out: Lasting) -> NoReturn:
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # --debug is understood anywhere on the line
    arguments = [argument for argument in arguments if argument != "--debug"]
    speaks = _always
    try:
        shows, speaks = held.enter_context(_processes())
        with nullcontext() if shows else silent():
            _refuse_bytes(arguments)
            _refuse_repeats(arguments)
            ended = typer.main.get_command(build_app(arguments)).main(
                args=arguments, prog_name="cartl", standalone_mode=False
            )
        _check_printed(out, ended)
        sys.exit(ended if isinstance(ended, int) else 0)
    except StoppedError as error:
        message, code = str(error), error.exit_code
    except CartlError as error:
        if debug:
            raise
        message, code = f"error: {error}", error.exit_code
    except typer.TyperException as error:
        message, code = f"error: {error.format_message().rstrip('.')}", error.exit_code
        message = message.replace("Value error, ", "")  # pydantic's, which says nothing
    except (typer.Abort, KeyboardInterrupt):
        message, code = "interrupted", 130
    except Exception as error:
        if debug:
            raise
        shown = f"{type(error).__name__}: {error}"
        message, code = f"error: {shown}; run again with --debug to see where", 1
    if speaks():
        print(f"cartl: {' '.join(printable(message).split())}", file=sys.stderr)
    sys.exit(code)


def _check_printed(out: Lasting, ended: object) -> None:
    """Say that what a command printed is lost; it has ended in the folder that has it, if any.

    Raises CartlError.
    """
    out.flush()
    if out.lost is not None:
        kept = f"; it is in {ended}" if isinstance(ended, Path) else ""
        raise CartlError(f"could not print the result: {out.lost.strerror}{kept}")


def _always() -> bool:
    return True


def _many() -> bool:
    """Whether this is one of several processes that torchrun has started."""
    size = os.environ.get("WORLD_SIZE", "1")
    return "LOCAL_RANK" in os.environ and size.isdecimal() and int(size) > 1


@contextmanager
def _processes() -> Iterator[tuple[bool, Callable[[], bool]]]:
    """Whether this process shows what happens, and whether it is the one to say how it failed.

    Of those that torchrun starts the first shows, and the first to fail says.
    """
    if not _many():
        yield True, _always
        return
    from cartl_cli.core.runtime.ranks import joined

    with joined() as first_to_fail:
        yield os.environ["RANK"] == "0", first_to_fail


def _refuse_bytes(arguments: list[str]) -> None:
    """A path that is no text could not be kept in a manifest."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument!r} is not valid UTF-8; rename it") from None


def _refuse_repeats(arguments: list[str]) -> None:
    """A value given twice is a mistake; the parser would silently keep the last one."""
    names = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for name in names:
        if len(name) > 2 and names.count(name) > 1:
            raise UsageError(f"{name} given twice; keep one")
