"""A stranger's runs and data execute nothing, and what we publish leaks nothing."""

import ast
import json
import os
import pwd
import re
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from cartl_cli.app import main
from cartl_cli.core.runs.reader import read_run, remarks
from cartl_cli.core.storage import FileRecord
from cartl_cli.display.terminal import printable
from tests import tiny
from tests.conftest import Command, ImageFolder
from tests.fuzzing import FIRST_RELEASE
from tests.test_fuzzing import fuzzed

ROOT = Path(__file__).parent.parent
STORAGE = "cartl_cli/core/storage.py"


# Code: what it never does

Finding = tuple[str, str]
"""File and expression."""


def findings(folders: tuple[str, ...], names: Callable[[ast.AST], str | None]) -> set[Finding]:
    """What ``names`` finds in the code of some folders, by file."""
    return {
        (str(path.relative_to(ROOT)), found)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (found := names(node)) is not None
    }


def dotted(node: ast.AST) -> str:
    """``torch.load`` of the expression; an inner expression that is no name is ``?``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imported(node: ast.AST) -> Iterator[str]:
    """``torch.load`` for ``from torch import load``; ``pickle`` for ``import pickle``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


UNSAFE_MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("yaml", "ruamel", "jsonpickle"),
}
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"),
    *("torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
}
UNSAFE_OPTIONS = {"shell", "allow_pickle"}


