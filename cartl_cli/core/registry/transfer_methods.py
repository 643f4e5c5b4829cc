"""How a target model is tuned, and how a report calls it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cartl_cli.core.choices import FreezeBatchNorm


@dataclass(frozen=True)
class Look:
    """What tables, legends and plots call a method, and its line: colour and marker."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class TransferMethod:
    """A way to fine-tune the last k blocks.

    ``chosen_by``: the setting that asks for this method; one without is asked for by ``--method
    NAME``, whose help says what it is ``about``. ``symbol``, ``column``: what tables and
    ``--sort-by`` call that setting. ``takes``: further settings of this method alone, and what each
    is in words. ``freeze_bn``: the batch-norm case unless another is given, that of the official
    scripts. ``all_blocks``: it tunes all blocks unless k is given, not the source model's k.
    ``head_first``: the part of the epochs, 0..1, that trains the classifier alone.

    ``code`` names the function (model, source model, k, head steps, settings by name) → ``Tuned``
    of ``method.transfer_methods``. ``with_fdm``: how it is called when the source model was trained
    with feature distance minimization, where that makes another method of it.
    """

    name: str
    look: Look
    code: str
    chosen_by: str | None = None
    about: str = ""
    symbol: str = ""
    column: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)
    freeze_bn: FreezeBatchNorm = "all"
    all_blocks: bool = False
    head_first: float = 0.0
    with_fdm: Look | None = None

    @property
    def flag(self) -> str:
        """What asks for it on the command line."""
        return (
            f"--{self.chosen_by.replace('_', '-')}" if self.chosen_by else f"--method {self.name}"
        )

    def look_of(self, fdm_lambda: float | None) -> Look:
        """How it is called and drawn, by the λ of its source model's training."""
        return self.with_fdm if self.with_fdm and fdm_lambda else self.look


_HERE = "cartl_cli.core.method.transfer_methods"
# the colours are those of Okabe and Ito, which everybody can tell apart
SOURCE = Look("source", "#CC79A7", "P")
TRANSFER_METHODS: dict[str, TransferMethod] = {
    method.name: method
    for method in (
        TransferMethod(
            "natural", Look("vanilla", "#0072B2", "s"), f"{_HERE}:vanilla", about="on clean images"
        ),
        TransferMethod(
            "lwf",
            Look("LwF", "#E69F00", "v"),
            f"{_HERE}:learning_without_forgetting",
            chosen_by="lwf_lambda",
            symbol="λ LwF",
            column="lwf",
            takes={"head_epochs": "is a phase of LwF"},
            freeze_bn="none",
            all_blocks=True,
            head_first=0.5,
        ),
        TransferMethod(
            "neft",
            Look("NEFT", "#009E73", "D"),
            f"{_HERE}:non_expansive",
            chosen_by="neft_beta",
            symbol="β",
            column="beta",
            freeze_bn="affine",
            with_fdm=Look("CARTL", "#D55E00", "o"),
        ),
    )
}


def strengths() -> dict[str, TransferMethod]:
    """The settings by which methods are chosen, such as ``neft_beta``, each with its method."""
    return {m.chosen_by: m for m in reversed(TRANSFER_METHODS.values()) if m.chosen_by}


def symbols() -> dict[str, str]:
    """The numbers that tell models apart in a report: settings, each with what tables call it."""
    return {"fdm_lambda": "λ FDM"} | {name: method.symbol for name, method in strengths().items()}


def chosen_methods(settings: object) -> list[TransferMethod]:
    """The methods that settings, as attributes, ask for; more than one is a mistake."""
    named = TRANSFER_METHODS[str(vars(settings)["method"])]
    chosen = [m for name, m in strengths().items() if getattr(settings, name) is not None]
    return chosen if chosen and named.name == "natural" else [named, *chosen]


def looks() -> list[Look]:
    """Every way that a model is called in a report, source models first."""
    found = [SOURCE]
    for method in TRANSFER_METHODS.values():
        found += [method.look, *([method.with_fdm] if method.with_fdm else [])]
    return found
