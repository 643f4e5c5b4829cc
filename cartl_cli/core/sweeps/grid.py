"""A grid → points: what a spec asks for, as runs that are each made once.

Each combination of the grid is a chain of three points: a source model, its transfer, an attack on
the result. Where a spec names a source run that is already there, the chain begins with its
transfer. Points that several chains share have one id and are one run.
"""

import itertools
import json
import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cartl_cli.core.config import (
    AttackConfig,
    ImportConfig,
    Kind,
    PretrainConfig,
    RunConfig,
    TransferConfig,
)
from cartl_cli.core.config.configure import Config, at_own_batch_size, at_own_eps, configure
from cartl_cli.core.config.presets import read_preset
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.errors import UsageError
from cartl_cli.core.registry.architectures import parse_architecture
from cartl_cli.core.registry.transfer_methods import ADDITIONS, check_network
from cartl_cli.core.runs.reader import find_run, finished_weights, selector_of
from cartl_cli.core.sweeps.points import MAX_POINTS, Label, Point, Sweep, point_id
from cartl_cli.core.sweeps.spec import KINDS, Layer, Settings, Spec, is_axis

SHOWN = 5  # wrong combinations that are told


Locate = Callable[[Any], Any]


@dataclass(frozen=True)
class Chain:
    """The settings of one combination: of its source run, its transfer and its attack.

    ``where`` says in words which combination it is.
    """

    method: str
    settings: dict[Kind, Settings]
    where: str

    @property
    def named_source(self) -> str:
        """The name, number or path of the run it starts from; empty if it makes its own."""
        name = self.settings["transfer"].get("source")
        return name if isinstance(name, str) else ""


@dataclass(frozen=True)
class Given:
    """A finished source run: what a config keeps of it, the sha256 of its weights, its settings.

    ``k``: that of the run, which an import of a small network has otherwise than its settings.
    """

    selector: str
    sha256: str
    config: PretrainConfig | ImportConfig
    k: int


def plan(name: str, spec: Spec, created: str, located: Locate, runs_dir: Path) -> tuple[Sweep, int]:
    """The sweep that a spec asks for, and how many combinations were the same as another.

    ``located`` makes a config's path of a data set one that can be read from any folder; source
    runs that the spec names are looked up in ``runs_dir``. Raises UsageError, before anything is
    run, with every combination that is wrong, RunError for a source run that is not finished.
    """
    count = size(spec)
    if count > MAX_POINTS:
        raise UsageError(f"{count:,} combinations, but a sweep has at most {MAX_POINTS} runs")
    combinations = list(chains(spec))
    _check_used(spec, combinations)
    named = dict.fromkeys(chain.named_source for chain in combinations)
    given = {source: _given(source, runs_dir) for source in named if source}
    points: dict[str, Point] = {}
    wrong: dict[str, str] = {}
    same = 0
    for chain in combinations:
        try:
            made = _points(chain, located, given.get(chain.named_source))
        except UsageError as error:
            wrong.setdefault(str(error), chain.where)
            continue
        same += made[-1].id in points
        for point in made:
            points.setdefault(point.id, point)
    if wrong:
        listed = [f"{error} ({where})" if where else error for error, where in wrong.items()]
        more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise UsageError(f"nothing was run, since {'; '.join(listed[:SHOWN])}{more}")
    if len(points) > MAX_POINTS:
        raise UsageError(f"{len(points):,} runs, but a sweep has at most {MAX_POINTS}")
    try:
        sweep = Sweep(name=name, created=created, points=tuple(points.values()), table=spec.table)
    except ValueError:
        raise UsageError(
            f"SPEC: {name!r} is no name of a sweep; use letters, digits, '.', '_' and '-'"
        ) from None
    return sweep, same


def counts(points: Iterable[Point]) -> dict[Kind, int]:
    """The number of points of each kind."""
    kinds = [point.kind for point in points]
    return {kind: kinds.count(kind) for kind in KINDS}


def size(spec: Spec) -> int:
    """The number of combinations, without making any."""
    rows = _rows(spec.zipped)
    grids = [math.prod(len(a[2]) for a in _axes(s)) for _, s in _variants(spec, rows[0])]
    return len(spec.seeds) * len(rows) * sum(grids)


