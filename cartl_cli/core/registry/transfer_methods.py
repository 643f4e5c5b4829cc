"""How a target model is tuned, and how a report calls it: a method, and what is added to it."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.errors import UsageError


@dataclass(frozen=True)
class Look:
    """What tables, legends and plots call a method, and its line: colour and marker."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class TransferMethod:
    """On what the last k blocks are trained: ``--method`` of ``cartl transfer``.

    ``code`` names the function ``Tuning`` → ``Tuned`` of ``method.transfer_methods``. ``takes``:
    settings of this method, and of others that name them, but not of all. ``epochs`` and ``lr``
    are its defaults. ``single_step``: may overfit catastrophically, so that training looks out for
    it. ``one_process``: not for torchrun.
    """

    name: str
    look: Look
    code: str
    about: str = ""
    takes: frozenset[str] = frozenset()
    epochs: int = 60
    lr: float = 0.02
    freeze_bn: FreezeBatchNorm = "all"
    single_step: bool = False
    one_process: bool = False


@dataclass(frozen=True)
class Addition:
    """What is added to a method, by a number of its own: the ``setting`` that asks for it.

    ``look``: how vanilla transfer with it is called and drawn; with another method its ``marker``.
    ``symbol``, ``column``: what tables and ``--sort-by`` call the number. ``takes``: further
    settings of this addition alone, and what each is in words. ``freeze_bn``: the batch-norm case
    of the official scripts. ``all_blocks``: it tunes all blocks unless k is given, not the source
    model's k. ``head_first``: the part of the epochs, 0..1, that trains the classifier alone.
    ``excludes``: additions that do not go with it, each with the reason. ``obstacle`` names the
    function (model, k) → what in the last k blocks it cannot work on, in words, or None.
    """

    name: str
    setting: str
    look: Look
    marker: str
    symbol: str
    column: str
    takes: Mapping[str, str] = field(default_factory=dict)
    freeze_bn: FreezeBatchNorm = "all"
    all_blocks: bool = False
    head_first: float = 0.0
    excludes: Mapping[str, str] = field(default_factory=dict)
    obstacle: str | None = None


_HERE = "cartl_cli.core.method.transfer_methods"
_HAS_NORM = "cartl_cli.core.method.batch_norm:has_batch_norm"
_ATTACKED = frozenset({"eps", "step_size", "pgd_steps", "eps_warmup", "awp_gamma"})
_ATTACKED_LR = 0.2  # that of pretrain; at 0.02 training stops low (docs/which-method.md)
# the colours are those of Okabe and Ito, which everybody can tell apart, and a few beside them
SOURCE = Look("source", "#CC79A7", "P")
TRANSFER_METHODS: dict[str, TransferMethod] = {
    method.name: method
    for method in (
        TransferMethod(
            "natural", Look("vanilla", "#0072B2", "s"), f"{_HERE}:natural", "on clean images"
        ),
        TransferMethod(
            "latent",
            Look("latent", "#000000", "*"),
            f"{_HERE}:latent",
            "on the worst features near those of the images",
            takes=frozenset({"radius", "latent_steps", "eps_warmup", "awp_gamma"}),
        ),
        TransferMethod(
            "fast",
            Look("fast", "#56B4E9", "X"),
            f"{_HERE}:adversarial",
            "on images of N-FGSM",
            takes=_ATTACKED,
            lr=_ATTACKED_LR,
            single_step=True,
            one_process=True,
        ),
        TransferMethod(
            "at",
            Look("at", "#808080", "^"),
            f"{_HERE}:adversarial",
            "on images of PGD",
            takes=_ATTACKED,
            lr=_ATTACKED_LR,
        ),
        TransferMethod(
            "trades",
            Look("trades", "#8C564B", "h"),
            f"{_HERE}:adversarial",
            "the loss of TRADES",
            takes=_ATTACKED | {"trades_beta"},
            lr=_ATTACKED_LR,
        ),
    )
}
ADDITIONS: dict[str, Addition] = {
    addition.setting: addition
    for addition in (
        Addition(
            "neft",
            "neft_beta",
            Look("NEFT", "#009E73", "D"),
            "d",
            symbol="β",
            column="beta",
            freeze_bn="affine",
            excludes={"interpolate": "mixed weights have other spectral norms than β"},
            obstacle="cartl_cli.core.method.neft:obstacle",
        ),
        Addition(
            "lwf",
            "lwf_lambda",
            Look("LwF", "#E69F00", "v"),
            "v",
            symbol="λ LwF",
            column="lwf",
            freeze_bn="none",
            all_blocks=True,
            head_first=0.5,
            excludes={
                "keep_lambda": "LwF is one case of it; give one of the two",
                "neft_beta": "NEFT changes the size of features, which LwF wants kept; "
                "--keep-lambda compares their directions",
            },
        ),
        Addition(
            "keep",
            "keep_lambda",
            Look("keep", "#F0E442", "<"),
            "<",
            symbol="λ keep",
            column="keep",
            takes={"keep_at": "is of --keep-lambda", "keep_distance": "is of --keep-lambda"},
        ),
    )
}
CARTL = Look("CARTL", "#D55E00", "o")
"""NEFT on clean images, from a source model with feature distance minimization: the paper."""
CARTL_W = Look("CARTL-W", "#D55E00", "*")
"""The same with the worst features in place of the clean ones: docs/cartl-w.md."""

