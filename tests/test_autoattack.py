import importlib.util
import logging
import sys
from unittest import mock

import pytest
import torch

from cartl_cli.core.attacks.autoattack import autoattack
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.norm_ball import sizes
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.runs.manifest import Run
from tests.conftest import Command
from tests.victims import linear, untouched


@pytest.mark.parametrize(
    ("norm", "eps", "classes"), [("linf", 0.01, 2), ("linf", 0.01, 10), ("l2", 0.1, 3)]
)
def test_equals_the_closed_form_on_a_linear_model(norm: Norm, eps: float, classes: int) -> None:
    model, images, labels = linear(classes, count=60)
    worst = model.worst(images, labels, eps, norm)
    falls = worst > 0
    assert falls.any()
    some = torch.cat([falls.nonzero()[:20], (~falls).nonzero()[:1]]).squeeze(
        1
    )  # that one takes long
    images, labels = images[some].to(memory_format=torch.channels_last), labels[some]
    with untouched(model), torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = autoattack(model, images, labels, Budget(eps, eps / 4, 100, norm), 9, 0)
    assert outcome.fallen.equal(falls[some])
    assert sizes(outcome.adversarial - images, norm).max() <= eps + 1e-6
    assert correct(predict(model, outcome.adversarial), labels).equal(~falls[some])


def test_it_is_silent_and_leaves_the_log_of_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    model, images, labels = linear(3, count=4)
    autoattack(model, images, labels, Budget(1.0, 0.25, 100), 9, 0)  # warns of too few classes
    assert caplog.records == []
    logging.getLogger("auto-attack").warning("somebody else's")
    assert len(caplog.records) == 1


def test_a_debugger_goes_on() -> None:
    model, images, labels = linear(3, count=4)

    def tracer(*arguments: object) -> None: ...

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        autoattack(model, images, labels, Budget(1.0, 0.25, 100), 9, 0)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_without_the_package_the_command_says_what_to_install(cartl: Command, source: Run) -> None:
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
        finished = cartl("attack", source.folder, "--attack", "pgd,autoattack")
    assert finished.code == 2
    assert "pip install 'cartl[autoattack]'" in finished.err
