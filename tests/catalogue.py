"""The catalogue of bad input: its rows, those that cannot be given, and those that tests cover.

A row is C (command line and environment), R (runs and checkpoints), D (data), T (training),
X (transfer), A (attack), S (sweep) or Z (report). A test covers the rows that its function name
lists, ``test_c16_c17_…``, and the row that its parametrize id begins with, ``C01-pretrain``.
"""

import re
from collections.abc import Iterable

SECTIONS = {"C": 64, "R": 43, "D": 44, "T": 40, "X": 26, "A": 41, "S": 44, "Z": 42}
ROWS = [f"{section}{row:02d}" for section, count in SECTIONS.items() for row in range(1, count + 1)]

INAPPLICABLE = {
    "C21": "there is no --deterministic flag",
    "C22": "there are no data workers: images are resident in memory",
    "C23": "there are no data workers: images are resident in memory",
    "C24": "there are no data workers: images are resident in memory",
    "C52": "no CARTL_* variable is a setting",
    "D34": "normalization is measured on the training images; it is no setting",
    "D36": "all images are read before the first step and stay in memory",
    "T14": "there is no fp16 and no loss scale",
    "T15": "bfloat16 runs on every device, emulated where it is not native",
    "T35": "one process on one device",
    "T36": "one process on one device",
    "T38": "the log is a file of the run folder; there is no TensorBoard",
    "T39": "there is no limit of steps",
    "X12": "one power iteration a step; it is no setting",
    "X14": "normalization is the model's first layer; it is no setting",
    "X18": "blocks are frozen by k alone, there is no range",
    "X24": "a source run is a pretrain run, so that there is no chain",
    "X25": "a run has one model; there is no checkpoint to choose",
    "A14": "targets are the nine most likely wrong classes; there is no flag",
    "A31": "no transfer attack from a surrogate yet",
    "A32": "there is no limit of time",
    "A35": "an attack takes all classes of its run",
    "A36": "one seed, not a list",
    "Z34": "there are no templates",
    "Z35": "nothing asks for the locale: numbers are formatted by Python alone",
    "Z42": "there is no title or caption to give",
    "A39": "verdicts are float32 from the start; there is no second look",
    "S03": "specs are TOML; there are no tags",
    "S04": "specs are TOML; its types are not guessed",
    "S11": "run folders are named by the ids of their points; there is no template",
    "S12": "run folders are named by the ids of their points",
    "S15": "what fails takes its dependents along, the others are tried",
    "S22": "there is no limit of time: how long an honest training takes is unknown",
    "S24": "each run finds its own device, see the rows of C",
    "S25": "each run checks the disk before it begins",
    "S26": "no clock is used: a run is alive while its lock is held",
    "S33": "source run, transfer, attack: the order is fixed",
    "S35": "there is no limit of time",
    "S39": "a run under way holds no file of the sweep's open",
}


def rows_of(test: str) -> set[str]:
    """The rows that a test covers, by its node id."""
    function, _, parameter = test.rpartition("::")[2].partition("[")
    named = re.findall(r"_([crdtxasz]\d\d)(?=_|$)", function)
    return {row.upper() for row in [*named, *re.findall(r"^([CRDTXASZ]\d\d)\b", parameter)]}


def coverage(passed: Iterable[str]) -> str:
    """One line on what the passed tests, given by node ids, cover of the catalogue."""
    applicable = [row for row in ROWS if row not in INAPPLICABLE]
    covered = set().union(*map(rows_of, passed))
    missing = [row for row in applicable if row not in covered]
    shown = f" (missing: {' '.join(missing)})" if missing else ""
    return (
        f"bad-input catalogue: {len(applicable) - len(missing)} of {len(applicable)} applicable "
        f"rows covered{shown}; {len(INAPPLICABLE)} rows do not apply, see tests/catalogue.py"
    )
