"""``cartl export``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cartl_cli.commands.next_step import after_model
from cartl_cli.commands.options import AsJson, RunsDir
from cartl_cli.commands.panels import panelled
from cartl_cli.commands.session import ATTACKED_KINDS, taken_run
from cartl_cli.core.choices import FORM_ENDINGS, Form
from cartl_cli.core.runtime.requirements import check_onnx, check_torch

LOADING = {
    "torch": "model = torch.export.load({path!r}).module()",
    "onnx": "session = onnxruntime.InferenceSession({path!r})",
    "hub": "model = torch.export.load({path!r}).module()",
}


@panelled
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="Run: name, number or path (default: the newest finished, sweeps aside).",
            show_default=False,
            metavar="[RUN]",
        ),
    ] = "",
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="torch: a program of torch.export (.pt2); onnx: for other runtimes; hub: a folder "
            "with weights, config and model card.",
        ),
    ] = "torch",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File or folder to make (default: the run's name, here)."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> Path:
    """Write a run's model as files that are used without cartl."""
    if form == "onnx":
        check_onnx()
    check_torch()
    from cartl_cli.core.exports import files
    from cartl_cli.display.terminal import say

    found = taken_run(run, runs_dir, "RUN", ATTACKED_KINDS, say)
    path = out.expanduser() if out else Path(found.name + FORM_ENDINGS[form])
    size = files.export(found, form, path)
    load = LOADING[form].format(path=str(path / "model.pt2" if form == "hub" else path))
    if as_json:
        shown = {"run": found.name, "format": form, "path": str(path), "bytes": size, "load": load}
        print(json.dumps(shown))
    else:
        print(f"{path}  {size} bytes ({size / 1e6:.1f} MB)\nload it with: {load}")
        after_model(found, runs_dir, done="export")
    return path
