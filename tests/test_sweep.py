"""A spec → points: what is run, what is shared, what is refused before anything is run."""

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from cartl_cli.commands.sweep import threads
from cartl_cli.core.config import CONFIGS, AttackConfig, TransferConfig
from cartl_cli.core.config.presets import sweep_presets
from cartl_cli.core.data.shapes import shapes_target
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.reports.provenance import setting_of
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.sweeps.executor import State, write_settings
from cartl_cli.core.sweeps.grid import chains, counts, plan, size
from cartl_cli.core.sweeps.points import (
    ADDED,
    MAX_POINTS,
    Point,
    Sweep,
    point_id,
    read_sweep,
    sweep_runs,
    write_sweep,
)
from cartl_cli.core.sweeps.spec import KINDS, Spec, open_spec, parse_spec
from cartl_cli.display.sweep_tables import Clock, live_table, table, tree
from cartl_cli.display.tables import print_fitted
from tests.conftest import TINY_TRANSFER, Command

RUNS = {
    "table1": (2, 16),
    "table2": (6, 18),
    "table3": (4, 9),
    "table4": (6, 12),
    "figure3": (2, 22),
    "figure4": (7, 25),
    "figure5": (2, 12),
    "table1-shapes": (1, 8),
    "table2-shapes": (6, 18),
    "table3-shapes": (4, 9),
    "table4-shapes": (2, 3),
    "figure3-shapes": (1, 8),
    "figure4-shapes": (7, 25),
    "figure5-shapes": (2, 12),
}


def planned(text: str, name: str = "mine", runs_dir: Path = Path("runs")) -> Sweep:
    spec = parse_spec(text.encode(), name)
    return plan(name, spec, "now", lambda config: config, runs_dir)[0]


def of_kind(sweep: Sweep, kind: str) -> list[Any]:
    return [point.config for point in sweep.points if point.kind == kind]


def builtin(name: str) -> Sweep:
    return plan(*open_spec(name), "now", lambda config: config, Path("runs"))[0]


def test_every_built_in_sweep_is_known() -> None:
    assert sweep_presets() == sorted(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_dry_run_counts_the_runs(cartl: Command, name: str) -> None:
    done = cartl("sweep", name, "--dry-run", "--json")
    assert done.code == 0, done.err
    sources, targets = RUNS[name]
    shown = json.loads(done.out)
    assert shown["runs"] == {"pretrain": sources, "transfer": targets, "attack": targets}
    assert shown["table"] == name.removesuffix("-shapes")
    assert not Path("runs").exists()


def test_the_plan_is_a_tree(cartl: Command) -> None:
    done = cartl("sweep", "table2", "--dry-run")
    assert "sweep table2: 6 source runs, 18 transfers, 18 attacks (42 waiting)" in done.out
    assert done.out.count("── pretrain-") == 6
    assert done.out.count("── transfer-") == done.out.count("── attack-") == 18
    assert "k 4, fdm_lambda 0.01" in done.out


def test_the_built_in_sweeps_are_listed(cartl: Command) -> None:
    done = cartl("sweep", "--list")
    assert all(name in done.out for name in RUNS)
    assert "6 + 18 + 18" in done.out
    found = {entry["name"]: entry for entry in json.loads(cartl("sweep", "--list", "--json").out)}
    assert found["table2"]["runs"] == {"pretrain": 6, "transfer": 18, "attack": 18}
    assert found["table2"]["hours"]["on"] == "one H100"


def test_table_2_is_that_of_the_paper() -> None:
    sweep = builtin("table2")
    expected = {(k, m, b) for k in (4, 6, 8) for m in (0.01, 0.005) for b in (1.0, 0.6, 0.4)}
    labels = [point.labels for point in sweep.points if point.kind == "attack"]
    assert {(x["k"], x["fdm_lambda"], x["neft_beta"]) for x in labels} == expected
    assert {x["method"] for x in labels} == {"cartl"}
    for config in of_kind(sweep, "pretrain"):
        assert (config.arch, config.epochs, config.dataset) == ("wrn-34-10", 100, "cifar100")
    assert {config.freeze_bn for config in of_kind(sweep, "transfer")} == {"affine"}
    assert {config.pgd_steps for config in of_kind(sweep, "attack")} == {100}


def test_cartl_in_figure_4_is_that_of_table_2() -> None:
    for ending in ("", "-shapes"):
        table = {point.id for point in builtin(f"table2{ending}").points}
        assert table <= {point.id for point in builtin(f"figure4{ending}").points}


@pytest.mark.parametrize(("name", "sources", "targets"), [("precision", 6, 12), ("natural", 2, 2)])
def test_the_specs_of_the_benchmarks_are_valid(name: str, sources: int, targets: int) -> None:
    spec = (Path(__file__).parents[1] / "benchmarks" / f"{name}.toml").read_text()
    expected = {"pretrain": sources, "transfer": targets, "attack": targets}
    assert counts(planned(spec).points) == expected


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("-shapes")])
def test_batches_of_the_built_in_data_fit_the_smallest_part_of_them(name: str) -> None:
    images = len(shapes_target().train)
    for config in of_kind(builtin(name), "transfer"):
        assert config.batch_size <= config.fraction * images