def chains(spec: Spec) -> Iterator[Chain]:
    """Every combination: seeds, zipped rows, methods, and the grid, the last varying fastest."""
    for seed, row in itertools.product(spec.seeds, _rows(spec.zipped)):
        for method, settings in _variants(spec, row):
            axes = _axes(settings)
            for values in itertools.product(*(values for _, _, values in axes)):
                chosen = {kind: settings[kind] | {"seed": seed} for kind in KINDS}
                for (kind, name, _), value in zip(axes, values, strict=True):
                    chosen[kind][name] = value
                if chosen["attack"].get("limit") is not None:
                    chosen["attack"]["seed"] = spec.seeds[0]  # or each would attack other images
                told = [method] if method else []
                told += [f"{a[1]} {_text(v)}" for a, v in zip(axes, values, strict=True)]
                told += [f"{n} {_text(v)}" for kind in row for n, v in row[kind].items()]
                yield Chain(method, chosen, ", ".join(told))


def _variants(spec: Spec, row: dict[Kind, Settings]) -> Iterator[tuple[str, dict[Kind, Settings]]]:
    """Each method with its settings: preset < base < zipped < the method's preset < the method."""
    base = [*_layers(spec.base), row]
    for method, layer in (spec.methods or {"": Layer()}).items():
        layers = [*base, *_layers(layer)]
        yield (
            method,
            {
                kind: dict(ChainMap(*(found.get(kind, {}) for found in reversed(layers))))
                for kind in KINDS
            },
        )


def _layers(layer: Layer) -> list[dict[Kind, Settings]]:
    own: dict[Kind, Settings] = {kind: layer.of(kind) for kind in KINDS}
    if layer.preset is None:
        return [own]
    preset = read_preset(layer.preset, "preset")
    return [{kind: preset.get(kind, {}) for kind in KINDS}, own]


def _rows(zipped: Layer) -> list[dict[Kind, Settings]]:
    """The zipped lists, walked side by side; one empty row where there are none."""
    length = max((len(v) for kind in KINDS for v in zipped.of(kind).values()), default=1)
    return [
        {kind: {name: values[i] for name, values in zipped.of(kind).items()} for kind in KINDS}
        for i in range(length)
    ]


def _axes(settings: dict[Kind, Settings]) -> list[tuple[Kind, str, list[Any]]]:
    return [
        (kind, name, value)
        for kind in KINDS
        for name, value in settings[kind].items()
        if is_axis(kind, name, value)
    ]


def _check_used(spec: Spec, combinations: list[Chain]) -> None:
    """Refuse settings of source runs where none is made. Raises UsageError."""
    training = {chain.method for chain in combinations if not chain.named_source}
    places = [("base", spec.base, training), ("zipped", spec.zipped, training)]
    places += [(f"methods.{m}", layer, training & {m}) for m, layer in spec.methods.items()]
    for place, layer, used in places:
        if layer.pretrain and not used:
            raise UsageError(
                f"{place}.pretrain: trains nothing, since every transfer starts from the run that "
                "transfer.source names; drop one of the two"
            )


def _given(name: str, runs_dir: Path) -> Given:
    """The source run that a spec names. Raises UsageError or RunError if it will not do."""
    run = find_run(name, runs_dir, "transfer --source", ("pretrain", "import"))
    config = run.manifest.config
    assert isinstance(config, PretrainConfig | ImportConfig)
    return Given(selector_of(run, runs_dir), finished_weights(run).sha256, config, run.manifest.k)


# One combination


