"""``cartl export``: one file or folder, written when it is whole and was compared."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from cartl_cli.core import storage
from cartl_cli.core.choices import FORM_ENDINGS, Form
from cartl_cli.core.errors import UsageError
from cartl_cli.core.exports.card import model_card
from cartl_cli.core.exports.graphs import onnx_graph, torch_program
from cartl_cli.core.exports.subject import Subject, described, read_subject
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import finished_weights
from cartl_cli.core.runs.recorded import read_recorded


def export(run: Run, form: Form, out: Path) -> int:
    """Write a run's network to a file or folder that is not there yet; how many bytes.

    Raises UsageError where something has the name, RunError for a run that is not finished or was
    changed, CartlError for a network that cannot be exported or answers otherwise afterwards.
    """
    _refuse_existing(out)
    others = [
        other for other, ending in FORM_ENDINGS.items() if other != form and out.suffix == ending
    ]
    if others:
        raise UsageError(f"--out: {out.suffix} is of --format {others[0]}; give another --out")
    subject = read_subject(run)
    if form == "hub":
        contents = _hub_files(subject)
        storage.commit_folder(out, contents)
        return sum(map(len, contents.values()))
    data = torch_program(subject) if form == "torch" else onnx_graph(subject)
    storage.write_whole(out, data)
    return len(data)


def _hub_files(subject: Subject) -> Mapping[str, bytes]:
    config = json.dumps(described(subject), indent=2, ensure_ascii=False)
    run = subject.run
    return {
        "config.json": f"{config}\n".encode(),
        "model.safetensors": read_recorded(run.folder, finished_weights(run)),
        "model.pt2": torch_program(subject),
        "README.md": model_card(subject).encode(),
    }


def _refuse_existing(out: Path) -> None:
    """Refuse a name that is taken, or in a folder that is not there. Raises UsageError."""
    if os.path.lexists(out):
        raise UsageError(f"--out: {str(out)!r} exists; give another --out")
    if not out.parent.is_dir():
        raise UsageError(f"--out: no folder {str(out.parent)!r}; make it first")