def test_one_source_run_without_fdm_serves_every_k() -> None:
    sweep = planned("[base.pretrain]\nk = [2, 4]\nfdm_lambda = [0.0, 0.01]")
    assert counts(sweep.points) == {"pretrain": 3, "transfer": 4, "attack": 4}
    assert sorted(c.k for c in of_kind(sweep, "transfer")) == [2, 2, 4, 4]


def test_what_a_point_needs_comes_before_it_and_is_named_by_it() -> None:
    sweep = planned("seeds = [0, 1]\n[base.transfer]\nneft_beta = [1.0, 0.4]")
    found: dict[str, Point] = {}
    for point in sweep.points:
        assert point.kind == "pretrain" or point.needs in found
        if isinstance(point.config, TransferConfig):
            assert point.config.source == found[point.needs or ""].run
        if isinstance(point.config, AttackConfig):
            assert point.config.run == found[point.needs or ""].run
        assert point.config.seed == point.labels["seed"]
        found[point.id] = point
    assert counts(sweep.points) == {"pretrain": 2, "transfer": 4, "attack": 4}


def test_a_transfer_starts_from_the_run_that_a_spec_names(runs_dir: Path) -> None:
    sweep = planned('[base.transfer]\nsource = "source"\nneft_beta = [1.0, 0.4]', runs_dir=runs_dir)
    source = read_run(runs_dir / "source").manifest
    assert source.weights is not None
    assert counts(sweep.points) == {"pretrain": 0, "transfer": 2, "attack": 2}
    for point in sweep.points:
        assert (point.labels["source"], point.labels["method"]) == ("source", "cartl")
        assert (point.labels["k"], point.labels["fdm_lambda"]) == (3, 0.005)
        assert (point.labels["arch"], point.labels["source_data"]) == ("wrn-10-1", "shapes")
        if isinstance(point.config, TransferConfig):
            assert (point.needs, point.source_sha256) == (None, source.weights.sha256)
            assert (point.config.source, point.config.k) == ("source", 3)


