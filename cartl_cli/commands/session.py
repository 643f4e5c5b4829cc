"""What a command begins with: its settings from all layers, its session, the run it starts from."""

import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from cartl_cli.commands.options import Request
from cartl_cli.core.config import ImportConfig, Kind, PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import (
    Config,
    at_own_batch_size,
    at_own_eps,
    check_same,
    configure,
    fitting,
    flag,
)
from cartl_cli.core.config.fields import BUILT_IN_DATA, PUBLIC_DATA
from cartl_cli.core.config.idle import idle
from cartl_cli.core.config.presets import read_preset
from cartl_cli.core.config.values import ADDRESS, decoded
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.registry.architectures import WHOLE, own_network
from cartl_cli.core.runtime.requirements import check_torch
from cartl_cli.core.storage import cache_dir

if TYPE_CHECKING:
    from cartl_cli.core.data.downloads import Place
    from cartl_cli.core.runs.manifest import Run
    from cartl_cli.core.runs.writer import Session

SOURCE_KINDS: tuple[Kind, ...] = ("pretrain", "import")
ATTACKED_KINDS: tuple[Kind, ...] = ("pretrain", "transfer", "import")


def layers(request: Request, command: str) -> list[dict[str, Any]]:
    """Settings, a later layer over an earlier one: preset, file, flags. Raises UsageError."""
    found = []
    if request.preset is not None:
        found.append(_read_preset(request.preset, command))
    if request.config is not None:
        found.append(_read_settings(request.config))
    return [*found, request.settings]


def _read_preset(name: str, command: str) -> dict[str, Any]:
    content = read_preset(name)
    if command not in content:
        raise UsageError(f"--preset: {name!r} is for {' and '.join(content)}, not {command}")
    return content[command]


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"--config: no such file: {str(path)!r}") from None
    except OSError as error:
        raise UsageError(f"--config: cannot read {str(path)!r}: {error.strerror}") from None
    try:
        text = decoded(data)
    except ValueError as error:
        raise UsageError(f"--config: {str(path)!r} {error}") from None
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"--config: {str(path)!r}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config: {str(path)!r} must hold settings by name")
    settings = content.get("config", content)  # a run's manifest keeps its settings there
    return settings if isinstance(settings, dict) else content


def located(config: Config, named: bool = True) -> Config:
    """The config with its paths, of a data set and of an own network, made ``homely``.

    The network's file may be run from now on, if the user has ``named`` it rather than a run.
    Raises UsageError if it cannot be read.
    """
    from cartl_cli.core.runs.reader import homely

    if isinstance(config, PretrainConfig | ImportConfig) and (own := own_network(config.arch)):
        from cartl_cli.core.models.own_network import allow

        if named:
            allow(own[0])
        file = homely(Path(os.path.expanduser(own[0])))
        whole = WHOLE if config.arch.startswith(WHOLE) else ""
        config = config.model_copy(update={"arch": f"{whole}{file}:{own[1]}"})
    name = config.dataset
    path = Path(os.path.expanduser(name or ""))
    if name is None or name in (*BUILT_IN_DATA, *PUBLIC_DATA) or not path.exists():
        return config
    return config.model_copy(update={"dataset": homely(path)})


@dataclass(frozen=True)
class Opened(Generic[Config]):
    """What a command begins with: settings, session, and the run whose model it takes.

    ``finished`` is the run that was to be resumed, if there is nothing left to do.
    """

    config: Config
    session: "Session"
    taken: "Run | None"
    finished: "Run | None"

    @property
    def source(self) -> "Run":
        """The run whose model is taken, of the commands that take one."""
        assert self.taken is not None
        return self.taken


