"""``cartl import``: a checkpoint from elsewhere becomes a source run, and is looked at."""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cartl_cli.core.config import ImportConfig
from cartl_cli.core.errors import StoppedError
from cartl_cli.core.imports.measuring import judged, look_at, measured
from cartl_cli.core.imports.reading import Import, read_import
from cartl_cli.core.runs import writer
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import same_runs
from cartl_cli.core.runs.results import ImportResults
from cartl_cli.core.runs.weights import to_bytes
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.stopping import stop_signals


def import_model(config: ImportConfig, session: Session, report: Callable[[int, int], None]) -> Run:
    """The checkpoint as a finished run of kind ``import``, measured on the images of ``dataset``.

    What stands beside it fills in what the settings leave open. ``report`` gets images attacked, of
    how many. Raises UsageError or DataError before anything is written: for a file that is no
    checkpoint or does not fit the network, name by name.
    """
    began = time.monotonic()
    new = read_import(config, session)
    config = new.config
    with _begun(new, session) as run, stop_signals() as asked:
        results = ImportResults(seconds=time.monotonic() - began, moved=new.moved)
        if new.data is not None:
            split = measured(config, new.data).to(new.device)

            def attacked(done: int) -> None:
                if asked.signal is not None:
                    raise StoppedError("interrupted; import it again", asked.signal)
                report(done, len(split))

            results = look_at(config, new.model, split, attacked)
            for line in judged(config, new.model, split, results, new.normalized):
                session.say(line)
        else:
            session.say(
                "note: it was not measured here; cartl import with --dataset, images like its own, "
                "does that"
            )
        results = results.model_copy(update={"seconds": time.monotonic() - began})
        return writer.finish_model(run, new.model, results)


def imported(config: ImportConfig, session: Session) -> tuple[Run, bool]:
    """The same without measuring, and whether it is new: one that was imported before is taken.

    Raises like ``import_model``.
    """
    began = time.monotonic()
    new = read_import(config, session)
    digest = hashlib.sha256(to_bytes(new.model.state_dict())).hexdigest()
    for run in same_runs(session.runs_dir, new.draft):
        weights = run.manifest.weights
        if run.manifest.original == new.draft.original and weights and weights.sha256 == digest:
            return run, False
    with _begun(new, session) as run:
        results = ImportResults(seconds=time.monotonic() - began, moved=new.moved)
        return writer.finish_model(run, new.model, results), True


def _begun(new: Import, session: Session) -> AbstractContextManager[Run]:
    """The run of a model that was read."""
    state = new.model.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return writer.written(session, new.draft, size)