def test_the_same_source_model_makes_the_same_points_wherever_it_is(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    copy = Path(shutil.copytree(runs_dir / "source", tmp_path / "models" / "copy"))

    def made_from(source: Path | str, runs: Path = runs_dir) -> Sweep:
        return planned(f'[base.transfer]\nsource = "{source}"', runs_dir=runs)

    by_name = made_from("source")
    for sweep in (
        *(made_from("1"), made_from(runs_dir / "source"), made_from(copy)),
        *(made_from("copy", tmp_path / "models"), made_from("~/models/copy", tmp_path / "none")),
    ):
        assert [point.id for point in sweep.points] == [point.id for point in by_name.points]
    assert of_kind(made_from("1"), "transfer")[0].source == "source"
    assert of_kind(made_from(copy), "transfer")[0].source == "~/models/copy"
    both = planned(f'[base.transfer]\nsource = ["source", "{copy}"]', runs_dir=runs_dir)
    assert both.points == by_name.points
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["weights"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert not {p.id for p in made_from(copy).points} & {p.id for p in by_name.points}


def test_seeds_attack_the_same_part_of_the_images() -> None:
    for limit, seeds in (("", [3, 4]), ("[base.attack]\nlimit = 20", [3, 3])):
        sweep = planned(f"seeds = [3, 4]\n{limit}")
        assert [config.seed for config in of_kind(sweep, "attack")] == seeds
        assert [config.seed for config in of_kind(sweep, "transfer")] == [3, 4]


def test_the_k_of_an_import_is_that_of_its_run(cartl: Command, runs_dir: Path) -> None:
    shutil.copy(runs_dir / "source" / "model.safetensors", "alone.safetensors")
    assert cartl("import", "alone.safetensors", "--arch", "wrn-10-1", "--name", "small").code == 0
    sweep = planned('[base.transfer]\nsource = "small"', runs_dir=Path("runs"))
    assert [config.k for config in of_kind(sweep, "transfer")] == [5]  # not the 6 of the settings
    run = read_run(Path("runs/small"))
    assert run.manifest.weights is not None
    assert setting_of((run,)).others == (("model", run.manifest.weights.sha256[:12]),)


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    assert threads(2, print) == 2


def test_methods_and_lists_mix_named_sources_with_own_ones(runs_dir: Path) -> None:
    sweep = planned(
        """
        [methods.own.pretrain]
        lr = 0.1
        [methods.given.transfer]
        source = "source"
        """,
        runs_dir=runs_dir,
    )
    assert [point.kind for point in sweep.points] == [
        *("pretrain", "transfer", "attack", "transfer", "attack")
    ]
    sources = [p.labels["source"] for p in sweep.points if p.kind == "transfer"]
    assert sources == [None, "source"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tree(sweep, {point.id: State("waiting") for point in sweep.points}))
    assert f"── {sweep.points[3].run}  arch wrn-10-1, k 3, fdm_lambda 0.005, source source" in (
        console.export_text()
    )
    sweep = planned(
        '[base.pretrain]\nlr = 0.1\n[base.transfer]\nsource = ["", "source"]', runs_dir=runs_dir
    )
    assert counts(sweep.points) == {"pretrain": 1, "transfer": 2, "attack": 2}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[base.pretrain]\nlr = 0.1", "base"),
        ("[zipped.pretrain]\nlr = [0.1, 0.2]", "zipped"),
        ("[methods.a.pretrain]\nlr = 0.1\n[methods.b.transfer]\nlr = 0.2", "methods.a"),
        ('[methods.a.pretrain]\nlr = 0.1\n[methods.b.transfer]\nsource = ""', "methods.a"),
    ],
)
def test_settings_of_source_runs_that_nothing_uses_are_refused(text: str, place: str) -> None:
    with pytest.raises(UsageError, match=rf"{place}\.pretrain: trains nothing, since .*; drop one"):
        planned(f'[base.transfer]\nsource = "source"\n{text}')


@pytest.mark.parametrize("way", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "transfer --source: no such run: 'missing'; runs in 'runs': source, target"),
        ("target", "transfer --source: 'target' is a transfer run, not pretrain or import"),
        ("source", "run 'source' is not complete: crashed; go on with: cartl pretrain --resume"),
    ],
)
def test_a_source_that_will_not_do_is_refused_before_anything_is_run(
    cartl: Command, runs_dir: Path, name: str, message: str, way: list[str]
) -> None:
    shutil.copytree(runs_dir, "runs")
    path = Path("runs/source/manifest.json")
    path.write_text(path.read_text().replace('"status": "completed"', '"status": "running"'))
    Path("mine.toml").write_text(f'[base.transfer]\nsource = ["{name}", "other"]')
    done = cartl("sweep", "mine.toml", *way)
    assert done.code in (1, 2)
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert not Path("runs/sweeps").exists()
    assert not list(Path("runs").glob("transfer-*"))