def _points(chain: Chain, located: Locate, given: Given | None) -> list[Point]:
    """The points of a chain, from its source run or from the one that is given.

    Raises UsageError for settings that do not work.
    """
    source = given.config if given else _configured(PretrainConfig, "pretrain", chain, located)
    target = _configured(TransferConfig, "transfer", chain, located)
    target = at_own_batch_size(target, source.preprocessing.image_size)
    attack = _configured(AttackConfig, "attack", chain, located)
    architecture = parse_architecture(source.arch)
    blocks = architecture.count()
    k = target.blocks_to_tune(given.k if given else source.k, blocks)
    if k > blocks:
        raise UsageError(
            f"transfer --k: {source.arch} has {blocks} blocks, got {k}; use 1 to {blocks}"
        )
    if architecture.block_count is not None:
        target = target.model_copy(update={"freeze_bn": target.frozen_bn})
    else:  # it need not have a batch norm to freeze
        check_network(architecture.empty(), k, target.model_dump())
    target = target.model_copy(update={"k": k})
    attack = at_own_eps(attack, attack.dataset or target.dataset)

    labels = target_labels(source, target) | {"source": given.selector if given else None}
    if chain.method not in ("", labels["method"]):
        labels["variant"] = chain.method
    if given:
        first = []
        target = target.model_copy(update={"source": given.selector})
        second = _point("transfer", target, labels, source_sha256=given.sha256)
    else:
        assert isinstance(source, PretrainConfig)
        first = [_source_point(source, blocks)]
        target = target.model_copy(update={"source": first[0].run})
        second = _point("transfer", target, labels, needs=first[0].id)
    attack = attack.model_copy(update={"run": second.run})
    third = _point("attack", attack, labels | attack_labels(attack), needs=second.id)
    return [*first, second, third]


def _source_point(config: PretrainConfig, blocks: int) -> Point:
    """The run of a source model of so many blocks: one for every k, if k means nothing."""
    if config.fdm_lambda == 0 or config.fdm_at is not None:
        usual = PretrainConfig.model_fields["k"].default
        config = config.model_copy(update={"k": min(usual, blocks)})
    return _point("pretrain", config, source_labels(config))


def _configured(config: type[Config], kind: Kind, chain: Chain, located: Locate) -> Config:
    try:
        found: Config = located(configure(config, chain.settings[kind]))
        return found
    except UsageError as error:
        raise UsageError(f"{kind} {error}") from None


def _point(
    kind: Kind,
    config: RunConfig,
    labels: dict[str, Label],
    needs: str | None = None,
    source_sha256: str | None = None,
) -> Point:
    return Point(
        id=point_id(kind, config, needs or source_sha256),
        kind=kind,
        config=config,
        needs=needs,
        source_sha256=source_sha256,
        labels=labels,
    )


def source_labels(config: PretrainConfig) -> dict[str, Label]:
    """What distinguishes a source model."""
    return {
        "method": source_method(config),
        "source_data": config.dataset,
        "arch": config.arch,
        "k": config.k if config.fdm_lambda and config.fdm_at is None else None,
        "fdm_at": config.fdm_at,
        "fdm_lambda": config.fdm_lambda,
        "replays": config.replays,
        "trades_beta": config.trades_beta,
        "awp_gamma": config.awp_gamma,
        "ema": config.ema,
        "seed": config.seed,
    }


def source_method(config: PretrainConfig) -> str:
    """How a source model is trained, as ``trades+fdm+awp``."""
    added = {"fdm": config.fdm_lambda, "awp": config.awp_gamma, "ema": config.ema}
    return "+".join([config.method, *(name for name, value in added.items() if value)])


def target_labels(
    source: PretrainConfig | ImportConfig, config: TransferConfig
) -> dict[str, Label]:
    """What distinguishes a target model."""
    if isinstance(source, PretrainConfig):
        fdm_lambda, source_data = source.fdm_lambda, source.dataset
    else:
        fdm_lambda, source_data = 0.0, Path(source.checkpoint).name
    return {
        "method": config.look(fdm_lambda).label.lower(),
        "source_data": source_data,
        "target_data": config.dataset,
        "arch": source.arch,
        "k": config.k,
        "fdm_lambda": fdm_lambda,
        **{name: getattr(config, name) for name in ADDITIONS},
        "freeze_bn": config.frozen_bn,
        "fraction": config.fraction,
        "seed": config.seed,
    }


def attack_labels(config: AttackConfig) -> dict[str, Label]:
    """What distinguishes an attack."""
    return {
        "attack": ",".join(config.attacks),
        "norm": config.norm,
        "eps": ",".join(map(shown_pixels, config.eps)),
        "pgd_steps": config.pgd_steps,
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
