"""The numbers of the paper's tables, and those of a report beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.config import SETTINGS
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.registry.transfer_methods import symbols
from cartl_cli.core.reports.rows import Row

TableName = Literal["table1", "table2", "table3", "table4"]
Accuracy = Annotated[float, Field(ge=0, le=1)]


class PublishedRow(BaseModel):
    """A line of a table. Accuracies are fractions; what the paper leaves open there is None."""

    model_config = SETTINGS

    table: TableName
    source_data: str
    target_data: str
    arch: str | None = None
    method: str
    k: Annotated[int, Field(ge=1)] | None = None
    freeze_bn: FreezeBatchNorm | None = None
    fdm_lambda: float | None = None
    neft_beta: float | None = None
    clean: Accuracy
    robust: Accuracy


class Paper(BaseModel):
    """What the paper published, and under which attack; numbers of images by data set."""

    model_config = SETTINGS

    source: str
    attack: str
    norm: str
    eps: float
    pgd_steps: int
    restarts: int
    train_images: dict[str, int]
    test_images: dict[str, int]
    rows: tuple[PublishedRow, ...]


@dataclass(frozen=True)
class Beside:
    """A published line, a row of ours that repeats it (None: not run), and where they differ."""

    published: PublishedRow
    ours: Row | None
    differs: tuple[str, ...]


def read_paper() -> Paper:
    """The published numbers that come with the package."""
    file = resources.files("cartl_cli") / "data" / "paper.json"
    return Paper.model_validate_json(file.read_text(encoding="utf-8"))


def beside_paper(rows: Sequence[Row], table: TableName | None) -> list[Beside]:
    """Every line of a table and our rows of the same scenario, method, k, λ, β and batch norm.

    Without a table: every published line that has such a row.
    """
    paper, found = read_paper(), []
    for published in paper.rows:
        if table in (None, published.table):
            ours = [row for row in rows if _repeats(row, published)]
            found += [Beside(published, row, _differs(row, published, paper)) for row in ours]
            if table is not None and not ours:
                found.append(Beside(published, None, ()))
    return found


def _repeats(row: Row, published: PublishedRow) -> bool:
    setting = row.setting
    same = (setting.source_data, setting.target_data, setting.method) == (
        published.source_data,
        published.target_data,
        published.method,
    )
    stated = [published.k in (None, setting.k)]
    stated += [getattr(published, name, None) in (None, setting.number(name)) for name in symbols()]
    stated.append(published.freeze_bn in (None, setting.freeze_bn))
    return same and all(stated) and row.conditions.data == published.target_data


def _differs(row: Row, published: PublishedRow, paper: Paper) -> tuple[str, ...]:
    """Each setting of ours that is not the paper's, in words."""
    setting, ours = row.setting, row.conditions
    classes = dict(setting.others)["classes"]
    attack = next((name for name in ours.attacks if name == paper.attack), ours.attacks[0])
    pairs: tuple[tuple[str, str], ...] = (
        (setting.arch, published.arch or setting.arch),
        (f"classes {classes}" if classes else "all classes", "all classes"),
        (f"{ours.measured} images", "test images"),
        (f"n = {ours.n}", f"n = {paper.test_images[published.target_data]}"),
        (f"fraction {setting.fraction:g}", "fraction 1"),
        (attack, paper.attack),
        (ours.norm, paper.norm),
        (f"eps {shown_pixels(row.eps)}", f"eps {shown_pixels(paper.eps)}"),
        (f"{ours.pgd_steps} steps", f"{paper.pgd_steps} steps"),
        (f"{ours.restarts} restarts", f"{paper.restarts} restarts"),
    )
    for run in row.results[0].trainings:
        data, part = run.manifest.data, getattr(run.making, "fraction", 1)
        theirs = round(part * paper.train_images[data.name])
        if data.train_images != theirs:
            pairs += ((f"{data.train_images:,} training images of {data.name}", f"{theirs:,}"),)
    differing = [f"{mine}, paper {theirs}" for mine, theirs in pairs if mine != theirs]
    untold = [
        f"{symbol} {mine:g}, not told in the table"
        for name, symbol in symbols().items()
        if (mine := setting.number(name) or None) and getattr(published, name, None) is None
    ]
    return (*differing, *untold)