def test_settings_come_from_preset_base_zipped_and_method() -> None:
    sweep = planned(
        """
        [base]
        preset = "paper"
        [base.pretrain]
        epochs = 90
        milestones = [40, 70]
        [base.transfer]
        lr = 0.3
        [zipped.pretrain]
        arch = ["wrn-16-2", "wrn-16-4"]
        pgd_steps = [3, 4]
        [methods.lwf]
        preset = "paper-lwf"
        [methods.lwf.transfer]
        lwf_lambda = [0.1, 0.2]
        """
    )
    pairs = {(c.arch, c.pgd_steps, c.epochs, c.milestones) for c in of_kind(sweep, "pretrain")}
    assert pairs == {("wrn-16-2", 3, 90, (40, 70)), ("wrn-16-4", 4, 90, (40, 70))}
    targets = of_kind(sweep, "transfer")
    assert {(c.lr, c.epochs, c.lwf_lambda) for c in targets} == {(0.001, 52, 0.1), (0.001, 52, 0.2)}
    assert {c.k for c in targets} == {8}  # LwF tunes all blocks


def test_a_list_is_one_value_where_the_setting_is_a_list() -> None:
    sweep = planned(
        """
        [base.attack]
        eps = ["2/255", "4/255"]
        [base.transfer]
        classes = [["a", "b"], ["c", "d"]]
        """
    )
    assert {c.eps for c in of_kind(sweep, "attack")} == {(2 / 255, 4 / 255)}
    assert {c.classes for c in of_kind(sweep, "transfer")} == {("a", "b"), ("c", "d")}


def test_an_attack_has_the_eps_of_the_data_it_attacks() -> None:
    sweep = planned('[base.transfer]\ndataset = ["mnist", "cifar10"]')
    assert {c.eps for c in of_kind(sweep, "attack")} == {(0.15,), (8 / 255,)}
    sweep = planned('[base.transfer]\ndataset = "mnist"\n[base.attack]\neps = "1/255"')
    assert {c.eps for c in of_kind(sweep, "attack")} == {(1 / 255,)}


def test_labels_name_the_method() -> None:
    sweep = planned(
        """
        [methods.plain]
        [methods.neft.transfer]
        neft_beta = 0.4
        [methods.both.transfer]
        neft_beta = 0.4
        [methods.both.pretrain]
        fdm_lambda = 0.01
        [methods.lwf.transfer]
        lwf_lambda = 0.1
        """
    )
    found = [
        (point.labels["method"], point.labels.get("variant"))
        for point in sweep.points
        if point.kind == "transfer"
    ]
    assert found == [("vanilla", "plain"), ("neft", None), ("cartl", "both"), ("lwf", None)]


def test_ids_are_the_same_wherever_and_whenever_they_are_planned() -> None:
    plain = planned("[base.transfer]\nk = 4")
    elsewhere = planned(
        '[base.pretrain]\ndevice = "cpu"\nsave_every = "3m"\nlr = 0.2\n'
        '[base.transfer]\nk = "4"\nfreeze_bn = "all"\ndevice = "cuda"',
        "other",
    )
    assert [p.id for p in plain.points] == [p.id for p in elsewhere.points]
    changed = planned("[base.pretrain]\nlr = 0.25\n[base.transfer]\nk = 4")
    assert not {p.id for p in plain.points} & {p.id for p in changed.points}
    another_attack = planned("[base.transfer]\nk = 4\n[base.attack]\npgd_steps = 7")
    same = [a.id == b.id for a, b in zip(plain.points, another_attack.points, strict=True)]
    assert same == [True, True, False]


def test_the_documented_example_is_what_the_page_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sweep.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example is not None
    found = counts(planned(example[1]).points)
    assert found == {"pretrain": 6, "transfer": 9, "attack": 9}
    assert "6 source runs, 9 transfers, 9 attacks" in page
    for name, (sources, targets) in RUNS.items():
        if not name.endswith("-shapes"):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
            assert [cell.strip() for cell in row.split("|")[3:6]] == [
                *(str(targets), str(sources), str(targets))
            ]


