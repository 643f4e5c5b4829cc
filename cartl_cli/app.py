"""The command line: registers the commands and turns errors into one line and an exit code."""

import sys
from typing import Annotated, NoReturn

import typer

from cartl_cli import __version__
from cartl_cli.commands.attack import attack
from cartl_cli.commands.pretrain import pretrain
from cartl_cli.commands.transfer import transfer
from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.display.text import printable

app = typer.Typer(
    name="cartl",
    help="Train robust image classifiers by transfer: pretrain, transfer, attack.",
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command()(pretrain)
app.command()(transfer)
app.command()(attack)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cartl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def cartl(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train robust image classifiers by transfer.

    Adversarially pre-train a source model, transfer it to your images without any adversarial
    example, and measure how robust the result is. The three commands work one after another with
    nothing else said.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 2 usage, 1 anything else, 130 interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # --debug is understood anywhere on the line
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _refuse_repeats(arguments)
        code = typer.main.get_command(app).main(
            args=arguments, prog_name="cartl", standalone_mode=False
        )
        sys.exit(code if isinstance(code, int) else 0)
    except CartlError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _fail(error.format_message().rstrip("."), error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error}; run again with --debug to see where", 1)


def _refuse_repeats(arguments: list[str]) -> None:
    """A value given twice is a mistake; the parser would silently keep the last one."""
    names = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for name in names:
        if len(name) > 2 and names.count(name) > 1:
            raise UsageError(f"{name} given twice; keep one")


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(printable(message).split())
    print(f"cartl: error: {line}", file=sys.stderr)
    sys.exit(code)