def open_session(
    request: Request, config_type: type[Config], kind: Kind, extend: bool = False
) -> Opened[Config]:
    """Settings from all layers on top of the defaults or of the run to go on with.

    Raises UsageError for settings that are wrong or differ from the run's, RunError for a run
    that cannot go on, CartlError for a torch that will not do.
    """
    given, runs_dir, resume = layers(request, kind), request.runs_dir, request.resume
    if resume is None:
        if extend:
            raise UsageError("--extend: goes with --resume RUN")
        base, stored = {}, None
        configure(config_type, *given)  # what is wrong is said before torch is loaded
    elif request.name is not None:
        raise UsageError("--name: a run that goes on keeps its name; drop --name or --resume")
    check_torch()
    from cartl_cli.core.runs.reader import find_run, state
    from cartl_cli.core.runs.writer import Session, tidy
    from cartl_cli.core.runtime.ranks import current
    from cartl_cli.display.terminal import say

    if resume is not None:
        stored = find_run(resume, runs_dir, "--resume", (kind,))
        if extend and not any(stored.folder.glob("ckpt-*")):
            raise RunError(f"run {stored.name!r} has no state to go on from; start a new run")
        base, runs_dir = stored.manifest.config.model_dump(), stored.folder.parent
    named = stored is None or any("arch" in layer for layer in given)
    config = located(configure(config_type, base, *given), named)
    if stored is not None:
        config = fitting(config, stored.manifest.data.train_images)
    place = data_place(request.data_dir, not request.no_download)
    if isinstance(config, TransferConfig) and ADDRESS.fullmatch(config.source):
        _import_once(config.source, Session(runs_dir, None, place, say))
    config, source = _with_source(config, runs_dir, say)
    session = Session(runs_dir, request.name, place, say, stored, current())
    if stored is None:
        for name, why in idle(config).items():
            if any(name in layer for layer in given):
                say(f"note: {flag(name)} has no effect with {why}")
        return Opened(config, session, source, None)
    check_same(stored.manifest.config, config, extend)
    same_length = stored.manifest.config.model_dump().get("epochs") == config.model_dump().get(
        "epochs"
    )
    if stored.manifest.status == "diverged":
        raise RunError(f"run {stored.name!r} diverged and would again; start a new run")
    if stored.manifest.status == "completed" and same_length:
        say(f"run {stored.name} is already complete")
        tidy(stored)
        return Opened(config, session, source, stored)
    say(f"run {stored.name} was {state(stored).partition(';')[0]}; going on")
    return Opened(config, session, source, None)


def data_place(data_dir: Path | None, download: bool) -> "Place":
    """Where data are kept: archives in ``data_dir``, or in the cache, and decoded images there."""
    from cartl_cli.core.data.downloads import Place, Store
    from cartl_cli.display.progress import decoding_progress
    from cartl_cli.display.terminal import say

    cache = cache_dir()
    kept = data_dir.expanduser() if data_dir else cache and cache / "data"
    return Place(cache, Store(kept, download, say), decoding_progress)


def _import_once(address: str, session: "Session") -> None:
    """Make a source run of what is published under an address, unless there is one."""
    from cartl_cli.core.imports.source_run import import_model
    from cartl_cli.core.runs.reader import imports_of
    from cartl_cli.core.runtime.ranks import current

    with current().in_turn():
        if not imports_of(address, session.runs_dir):
            config = configure(ImportConfig, {"checkpoint": address})
            run = import_model(config, session, lambda done, total: None)
            session.say(f"imported {address} as {run.folder}")


def _with_source(
    config: Config, runs_dir: Path, say: Callable[[str], None]
) -> tuple[Config, "Run | None"]:
    """The run whose model is taken, see ``taken_run``, and the config that names it."""
    from cartl_cli.core.runs.reader import selector_of

    if isinstance(config, PretrainConfig | ImportConfig):
        return config, None
    if isinstance(config, TransferConfig):
        run = taken_run(config.source, runs_dir, "--source", SOURCE_KINDS, say, tunable)
        config = config.model_copy(update={"source": selector_of(run, runs_dir)})
        return at_own_batch_size(config, run.manifest.model.image_size), run
    fits = None if config.dataset else has_images
    run = taken_run(config.run, runs_dir, "RUN", ATTACKED_KINDS, say, fits)
    config = config.model_copy(update={"run": selector_of(run, runs_dir)})
    return at_own_eps(config, config.dataset or run.making.dataset or ""), run


def tunable(run: "Run") -> bool:
    """Whether its network has blocks: one that was taken whole has none."""
    return not run.manifest.model.arch.startswith(WHOLE)


def has_images(run: "Run") -> bool:
    """Whether it was made with images: an import may have none to be attacked on."""
    return run.making.dataset is not None


def taken_run(
    named: str,
    runs_dir: Path,
    flag: str,
    kinds: tuple[Kind, ...],
    say: Callable[[str], None],
    fits: "Callable[[Run], bool] | None" = None,
) -> "Run":
    """The run whose model is taken: the one named, else the newest finished one, which is said.

    Without a name, the runs of sweeps are passed over, and those that do not fit if others do.
    Raises UsageError, RunError.
    """
    from cartl_cli.core.runs.reader import find_run, newest_run, remarks
    from cartl_cli.core.sweeps.points import sweep_runs

    if named:
        run = find_run(named, runs_dir, flag, kinds)
    else:
        passed_over = sweep_runs(runs_dir)
        run = newest_run(runs_dir, kinds, flag, passed_over, fits)
        which = "source " if kinds == SOURCE_KINDS else ""
        aside = ", sweeps aside" if passed_over else ""
        asked = flag.removeprefix("--").lower()
        say(f"{asked}: {run.folder} (the newest finished {which}run{aside})")
    for remark in remarks(run):
        say(remark)
    return run