def test_ids_do_not_change_by_accident() -> None:
    """A change here makes every finished sweep run again: is it wanted?"""
    assert [p.id for p in planned("").points] == IDS
    for kind in KINDS:
        defaults, added = CONFIGS[kind]().model_dump(), ADDED.get(kind, {}) | {"compile": None}
        assert {name: defaults[name] for name in added} == added
    for setting in ("ema = 0.9", "awp_gamma = 0.01", 'method = "free"\nreplays = 2'):
        assert planned(f"[base.pretrain]\n{setting}").points[0].id != IDS[0]


def test_ids_of_transfers_from_named_runs_do_not_change_by_accident_either() -> None:
    assert point_id("transfer", TransferConfig(source="any"), "0" * 64) == "f2fe5819909b"


IDS = ["02e2a01c6c7a", "28039d09fb20", "d8f3c8eddd0d"]


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    sweep = builtin("figure5")
    path = write_sweep(tmp_path, sweep)
    assert read_sweep(path) == sweep
    content = json.loads(path.read_text())
    for point in content["points"]:  # as before a spec could name a source run
        del point["source_sha256"]
    path.write_text(json.dumps(content))
    assert read_sweep(path) == sweep


def test_a_sweep_from_a_named_source_is_read_as_it_was_written(
    tmp_path: Path, runs_dir: Path
) -> None:
    sweep = planned('[base.transfer]\nsource = "source"', runs_dir=runs_dir)
    assert read_sweep(write_sweep(tmp_path, sweep)) == sweep


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(points=s["points"][1:]), "comes before what it needs"),
        (lambda s: s["points"].append(s["points"][0]), "is there twice"),
        (lambda s: s["points"][0].update(id="../../x"), "points.0.id: String should match"),
        (lambda s: s["points"][0].update(kind="attack"), "config is not that of a attack run"),
        (lambda s: s["points"][0]["config"].update(arch="wrn-3-1"), "wrn-3-1"),
        (lambda s: s["points"][1].update(needs=None), "needs: a transfer point has None"),
        (lambda s: s["points"][1].update(source_sha256="0" * 64), "needs: a transfer point has .+"),
        (
            lambda s: s["points"][2].update(needs=None, source_sha256="0" * 64),
            "source_sha256: a attack point has one",
        ),
        (lambda s: s["points"][1].update(source_sha256="../x"), "source_sha256: String should"),
        (lambda s: s.update(extra=1), "extra: Extra inputs"),
        (lambda s: s.update(schema_version=2), "schema_version"),
        (lambda s: s.update(name="../x"), "name: String should match"),
    ],
)
def test_a_bad_stored_sweep_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = write_sweep(tmp_path, planned("", "mine"))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=message):
        read_sweep(path)


def test_the_size_is_known_without_making_the_grid() -> None:
    spec = Spec.model_validate(
        {
            "seeds": [0, 1],
            "base": {"pretrain": {"k": [2, 3, 4]}},
            "zipped": {"transfer": {"lr": [0.1, 0.2]}},
            "methods": {"a": {}, "b": {"transfer": {"neft_beta": [1.0, 0.5]}}},
        }
    )
    assert size(spec) == len(list(chains(spec))) == 2 * 2 * (3 + 3 * 2)


