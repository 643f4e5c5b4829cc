import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cartl_cli.commands.options import Request
from cartl_cli.commands.session import layers
from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import at_own_eps, check_same, configure
from cartl_cli.core.config.idle import idle
from cartl_cli.core.config.presets import SETTINGS_FOLDER
from cartl_cli.core.config.told import told_settings
from cartl_cli.core.config.values import shown_pixels, write_list
from cartl_cli.core.errors import UsageError
from cartl_cli.core.runs.command_line import command_line
from cartl_cli.core.sweeps.spec import parse_spec

TYPES: dict[str, Any] = {
    "pretrain": PretrainConfig,
    "transfer": TransferConfig,
    "attack": AttackConfig,
}
PRESETS = [p.name for p in SETTINGS_FOLDER.iterdir() if p.is_file()]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    text = (SETTINGS_FOLDER / preset).read_text(encoding="utf-8")
    commands = tomllib.loads(text).keys()
    assert commands <= TYPES.keys()
    for command in commands:
        settings, _ = layers(Request({}, preset.removesuffix(".toml")), command)
        configure(TYPES[command], settings)


def test_a_preset_without_settings_for_a_command_is_refused() -> None:
    with pytest.raises(UsageError, match="--preset: 'paper-lwf' is for transfer, not pretrain"):
        layers(Request({}, "paper-lwf"), "pretrain")


def test_the_paper_preset_has_the_official_settings() -> None:
    config = configure(PretrainConfig, *layers(Request({}, "paper"), "pretrain"))
    assert (config.epochs, config.batch_size, config.lr) == (100, 128, 0.1)
    assert (config.schedule, config.milestones, config.eps_warmup) == ("step", (40, 70, 90), 0)
    assert (config.momentum, config.weight_decay, config.pgd_steps) == (0.9, 5e-4, 7)
    assert config.eps == pytest.approx(8 / 255)
    assert config.attack_step == pytest.approx(2 / 255)


def test_a_later_layer_overrides_an_earlier_one() -> None:
    config = configure(PretrainConfig, {"lr": 0.3, "epochs": 3}, {"lr": "0.2"})
    assert (config.lr, config.epochs, config.momentum) == (0.2, 3, 0.9)


@pytest.mark.parametrize("config_type", TYPES.values())
def test_a_stored_config_is_a_valid_config(config_type: type[PretrainConfig]) -> None:
    config = config_type()
    stored = config.model_dump_json()
    assert config_type.model_validate_json(stored) == config


def test_numbers_are_read_as_people_write_them() -> None:
    config = configure(PretrainConfig, {"eps": "8/255", "step_size": "0.01", "classes": "a, b"})
    assert config.eps == 8 / 255
    assert config.step_size == 0.01
    assert config.classes == ("a", "b")
    assert shown_pixels(config.eps) == "8/255"
    assert shown_pixels(0.15) == "0.15"
    assert shown_pixels(1.0) == "1"


def test_whole_numbers_have_an_end() -> None:
    for value in (10**18, "1" + 18 * "0"):
        with pytest.raises(UsageError, match="--epochs: must be a whole number"):
            configure(PretrainConfig, {"epochs": value})


def test_batch_norm_default_is_that_of_the_official_scripts() -> None:
    assert TransferConfig().frozen_bn == "all"
    assert TransferConfig(neft_beta=0.4).frozen_bn == "affine"
    assert TransferConfig(neft_beta=0.4, freeze_bn="none").frozen_bn == "none"


def test_an_unknown_setting_is_named_with_the_nearest_known() -> None:
    with pytest.raises(UsageError, match="unknown setting 'fdm_lamda'; did you mean 'fdm_lambda'"):
        configure(PretrainConfig, {"fdm_lamda": 1})


def test_fields_are_described() -> None:
    for config_type in TYPES.values():
        assert all(field.description for field in config_type.model_fields.values())


def test_each_norm_has_an_eps_of_its_own() -> None:
    norms: dict[str, float] = {"linf": 8 / 255, "l2": 0.5}
    for norm, eps in norms.items():
        config = configure(AttackConfig, {"norm": norm})
        assert at_own_eps(config, "cifar10").eps == config.eps == (eps,)
    assert at_own_eps(configure(AttackConfig, {}), "mnist").eps == (0.15,)