_OF_THE_PAPER: dict[tuple[str, tuple[str, ...]], Look] = {
    ("natural", ("neft",)): CARTL,
    ("latent", ("neft",)): CARTL_W,
}


def symbols() -> dict[str, str]:
    """The numbers that tell models apart in a report: settings, each with what tables call it."""
    return {"fdm_lambda": "λ FDM"} | {name: one.symbol for name, one in ADDITIONS.items()}


def additions_of(settings: object) -> tuple[Addition, ...]:
    """What settings, as attributes, add to their method."""
    return tuple(one for name, one in ADDITIONS.items() if getattr(settings, name) is not None)


def check_network(model: Any, k: int, settings: Mapping[str, Any]) -> None:
    """Refuse settings, by their names, that do not go with the last k blocks of a ``BlockModel``.

    Raises UsageError with the reason.
    """
    for name, addition in ADDITIONS.items():
        if settings[name] is None or addition.obstacle is None:
            continue
        if (why := resolve_name(addition.obstacle)(model, k)) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: {addition.look.label} {why}")
    case = settings["freeze_bn"]
    if case not in (None, "none") and not resolve_name(_HAS_NORM)(model):
        raise UsageError(f"--freeze-bn: {case}, but this network has no batch norm; drop it")


def look_of(
    method: TransferMethod, additions: tuple[Addition, ...], fdm_lambda: float | None
) -> Look:
    """How a model is called and drawn, by the λ of its source model's training."""
    names = tuple(one.name for one in additions)
    if fdm_lambda and (method.name, names) in _OF_THE_PAPER:
        return _OF_THE_PAPER[method.name, names]
    if method.name == "natural" and len(additions) == 1:
        return additions[0].look
    if not additions:
        return method.look
    words = [one.look.label for one in additions]
    if method.name != "natural":
        words.insert(0, method.look.label)
    marker = additions[0].marker if len(additions) == 1 else "p"
    return Look("+".join(words), method.look.colour, marker)


def looks() -> list[Look]:
    """Every way that a model is called in a report, source models first."""
    found = [SOURCE]
    for method, additions in itertools.product(TRANSFER_METHODS.values(), _subsets()):
        for fdm_lambda in (None, 1.0):
            look = look_of(method, additions, fdm_lambda)
            found += [] if look in found else [look]
    return found


def _subsets() -> Iterable[tuple[Addition, ...]]:
    """Every set of additions that go together."""
    for count in range(len(ADDITIONS) + 1):
        for chosen in itertools.combinations(ADDITIONS.values(), count):
            if not any(a.setting in b.excludes for a, b in itertools.permutations(chosen, 2)):
                yield chosen