GRID = "[base.pretrain]\nk = [4, 6]\n"
BAD: list[tuple[str, str | bytes | None, str]] = [
    ("S01-missing", None, "no such file or built-in sweep: 'mine.toml'"),
    ("S01-folder", "/", "is a folder; give a TOML file"),
    ("S02-malformed", "a = 1\nb = [1, =\n", "'mine.toml' is not valid TOML: .*line 2"),
    ("S02-binary", b"\x7fELF\x80\x81", "is no text in UTF-8; save it as UTF-8"),
    ("S02-nested", "a = " + "[" * 5000, "is not valid TOML"),
    ("S05", "seeds = [0]\nseeds = [1]\n", "is not valid TOML: .*line 2"),
    ("S06-key", "bases = 1", "unknown key 'bases'; did you mean 'base'"),
    ("S06-command", "[base.transfr]", "unknown key 'base.transfr'; did you mean 'transfer'"),
    (
        "S06-setting",
        "[base.pretrain]\nfdm_lamda = [1, 2]",
        "base.pretrain.fdm_lamda: unknown setting; did you mean 'fdm_lambda'",
    ),
    (
        "S06-preset",
        '[base]\npreset = "papr"',
        "preset: no preset 'papr'; known: fast-robust, fast-robust-cpu, paper, paper-lwf",
    ),
    ("S07", "[base.transfer]\nneft_beta = []", "base.transfer.neft_beta: an empty list leaves"),
    ("S08", "seeds = [0]\n", "1,000,000,000 combinations, but a sweep has at most 500 runs"),
    (
        "S10",
        "[base.pretrain]\nk = [6, 99]",
        r"pretrain --k: wrn-16-1 has 8 blocks, got 99; use 1 to 8 \(k 99",
    ),
    (
        "S10-transfer",
        '[base.transfer]\nk = [4, 9]\nneft_beta = [1.0, 2.0]\n[base.attack]\nattack = "pdg"',
        r"transfer --neft-beta: must be <= 1, got 2.0 \(k 4, neft_beta 2.0\)",
    ),
    (
        "S10-blocks",
        "[base.pretrain]\nfdm_lambda = 0.1\n[base.transfer]\nk = 9",
        "transfer --k: wrn-16-1 has 8 blocks, got 9; use 1 to 8",
    ),
    ("S28-empty", "seeds = []", "seeds: Tuple should have at least 1 item"),
    ("S28-repeated", "seeds = [0, 1, 0]", "seeds: 0 is there twice"),
    ("S28-setting", "[base.pretrain]\nseed = 3", r"base.pretrain.seed: give seeds = \["),
    ("S36", '[base.attack]\nrun = "001"', "a sweep attacks its own target models; drop it"),
    ("source-number", "[base.transfer]\nsource = 1", "transfer --source: .* valid string, got 1"),
    ("S37-utf-16", "seeds = [0]".encode("utf-16"), "is no text in UTF-8; save it as UTF-8"),
    ("S38-include", 'include = "/etc/passwd"', "unknown key 'include'"),
    ("S38-command", '[base.pretrain]\ndataset = "$(id)"', r"unknown data set '\$\(id\)'"),
    ("S43", "#" * 200_000, "too large: 'mine.toml' has 200,000 bytes, at most 100,000"),
    ("twice", "[base.pretrain]\nk = [4, 6, 4]", "base.pretrain.k: 4 is there twice"),
    (
        "zip-lengths",
        "[zipped.pretrain]\nk = [4, 6]\n[zipped.transfer]\nlr = [0.1, 0.2, 0.3]",
        "lists must have one length, got pretrain.k 2, transfer.lr 3",
    ),
    ("zip-no-list", "[zipped.pretrain]\nk = 4", "zipped.pretrain.k: must be a list"),
    (
        "data",
        '[base.pretrain]\ndataset = "cifar"',
        "unknown data set 'cifar'; did you mean cifar10",
    ),
    ("folder", '[base.transfer]\ndataset = "no/ne"', "no image folder or .zip at 'no/ne'"),
    ("nothing-a-list", "methods = 3", "methods: Input should be"),
]