@pytest.mark.parametrize("name", ["mine.toml", "mine.JSON"])
def test_settings_may_have_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    text = '{"epochs": 3}' if name.endswith("JSON") else "epochs = 3"
    path.write_bytes(text.encode("utf-8-sig"))
    assert layers(Request({}, config=path), "pretrain") == [{"epochs": 3}, {}]
    assert parse_spec("seeds = [4]".encode("utf-8-sig"), "spec").seeds == (4,)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):  # the last two without a mark
        path.write_bytes(text.encode(encoding))
        with pytest.raises(UsageError, match="is no text in UTF-8; save it as UTF-8"):
            layers(Request({}, config=path), "pretrain")
        with pytest.raises(UsageError, match="is no text in UTF-8; save it as UTF-8"):
            parse_spec("seeds = [4]".encode(encoding), "spec")


@pytest.mark.parametrize(
    "classes",
    [("a", "b"), ("a,b", "c"), ('say "x"', "b"), ('"', ","), ("a,b", 'c"d,e'), ("日本,語", "é")],
    ids=str,
)
def test_a_class_may_have_a_comma_and_quotes(classes: tuple[str, ...]) -> None:
    config = TransferConfig(classes=classes)
    flags = shlex.split(command_line("transfer", config, "name", 32))
    text = flags[flags.index("--classes") + 1]
    assert text == write_list(classes)
    assert configure(TransferConfig, {"classes": text}) == config


def test_a_list_in_quotes_is_read_as_csv() -> None:
    assert configure(TransferConfig, {"classes": '"a,b", c'}).classes == ("a,b", "c")
    assert configure(TransferConfig, {"classes": 'a, 5" disk'}).classes == ("a", '5" disk')
    for text in ('"a,b', '"a"b,c'):
        with pytest.raises(
            UsageError, match="--classes: must be a list such as a,b; what has a comma in quotes"
        ):
            configure(TransferConfig, {"classes": text})


@pytest.mark.parametrize(
    ("config", "setting", "words"),
    [
        (AttackConfig, "attack", "or 'strong', got 'nonsense'"),
        (TransferConfig, "k", "a whole number, or auto, got 'nonsense'"),
        (TransferConfig, "radius", "such as 0.03 or 8/255, or auto, got 'nonsense'"),
    ],
)
def test_every_word_that_is_taken_is_named(config: Any, setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"^--{setting}: .*{words}$"):
        configure(config, {setting: "nonsense"})


def test_a_command_names_the_batch_size_where_its_images_would_have_another() -> None:
    for size, side, told in ((64, 32, False), (64, 224, True), (16, 224, False), (16, 32, True)):
        line = command_line("transfer", TransferConfig(batch_size=size), "name", side)
        assert (f"--batch-size {size} " in line) == told


def test_a_step_in_l2_may_be_longer_than_a_pixel_is_wide() -> None:
    config = AttackConfig.model_validate({"norm": "l2", "eps": 5, "step_size": 1.25})
    assert config.step(5) == 1.25 == AttackConfig(norm="l2", eps=(5,)).step(5)


@pytest.mark.parametrize(
    ("method", "unused"),
    [("natural", {"pgd_steps", "eps_warmup"}), ("free", {"pgd_steps"}), ("at", set[str]())],
)
def test_settings_that_a_training_does_not_look_at_are_idle(method: str, unused: set[str]) -> None:
    config = PretrainConfig.model_validate({"method": method})
    assert idle(config).keys() - {"milestones", "warmup_epochs"} == unused


def test_a_refusal_to_extend_names_no_change_that_is_permitted() -> None:
    stored = PretrainConfig(epochs=2, lr=0.1)
    given = PretrainConfig(epochs=3, lr=0.2, device="cpu", save_every="500")
    for extend, listed in ((True, "--lr 0.1 -> 0.2"), (False, "--epochs 2 -> 3, --lr 0.1 -> 0.2")):
        with pytest.raises(UsageError, match=f"^differs from the run: {listed}; drop it"):
            check_same(stored, given, extend)
    check_same(stored, given.model_copy(update={"lr": 0.1}), extend=True)


def test_help_says_what_fast_does_with_the_steps() -> None:
    about = TransferConfig.model_fields["pgd_steps"].description
    assert about is not None
    assert "fast takes one step, and these only after it was found to overfit" in about


def test_settings_without_effect_are_not_told() -> None:
    def told(**settings: Any) -> dict[str, str]:
        return {one.name: one.value for one in told_settings(TransferConfig(**settings))}

    plain = told(k=6)
    assert {"seed": "0", "k": "6"}.items() <= plain.items()
    assert not {"ema", "awp_gamma", "eps_warmup", "milestones", "warmup_epochs"} & plain.keys()
    other = told(schedule="step", milestones=(10, 20), method="at", ema=0.99)
    assert {"milestones": "10,20", "warmup_epochs": "1.0", "ema": "0.99"}.items() <= other.items()
