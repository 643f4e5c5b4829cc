"""``cartl transfer``."""

import json

from cartl_cli.commands.options import AsJson, Extend, Request, flags_from
from cartl_cli.commands.session import open_session
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.registry.transfer_methods import ADDITIONS


@flags_from(TransferConfig)
def transfer(request: Request, extend: Extend = False, as_json: AsJson = False) -> None:
    """Fine-tune the last k blocks of a source model on your images, without adversarial images."""
    opened = open_session(request, TransferConfig, "transfer", extend)
    from cartl_cli.core.training.target_model import transfer as transfer_run
    from cartl_cli.display import tables
    from cartl_cli.display.terminal import say, training_progress

    chosen, source = opened.config, opened.source
    with training_progress() as report:
        run = opened.finished or transfer_run(chosen, source, opened.session, report)
    if run is None:
        return  # another process tells
    say(f"saved {run.folder}")
    if as_json:
        results = run.results
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "source": source.name,
            "k": run.manifest.k,
            "method": chosen.look(None).label.lower(),
            **{name: getattr(chosen, name) for name in ADDITIONS},
            "radius": run.manifest.radius,
            "freeze_bn": chosen.frozen_bn,
            "train_images": run.manifest.data.train_images,
            "train_accuracy": results.train_accuracy,
            "clean_accuracy": results.clean_accuracy,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        tables.show(tables.tuned_table(run))
        tables.show(tables.training_table(run))