@pytest.mark.parametrize("way", ["S42-dry-run", "run"])
@pytest.mark.parametrize(("row", "text", "message"), BAD, ids=[row for row, _, _ in BAD])
def test_s42_bad_specs_are_refused_before_anything_is_run(
    cartl: Command, row: str, text: str | bytes | None, message: str, way: str
) -> None:
    if row == "S08":
        keys = ("k", "epochs", "batch_size", "lr", "momentum", "weight_decay")
        tables = [f"[base.pretrain]\n{grid(keys)}", f"[base.transfer]\n{grid(keys[3:])}"]
        text = "\n".join(tables)
    path = Path("mine.toml")
    if text == "/":
        path.mkdir()
    elif text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = cartl("sweep", path, *(["--dry-run"] if way != "run" else []))
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1

    assert re.search(message, done.err), done.err
    assert not Path("runs").exists()


def grid(keys: tuple[str, ...]) -> str:
    return "\n".join(f"{key} = {[n + 1 for n in range(10)]}" for key in keys)


def test_every_wrong_combination_is_told() -> None:
    with pytest.raises(UsageError) as error:
        planned('[base.pretrain]\nk = [6, 77, 99]\narch = ["wrn-16-1", "wrn-10-1"]')
    assert str(error.value).count("blocks, got") == 5
    assert "nothing was run" in str(error.value)