def unsafe(node: ast.AST) -> str | None:
    for name in imported(node):
        if name.partition(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
            return name
    if isinstance(node, ast.Call):
        if dotted(node.func) in UNSAFE_CALLS and not reads_weights_alone(node):
            return dotted(node.func)
        for keyword in node.keywords:
            if keyword.arg in UNSAFE_OPTIONS:
                return keyword.arg
    return None


def reads_weights_alone(call: ast.Call) -> bool:
    """Whether it is ``torch.load(…, weights_only=True)``, which runs nothing of a file."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    alone = given.get("weights_only")
    only = isinstance(alone, ast.Constant) and alone.value is True
    return dotted(call.func) == "torch.load" and only and "pickle_module" not in given


def test_no_file_is_executed_or_unpickled() -> None:
    assert findings(("cartl_cli", "benchmarks"), unsafe) == set()


CHANGING_METHODS = {
    *("write_text", "write_bytes", "mkdir", "touch", "unlink", "rename", "rmdir", "chmod"),
    *("symlink_to", "hardlink_to", "savefig", "save", "tofile", "extract", "extractall"),
}
CHANGING_MODULES = {"shutil", "tempfile"}
HARMLESS_OS = {
    *("os._exit", "os.cpu_count", "os.environ.get", "os.fsencode", "os.getpid", "os.kill"),
    *("os.lstat", "os.scandir", "os.sched_getaffinity", "os.stat", "os.walk"),
}


def changing(node: ast.AST) -> str | None:
    """A call that changes a file, as far as its name tells."""
    for name in imported(node):
        if name.partition(".")[0] in CHANGING_MODULES or name.endswith(".save_file"):
            return name
    if not isinstance(node, ast.Call):
        return None
    name = dotted(node.func)
    owner, _, method = name.rpartition(".")
    if owner == "os" and name not in HARMLESS_OS:
        return name
    # the replace of a path takes one argument, that of a text two
    changes = method in CHANGING_METHODS or (method == "replace" and len(node.args) == 1)
    return name if (owner and changes) or writes(node) else None


def writes(call: ast.Call) -> bool:
    """Whether an argument is a mode of ``open`` that writes."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [str(value.value) for value in given if isinstance(value, ast.Constant)]
    opens = dotted(call.func).endswith(("open", "File"))
    return opens and any(re.fullmatch(r"(?=.*[wxa+])[rwxabt+]{1,3}", text) for text in texts)


MAY_CHANGE = {
    # the null device
    "cartl_cli/display/streams.py": {
        *("os.open", "os.dup2", "os.close", "os.fstat", "os.set_inheritable", "open")
    },
    "cartl_cli/core/exports/graphs.py": {"torch.export.save"},  # into memory
    "cartl_cli/core/runtime/stopping.py": {"os.write"},  # to stderr, from within a signal handler
    "cartl_cli/core/sweeps/executor.py": {"os.close"},  # of a log that storage has opened
    "cartl_cli/core/evaluation/saved_images.py": {"?.save"},  # a picture, into memory
    "cartl_cli/display/attack_plots.py": {"figure.savefig"},  # into memory
}


def test_only_the_storage_module_changes_files() -> None:
    found = findings(("cartl_cli",), changing)
    storage = {name for file, name in found if file == STORAGE}
    assert storage >= {"os.rename", "os.mkdir", "os.unlink", "os.fsync"}
    elsewhere = {finding for finding in found if finding[0] != STORAGE}
    assert elsewhere == {(file, name) for file, names in MAY_CHANGE.items() for name in names}


UNSAFE_CODE = [
    *("import pickle", "from torch import load", "eval('1')", "torch.load(f)", "import yaml.x"),
    *("run(c, shell=True)", "np.load(f, allow_pickle=True)", "os.system(c)", "from dill import x"),
    *("torch.load(f, weights_only=False)", "torch.load(f, weights_only=only)"),
    *(
        "torch.load(f, weights_only=True, pickle_module=dill)",
        "torch.jit.load(f, weights_only=True)",
    ),
]
CHANGING_CODE = [
    *("open(p, 'w')", "open(p, mode='ab')", "p.open('r+')", "p.unlink()", "p.replace(q)"),
    *("os.remove(p)", "import shutil", "Path(p).write_text(t)", "ZipFile(p, 'a')"),
    *("from safetensors.torch import save_file", "(a / b).touch()"),
]


@pytest.mark.parametrize(
    ("search", "code"),
    [*((unsafe, code) for code in UNSAFE_CODE), *((changing, code) for code in CHANGING_CODE)],
)
def test_the_searches_find_what_they_are_for(
    search: Callable[[ast.AST], str | None], code: str
) -> None:
    assert any(search(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["open(p)", "open(p, 'rb')", "t.replace('a', 'w')", "os.walk(p)", "save(x)"]
)
def test_reading_is_no_change(code: str) -> None:
    assert not any(changing(node) for node in ast.walk(ast.parse(code)))


def test_reading_weights_alone_is_safe() -> None:
    code = "torch.load(f, map_location='cpu', weights_only=True, mmap=fast)"
    assert not any(unsafe(node) for node in ast.walk(ast.parse(code)))


# Terminal: what reaches it

ODD_NAME = "odd\x1b[31m\x07\r\ninjected\u202e\u2066[red][bold]\x9b"
HOSTILE = ODD_NAME + "[/oops]\x00\u2028\U000e0001"
LONE = HOSTILE + "\ud83d"  # half a surrogate pair


def assert_harmless(text: str) -> None:
    raw = {character for character in text if character != "\n" and not character.isprintable()}
    assert raw == set()
    assert "\ninjected" not in text


def hostile_images(folder: Path) -> Path:
    for split in ("train", "test"):
        for label in ("cat" + ODD_NAME, "dog" + ODD_NAME):
            place = folder / split / label
            place.mkdir(parents=True)
            for shade in range(4):
                Image.new("L", (28, 28), 40 * shade).save(place / f"{shade}{ODD_NAME}.png")
    return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


@pytest.fixture
def hostile_source(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / ODD_NAME
    shutil.copytree(FIRST_RELEASE / "source", folder)
    edit_manifest(
        folder,
        data={"name": HOSTILE, "measured": HOSTILE, "notes": [HOSTILE]},
        versions={"cartl": HOSTILE, "torch": HOSTILE, HOSTILE: HOSTILE},
        created=HOSTILE,
    )
    return folder


def test_printable_leaves_nothing_that_acts() -> None:
    assert_harmless(printable(LONE))
    assert printable("größe 日本語 [red]") == "größe 日本語 [red]"
    assert len(printable("x" * 1_000_000)) < 3_000


def test_c36_a_hostile_run_and_data_set_are_shown_as_escapes(
    cartl: Command, hostile_source: Path, tmp_path: Path
) -> None:
    images = hostile_images(tmp_path / ("images" + ODD_NAME))
    done = cartl(
        *("transfer", "--source", hostile_source, "--dataset", images, "--epochs", 1),
        *("--batch-size", 4, "--neft-beta", 0.4, "--name", "target"),
    )
    assert done.code == 0, done.err
    assert r"odd\x1b[31m\x07" in done.err
    assert "[red][bold]" in done.out
    assert_harmless(done.out + done.err)

    target = tmp_path / "runs" / "target"
    edit_manifest(
        target,
        source={"run": HOSTILE},
        data={"name": HOSTILE, "measured": HOSTILE, "notes": [HOSTILE]},
        versions={"cartl": HOSTILE, "torch": HOSTILE},
    )
    again = cartl("transfer", "--resume", "target")  # already complete: tables of the manifest
    assert "[/oops]" in again.out
    small = ("--pgd-steps", 1, "--limit", 4)
    attacked = [
        cartl("attack", "target", *small),
        cartl("attack", "target", *small, "--force", "--json"),
        cartl("attack", hostile_source, *small),
    ]
    for done in (again, *attacked):
        assert done.code == 0, done.err
        assert_harmless(done.out + done.err)


def refusals(run: Path, images: Path) -> dict[str, tuple[object, ...]]:
    """Commands whose errors name foreign text."""
    return {
        "class": ("pretrain", "--dataset", images, "--classes", HOSTILE),
        "data": ("pretrain", "--dataset", HOSTILE),
        "run": ("attack", HOSTILE),
        "flag": ("attack", f"--{ODD_NAME}"),
        "command": (ODD_NAME,),
        "name": ("pretrain", "--name", HOSTILE),
        "other classes": ("attack", run, "--dataset", images),
        "taken": ("transfer", "--source", run, "--resume", run),
    }


@pytest.mark.parametrize("case", refusals(Path(), Path()))
def test_c36_refusals_of_foreign_text_are_escaped(
    cartl: Command, hostile_source: Path, tmp_path: Path, case: str
) -> None:
    images = hostile_images(tmp_path / ("images" + ODD_NAME))
    done = cartl(*refusals(hostile_source, images)[case])
    assert done.code in (1, 2)
    assert done.err.count("cartl: error: ") == 1
    assert_harmless(done.out + done.err)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"arch": LONE}},
        {"weights": {"name": HOSTILE}},
        {"weights": {"name": "../" + HOSTILE}},
        {"status": HOSTILE},
        {"config": {HOSTILE: 1}},
        {"results": {"spectral_norms": {HOSTILE: 1.0}}},
    ],
)
def test_c36_a_refused_manifest_is_told_in_escapes(
    cartl: Command, hostile_source: Path, changes: dict[str, Any]
) -> None:
    edit_manifest(hostile_source, **changes)
    done = cartl("attack", hostile_source)
    assert done.code == 1
    assert done.err.count("cartl: error: ") == 1
    assert_harmless(done.out + done.err)


