"""Which checks a run makes, by what they may cost.

In passes (forward, about half of them backward as well) of B images, S of which stand, and a PGD-N
of two losses, at most: *fast* K1 39·B, K2 44·B, K4 2·B, K5 20·S, K9 2·S, K13 72, K14 5·B and K15 B,
113·B in all. *default* 80·S more for K5, K3 176·B, K6 502·S, K7 2·(N + 2)·S, K8 N·S, K10 22·S, K11
176·B, K12 88·B, K16 101·B, K18 and K19 2·B, and 44·B that K3, K11 and K12 share. *thorough* twice
the images, 14,400·S more for K5 and K6, and K17 (N + 4)·S.

Images leave an attack when they fall. Counted on a small network with N = 100 and B = 128: *fast*
5,200 passes where 28 % stand, 7,400 where all do, 12,000 where nothing falls at any eps: 12 % of a
PGD-100 on 1000 images. *default* 65,000, 195,000 and 200,000, of which 26,000, 95,000 and 100,000
go backward.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from cartl_cli.core.runs.results import Check
from cartl_cli.core.trust import gradients, planted, rivals, strength
from cartl_cli.core.trust.probe import Probe

Tier = Literal["fast", "default", "thorough"]
BeforePass = Callable[[int, int], None]


def from_source(probe: Probe) -> Check | None:
    """K10 where the probe has a source model."""
    return None if probe.source is None else rivals.transfer(probe, probe.source)


def _fast(draws: int) -> tuple[Callable[[Probe], Check | None], ...]:
    return (
        planted.planted_adversary,
        strength.unbounded,
        gradients.vanishing_gradient,
        partial(rivals.random_noise, draws=draws),
        rivals.single_step,
        gradients.finite_differences,
        gradients.determinism,
        gradients.output_shape,
    )


def _more(queries: int) -> tuple[Callable[[Probe], Check | None], ...]:
    return (
        strength.monotone,
        partial(rivals.black_box, queries=queries),
        strength.more_steps,
        strength.plateau,
        from_source,
        strength.restarts,
        strength.logit_scale,
        gradients.unstable_neighbours,
        strength.plausible,
        strength.eight_bits,
    )


CHECKS: Mapping[Tier, tuple[Callable[[Probe], Check | None], ...]] = {
    "fast": _fast(20),
    "default": (*_fast(100), *_more(500)),
    "thorough": (*_fast(10_000), *_more(5000), rivals.adaptive),
}
"""The checks of each tier; None says that a check does not apply."""


def ignore(done: int, total: int) -> None:
    """What is done before each pass where nobody waits."""


def checks_of(probe: Probe, tier: Tier, before_pass: BeforePass = ignore) -> list[Check]:
    """What the checks of a tier say of a finished attack, with eps above 0.

    ``before_pass`` is called before each prediction of the model, and of copies made meanwhile,
    with the number of checks done and of how many: one can take minutes. Passes of the source (K10)
    or to features (K17) alone take seconds.
    """
    checks = CHECKS[tier]
    found: list[Check | None] = []
    watch = probe.model.register_forward_pre_hook(lambda *_: before_pass(len(found), len(checks)))
    try:
        for check in checks:
            found.append(check(probe))
    finally:
        watch.remove()
    return [check for check in found if check is not None]