def test_a_grid_of_too_many_runs_is_refused() -> None:
    values = list(range(1, MAX_POINTS // 2 + 2))
    with pytest.raises(UsageError, match="753 runs, but a sweep has at most 500"):
        planned(f"[base.pretrain]\nepochs = {values}")


def test_s09_what_is_the_same_runs_once(cartl: Command) -> None:
    Path("mine.toml").write_text('[methods.a]\n[methods.b.transfer]\nfreeze_bn = "all"')
    done = cartl("sweep", "mine.toml", "--dry-run")
    assert "note: 1 combinations are the same as another and run once" in done.err
    assert "1 source run, 1 transfer, 1 attack" in done.out


@pytest.mark.parametrize("name", ["my sweep.toml", "-x.toml", "a" * 80 + ".toml"])
def test_s13_bad_names_of_sweeps_are_refused(cartl: Command, name: str) -> None:
    Path(name).write_text("")
    done = cartl("sweep", "--dry-run", f"./{name}")
    assert done.code == 2
    assert "is no name of a sweep; use letters" in done.err


# Commands beside sweeps


@pytest.fixture
def sweep_made(cartl: Command, runs_dir: Path) -> Sweep:
    """Here are ``source`` and ``target``, and a sweep's runs, which are newer."""
    shutil.copytree(runs_dir, "runs")
    sweep = planned("")
    write_sweep(Path("runs"), sweep)
    for number, (name, point) in enumerate(zip(("source", "target"), sweep.points, strict=False)):
        shutil.copytree(runs_dir / name, Path("runs") / point.run)
        path = Path("runs") / point.run / "manifest.json"
        content = json.loads(path.read_text()) | {"number": 10 + number}
        path.write_text(json.dumps(content))
    return sweep


@pytest.mark.usefixtures("sweep_made")
def test_a_command_takes_no_run_of_a_sweep_unasked(cartl: Command) -> None:
    shutil.rmtree("runs/target")
    done = cartl("transfer", *TINY_TRANSFER.split(), "--json")
    assert "source: runs/source (the newest finished source run, sweeps aside)" in done.err
    made = json.loads(done.out)
    assert made["source"] == "source"
    shutil.move(made["folder"], "runs/mine")
    pgd = ("--attack", "pgd", "--pgd-steps", 1, "--limit", 5, "--checks", "off", "--json")
    done = cartl("attack", *pgd)
    assert "run: runs/mine (the newest finished run, sweeps aside)" in done.err
    assert json.loads(done.out)["run"] == "mine"


def test_where_only_sweeps_made_runs_one_must_be_named(cartl: Command, sweep_made: Sweep) -> None:
    for name in ("source", "target"):
        shutil.rmtree(Path("runs") / name)
    source, target, _ = (point.run for point in sweep_made.points)
    for command, told in (
        (
            "transfer",
            f"--source: every finished pretrain or import run .*; give --source NAME, .* {source}",
        ),
        (
            "attack",
            f"RUN: every finished pretrain or transfer or import run .*; give RUN NAME, "
            f".* {target}",
        ),
    ):
        done = cartl(command)
        assert done.code == 2
        assert re.search(told, done.err), done.err
    assert cartl("transfer", "--source", source, *TINY_TRANSFER.split()).code == 0


def test_the_runs_of_sweeps_are_those_of_older_plans_too(tmp_path: Path) -> None:
    older, now = planned("[base.transfer]\nlr = 0.3"), planned("")
    write_sweep(tmp_path, now)
    (tmp_path / "sweeps" / "damaged.json").write_text("{")
    logs = tmp_path / "sweeps" / "mine"
    logs.mkdir()
    for point in older.points:
        write_settings(logs, point)
    assert sweep_runs(tmp_path) == {point.run for point in (*older.points, *now.points)}
    assert sweep_runs(tmp_path / "none") == set()


def test_no_spec_and_a_mistyped_one_are_told_what_there_is(cartl: Command) -> None:
    assert "--list shows those" in cartl("sweep").err
    done = cartl("sweep", "tabel2")
    assert done.code == 2
    assert "no such file or built-in sweep: 'tabel2'; did you mean 'table2'?" in done.err


def test_s23_jobs_are_at_least_one(cartl: Command) -> None:
    done = cartl("sweep", "table2", "--jobs", 0)
    assert done.code == 2
    assert "--jobs: must be >= 1" in done.err


@pytest.mark.parametrize(("columns", "lines"), [(24, 5), (60, 12), (80, 24), (120, 60)])
def test_a_sweep_fits_the_screen_and_shows_what_runs(columns: int, lines: int) -> None:
    sweep = builtin("table2")
    running, failed = sweep.points[20], sweep.points[40]
    states = {point.id: State("waiting") for point in sweep.points}
    states |= {failed.id: State("failed", "why"), running.id: State("running")}
    states |= {point.id: State("done", "", 0.5, 0.25) for point in sweep.points[:6]}
    shown = drawn(live_table(sweep, states, 3723.0, lines), columns).splitlines()
    assert len(shown) < lines
    assert max(map(len, shown)) <= columns
    assert shown[0].startswith(f"running  {running.run[:10]}")
    assert shown[-1].startswith("1:02:03 left")
    if columns >= 80:
        assert f"6 done, 1 running, 1 failed, {len(sweep.points) - 8} waiting" in shown[-1]
        assert f"{len(sweep.points) - len(shown) + 1} not shown" in shown[-1] or lines == 60
        assert shown[1].startswith(f"failed   {failed.run}")
        assert "50.0 %, 25.0 %" in shown[2]
    console = Console(width=120, record=True, file=io.StringIO())
    print_fitted(table(sweep, states), console)
    assert all(point.run in console.export_text(clear=False) for point in sweep.points)


def drawn(shown: RenderableType, columns: int) -> str:
    """What a terminal of so many columns shows."""
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_the_time_left_of_a_sweep_follows_what_its_runs_took() -> None:
    """Two sources of 10 s, a transfer of 4 s, two at a time; attacks as the mean of all, 8 s."""
    sweep = builtin("table4-shapes")
    kinds = {kind: [p for p in sweep.points if p.kind == kind] for kind in CONFIGS}
    states = {point.id: State("waiting") for point in sweep.points}
    clock = Clock()
    assert clock.left(sweep, states, 0.0) is None

    def note(point: Point, state: State, now: float) -> None:
        clock.note(point, state, now)
        states[point.id] = state

    for point in kinds["pretrain"]:
        note(point, State("running"), 0.0)
    for point in kinds["pretrain"]:
        note(point, State("done"), 10.0)
    first, second, third = kinds["transfer"]
    note(first, State("running"), 10.0)
    note(second, State("running"), 10.0)
    note(first, State("done"), 14.0)
    note(kinds["attack"][0], State("running"), 14.0)
    ahead = (4 - 4) + 4 + (8 - 1) + 2 * 8
    assert clock.left(sweep, states, 15.0) == pytest.approx(ahead / 2)
    assert states[third.id].status == "waiting"