# Secrets: what is published

CANARY = "canary-5f3a91"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
    "WANDB_API_KEY": f"{CANARY}-wandb",
    "HF_TOKEN": f"{CANARY}-hf",
    "USER": f"{CANARY}-user",
    "LOGNAME": f"{CANARY}-user",
    "HOSTNAME": f"{CANARY}-host",
}


def test_nothing_secret_is_written_or_said(
    cartl: Command, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / f"home-of-{CANARY}"
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / ".git").mkdir()
    remote = f'[remote "origin"]\n\turl = https://me:{CANARY}@example.org/x.git\n'
    (tmp_path / ".git" / "config").write_text(remote)
    images = shutil.move(image_folder(), home / "images")
    small = ("--epochs", 1, "--batch-size", 4)

    said = [
        cartl(
            *("pretrain", "--dataset", images, *small, "--arch", "wrn-10-1", "--k", 2),
            *("--pgd-steps", 1, "--name", "source"),
        )
    ]
    kept = shutil.copytree(tmp_path / "runs" / "source", home / "kept" / "source")
    said += [
        cartl("transfer", "--source", kept, "--dataset", images, *small, "--name", "target"),
        cartl("attack", "target", "--pgd-steps", 1, "--limit", 4, "--name", "attack"),
        cartl("attack", kept, "--pgd-steps", 1, "--limit", 4, "--json"),
    ]
    assert [done.code for done in said] == [0, 0, 0, 0], said
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    published = [path.read_bytes() for path in written]
    published += [str(path.relative_to(tmp_path)).encode() for path in written]
    published += [(done.out + done.err).encode() for done in said]

    system = {socket.gethostname(), pwd.getpwuid(os.getuid()).pw_name}
    secrets = {CANARY, str(home), *(name for name in system if len(name) > 4)}
    for secret in secrets:
        assert not any(secret.encode() in text for text in published), secret
    manifests = [path for path in written if path.name == "manifest.json"]
    configs = [json.loads(path.read_text())["config"] for path in manifests]
    assert "~/images" in {config.get("dataset") for config in configs}
    assert "~/kept/source" in {config.get("source") for config in configs}


# Links: planted in a run folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished tiny run ``runs/pretrain``, beside its images."""
    place = tmp_path_factory.mktemp("links")
    tiny.make_images(place / "images")
    (place / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "work")
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr(sys, "argv", ["cartl", *tiny.command("pretrain")])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert exit_.value.code == 0
    return place


@pytest.fixture
def finished(
    trained: Path, cartl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the finished run; its parent's parent is the working folder."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy" / "work")
    return tmp_path / "copy" / "work" / "runs" / "pretrain"


@pytest.fixture
def interrupted(finished: Path) -> Path:
    """The same run as it was one step before its end, with a single checkpoint."""
    edit_manifest(finished, status="interrupted", weights=None, results=None)
    shutil.rmtree(finished / f"ckpt-{tiny.STEPS:06d}")
    (finished / "model.safetensors").unlink()
    assert [path.name for path in finished.glob("ckpt-*")] == [f"ckpt-{tiny.STEPS - 1:06d}"]
    return finished


def plant(path: Path, outside: Path) -> None:
    """Put what lies at ``path``, or some treasure, elsewhere and a link to it in its place."""
    outside.mkdir()
    target = outside / path.name
    if path.exists():
        path.rename(target)
    else:
        target.write_bytes(b"treasure")
    path.symlink_to(target)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("command", ["transfer", "attack"])
def test_c56_a_link_is_not_read(
    cartl: Command, finished: Path, tmp_path: Path, name: str, command: str
) -> None:
    outside = tmp_path / "outside"
    plant(finished / name, outside)
    before = contents(outside)
    source = ("--source", finished) if command == "transfer" else (finished,)
    done = cartl(command, *source)
    assert done.code == 1
    assert f"is a link, refusing to follow it: {finished / name}" in done.err
    assert contents(outside) == before
    assert (finished / name).is_symlink()


LAST = f"ckpt-{tiny.STEPS - 1:06d}"
PLANTED = [
    *("manifest.json", "model.safetensors", "metrics.jsonl", ".lock"),
    *(LAST, f"{LAST}/checkpoint.json", f"{LAST}/model.safetensors", f"{LAST}/train.safetensors"),
]


@pytest.mark.parametrize("name", PLANTED)
def test_c56_a_run_does_not_go_on_through_a_link(
    cartl: Command, interrupted: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    plant(interrupted / name, outside)
    before = contents(outside)
    done = cartl("pretrain", "--resume", "pretrain")
    assert done.code == 1
    assert "link" in done.err.splitlines()[-1]
    assert Path(name).name in done.err.splitlines()[-1]
    assert contents(outside) == before
    assert (interrupted / name).is_symlink()


def test_c56_a_linked_checkpoint_is_passed_over_and_never_replaced(
    cartl: Command, finished: Path, tmp_path: Path
) -> None:
    edit_manifest(finished, status="interrupted", weights=None, results=None)
    plant(finished / f"ckpt-{tiny.STEPS:06d}", tmp_path / "outside")
    before = contents(tmp_path / "outside")
    done = cartl("pretrain", "--resume", "pretrain")
    assert done.code == 1
    assert f"ckpt-{tiny.STEPS:06d} is damaged (a link, refusing to follow it" in done.err
    assert f"going on from step {tiny.STEPS - 1}" in done.err
    assert "refusing to follow the link" in done.err.splitlines()[-1]
    assert contents(tmp_path / "outside") == before


def test_a_lock_that_is_a_pipe_blocks_nobody(cartl: Command, finished: Path) -> None:
    (finished / ".lock").unlink()
    os.mkfifo(finished / ".lock")
    done = cartl("pretrain", "--name", "pretrain")
    assert done.code == 2
    assert "already holds a run, completed" in done.err


# Folders and names


def test_a_run_folder_that_all_may_write_gives_a_warning(finished: Path) -> None:
    assert remarks(read_run(finished)) == []
    finished.chmod(0o777)
    warning = f"warning: every user of this machine may write {finished}"
    assert remarks(read_run(finished)) == [warning]


def is_bare(name: str) -> bool:
    """Letters, digits, ``.``, ``_``, ``-``; no dot or dash in front; at most 100."""
    spelled = name.isascii() and re.sub(r"[._-]", "0", name).isalnum()
    return spelled and len(name) <= 100 and name[0] not in ".-"


paths = st.lists(
    st.sampled_from(("a", ".", "..", "/", "\\", "\0", "\n", "~", "-", "_", " ", "é", "x" * 60)),
    max_size=6,
).map("".join)


@fuzzed
@given(name=st.one_of(st.text(max_size=120), paths))
@example("../x")
@example("/etc/passwd")
@example("a\0b")
@example("a\n")
@example(".hidden")
@example("x" * 100)
@example("x" * 101)
def test_a_record_names_a_bare_file_or_nothing(name: str) -> None:
    try:
        FileRecord(name=name, size=0, sha256="0" * 64)
    except ValidationError:
        assert not is_bare(name)
    else:
        assert is_bare(name)
