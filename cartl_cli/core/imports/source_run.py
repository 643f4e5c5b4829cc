"""``cartl import``: a checkpoint from elsewhere becomes a source run, and is looked at."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from cartl_cli.core.config import ImportConfig
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.data.data_sets import DataChoice, described, in_order, load_data_set
from cartl_cli.core.data.split import DataSet, Split, stratified
from cartl_cli.core.errors import DataError, StoppedError, UsageError
from cartl_cli.core.evaluation.any_model import outputs
from cartl_cli.core.evaluation.diagnosis import moved_by_pgd
from cartl_cli.core.evaluation.verdicts import Plan, clean_correct, robustness, share, unattacked
from cartl_cli.core.imports.checkpoint_files import Checkpoint, read_checkpoint
from cartl_cli.core.imports.matching import MEAN, guess_classes, match
from cartl_cli.core.imports.published import obtained
from cartl_cli.core.imports.told import Told, completed
from cartl_cli.core.imports.unwrapping import Normalization
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel, make_convex
from cartl_cli.core.models.own_network import digest_of
from cartl_cli.core.models.whole import Whole, laid_out
from cartl_cli.core.registry.architectures import build_model, own_network, parse_architecture
from cartl_cli.core.runs import writer
from cartl_cli.core.runs.manifest import Manifest, ModelSpec, Original, Run, data_record
from cartl_cli.core.runs.reader import same_runs
from cartl_cli.core.runs.results import ImportResults
from cartl_cli.core.runs.weights import DTYPES, to_bytes
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import (
    autocast_for,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    versions,
)
from cartl_cli.core.runtime.randomness import seeded
from cartl_cli.core.runtime.stopping import stop_signals
from cartl_cli.core.statistics import chance

USUAL = {
    "ImageNet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": Normalization((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "-1 to 1": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""What networks are most often given, for one that comes without."""
BETTER = 0.1  # of the images right with another normalization, and more than without: told
MOVED = 32  # images of a look at how far features are moved
SAME = 1e-3  # of spectral norms, what rounding makes of equal ones
FEW_LEFT = 0.1  # of the images that are right when clean: a source with fewer is not robust


@dataclass(frozen=True)
class Import:
    """A model that was read, and what its run is to say of it; ``data`` are to measure it on.

    ``normalized``: it is known what it takes off its images.
    """

    config: ImportConfig
    model: BlockModel
    draft: Manifest
    data: DataSet | None
    device: torch.device
    normalized: bool


def import_model(config: ImportConfig, session: Session, report: Callable[[int, int], None]) -> Run:
    """The checkpoint as a finished run of kind ``import``, measured on the images of ``dataset``.

    What stands beside it fills in what the settings leave open. ``report`` gets images attacked, of
    how many. Raises UsageError or DataError before anything is written: for a file that is no
    checkpoint or does not fit the network, name by name.
    """
    began = time.monotonic()
    new = _read(config, session)
    config = new.config
    with _begun(new, session) as run, stop_signals() as asked:
        results = ImportResults(seconds=time.monotonic() - began)
        if new.data is not None:
            split = measured(config, new.data).to(new.device)

            def attacked(done: int) -> None:
                if asked.signal is not None:
                    raise StoppedError("interrupted; import it again", asked.signal)
                report(done, len(split))

            results = look_at(config, new.model, split, attacked)
            for line in judged(config, new.model, split, results, new.normalized):
                session.say(line)
        else:
            session.say(
                "note: it was not measured here; cartl import with --dataset, images like its own, "
                "does that"
            )
        results = results.model_copy(update={"seconds": time.monotonic() - began})
        return writer.finish_model(run, new.model, results)


def imported(config: ImportConfig, session: Session) -> tuple[Run, bool]:
    """The same without measuring, and whether it is new: one that was imported before is taken.

    Raises like ``import_model``.
    """
    began = time.monotonic()
    new = _read(config, session)
    digest = hashlib.sha256(to_bytes(new.model.state_dict())).hexdigest()
    for run in same_runs(session.runs_dir, new.draft):
        weights = run.manifest.weights
        if run.manifest.original == new.draft.original and weights and weights.sha256 == digest:
            return run, False
    with _begun(new, session) as run:
        results = ImportResults(seconds=time.monotonic() - began)
        return writer.finish_model(run, new.model, results), True


def _begun(new: Import, session: Session) -> AbstractContextManager[Run]:
    """The run of a model that was read."""
    state = new.model.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return writer.written(session, new.draft, size)


def _read(config: ImportConfig, session: Session) -> Import:
    """The model, and the run that is to be. Raises UsageError or DataError."""
    device = resolve_device(config.device)
    keep_freed_memory()
    writer.check_place(session)
    told = Told()
    data: DataSet | None
    if config.whole:
        data = images_of(config, session)
        classes = classes_of(config, told, len(data.classes if data else config.classes), data)
        model, original = whole_network(config, classes, session)
        normalized, normalization = True, "its own"
    else:
        path, told = obtained(config.checkpoint, session.place.store)
        config = completed(config, told)
        checkpoint = read_checkpoint(path, config.member)
        check_told(path, checkpoint, told)
        found = checkpoint.normalization or told.normalization
        checkpoint = replace(checkpoint, normalization=found)
        outputs = guess_classes(checkpoint.tensors)
        data = images_of(config, session)
        check_outputs(data, outputs)
        classes = classes_of(config, told, outputs, data)
        model, remarks = fitted(config, checkpoint, told, len(classes))
        claim = [f"its maker measured {told.claim}"] if told.claim else []
        original = original_of(path, checkpoint, (*checkpoint.remarks, *remarks, *claim))
        known = (config.mean, found, checkpoint.tensors.get(MEAN))
        normalized = any(one is not None for one in known)
        mean, std = (_listed(part) for part in (model.normalize.mean, model.normalize.std))
        normalization = f"mean {mean}, std {std}"
    if data is not None and classes == data.classes and not config.classes:
        session.say(f"its outputs are taken for the classes of {data.name}, in their order")
    if data is not None:
        data = in_order(data, classes)
    for remark in original.remarks:
        session.say(remark)
    session.say(f"normalization: {normalization}")
    session.say(f"images become: {config.preprocessing.shown}")
    draft = Manifest(
        kind="import",
        config=config,
        k=min(config.k, len(model.blocks)),
        model=ModelSpec(
            arch=config.arch,
            classes=classes,
            preprocessing=config.preprocessing,
            convex_blocks=told.convex_blocks,
        ),
        data=data_record(data or nothing(classes, config.preprocessing), ()),
        original=original,
        versions=versions(device, resolve_precision(config.precision, device), 1, False),
    )
    return Import(config, laid_out(model.to(device)), draft, data, device, normalized)


def whole_network(
    config: ImportConfig, classes: tuple[str, ...], session: Session
) -> tuple[BlockModel, Original]:
    """The network of a file as it is, with the weights of the checkpoint if one is named.

    Without, its own are drawn by the seed where its code draws any. Raises UsageError for a network
    that does not tell these classes apart, and DataError for weights that do not fit.
    """
    found = own_network(config.arch)
    assert found is not None  # or there would be no such architecture
    path, function = Path(found[0]).expanduser(), found[1]
    with seeded(config.seed, "network"):
        model: BlockModel = build_model(config.arch, len(classes)).float().eval()
    remarks = [f"its network is {function} of {path.name}, sha256 {digest_of(found[0])}"]
    original = Original(
        file=path.name,
        size=path.stat().st_size,
        sha256=digest_of(found[0]),
        remarks=(*remarks, "its weights are those that this file gives it"),
    )
    if config.checkpoint:
        network = cast(Whole, model.blocks[0]).network
        file, _ = obtained(config.checkpoint, session.place.store)
        checkpoint = read_checkpoint(file, config.member, apart=False)
        matched = match(checkpoint.tensors, network.state_dict(), first_layer=False)
        network.load_state_dict(matched.tensors)
        said = (*checkpoint.remarks, *matched.remarks, *remarks)
        original = original_of(file, checkpoint, said)
    for name, tensor in model.state_dict().items():
        if tensor.dtype not in DTYPES:
            raise DataError(f"its tensor {name} is {tensor.dtype}, which a run does not keep")
    side = config.preprocessing.image_size
    count = outputs(model.blocks[0], torch.full((1, 3, side, side), 0.5))
    if count != len(classes):
        raise UsageError(
            f"the network has {count} outputs, the data {len(classes)} classes; name images of its "
            "own classes"
        )
    return model, original


def original_of(file: Path, checkpoint: Checkpoint, remarks: tuple[str, ...]) -> Original:
    """What the run keeps of a file of weights."""
    return Original(file=file.name, size=checkpoint.size, sha256=checkpoint.sha256, remarks=remarks)


def images_of(config: ImportConfig, session: Session) -> DataSet | None:
    """The images to measure the model on, if any."""
    if config.dataset is None:
        return None
    choice = DataChoice(config.dataset, skip_bad=config.skip_bad)
    data = load_data_set(choice, config.preprocessing, session.place)
    for note in (*described(data), *data.notes):
        session.say(note)
    return data


def check_outputs(data: DataSet | None, outputs: int) -> None:
    """Refuse images of other classes than the model has. Raises UsageError."""
    if data is not None and len(data.classes) != outputs:
        raise UsageError(
            f"--dataset: {data.name} has {len(data.classes)} classes, the file {outputs} outputs; "
            "name images of its own classes, or none"
        )


def check_told(path: Path, checkpoint: Checkpoint, told: Told) -> None:
    """Refuse a file that is not the one described beside it, or of which too little is known.

    Raises DataError.
    """
    if not checkpoint.sha256.startswith(told.sha256):
        raise DataError(
            f"{str(path)!r} is not the file that is described beside it (sha256 differs); have it "
            "copied or downloaded again"
        )
    if told == Told() and looks_non_expansive(checkpoint.tensors):
        raise DataError(
            f"{str(path)!r}: its last weights have one spectral norm, as NEFT makes them, and its "
            "residual sums are then means, which the file does not say; import the folder of its "
            "run, or that of cartl export --format hub"
        )


def looks_non_expansive(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the last three weights of a network with our names have the same spectral norm."""
    named = [t for name, t in tensors.items() if re.fullmatch(r"blocks\..*\.weight", name)]
    last = [tensor for tensor in named if tensor.dim() > 1][-3:]
    if len(last) < 3:
        return False
    norms = [float(torch.linalg.matrix_norm(tensor.flatten(1), 2)) for tensor in last]
    return max(norms) - min(norms) < SAME * max(norms)


def classes_of(
    config: ImportConfig, told: Told, outputs: int, data: DataSet | None
) -> tuple[str, ...]:
    """The names of the outputs: as given, else as told, else those of the data, else numbers.

    Raises UsageError for another number of names, or other names than the data has.
    """
    known = len(told.classes) == outputs and len(set(told.classes)) == outputs
    if not config.classes and known and (not data or set(told.classes) == set(data.classes)):
        return told.classes
    if not config.classes:
        return data.classes if data else tuple(f"class {number}" for number in range(outputs))
    if len(config.classes) != outputs:
        raise UsageError(f"--classes: {len(config.classes)} names, the file has {outputs} outputs")
    if data and (other := set(config.classes) ^ set(data.classes)):
        raise UsageError(f"--classes: {min(other)!r} is not both in --classes and in {data.name}")
    return config.classes


def fitted(
    config: ImportConfig, checkpoint: Checkpoint, told: Told, classes: int
) -> tuple[BlockModel, tuple[str, ...]]:
    """The network with all weights of the file, and what was decided. Raises DataError."""
    normalization = checkpoint.normalization
    remarks = []
    if config.mean is not None and config.std is not None:
        if normalization not in (None, given := Normalization(config.mean, config.std)):
            remarks.append("note: --mean and --std take the place of the file's normalization")
        normalization = given
    elif MEAN in checkpoint.tensors:
        normalization = None  # the file is ours
    model: BlockModel = build_model(config.arch, classes).float()
    renames = parse_architecture(config.arch).renames
    matched = match(checkpoint.tensors, model.state_dict(), renames, normalization)
    model.load_state_dict(matched.tensors)
    if told.convex_blocks > len(model.blocks):
        raise DataError(f"{config.arch} has only {len(model.blocks)} blocks")
    make_convex(model, told.convex_blocks)
    return model.eval(), (*remarks, *matched.remarks)


def nothing(classes: tuple[str, ...], preprocessing: Preprocessing) -> DataSet:
    """The data of a model that was not measured."""
    side = preprocessing.image_size
    none = Split(torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0).long())
    return DataSet("none", classes, none, none, "nothing")


def measured(config: ImportConfig, data: DataSet) -> Split:
    """A seeded stratified part of the images, as ``cartl attack --limit`` takes it."""
    split = data.evaluation
    if len(split) <= config.limit:
        return split
    return split.part(stratified(split.labels, config.limit, config.seed, "limit"))


def look_at(
    config: ImportConfig, model: BlockModel, split: Split, attacked: Callable[[int], None]
) -> ImportResults:
    """Clean accuracy, accuracy under PGD, and how far that moves the features of each block."""
    budget = Budget(config.eps, config.eps / 4, config.pgd_steps)
    precision = resolve_precision(config.precision, split.labels.device)
    plan = Plan(("pgd",), (budget,), 1, 0, config.k, config.seed, config.batch_size, probe=0)
    found = unattacked(model, split, plan)
    attacked(0)
    autocast = autocast_for(split.labels.device, precision)
    for left in robustness(model, split, plan, autocast, found):
        attacked(len(split) - left)
    moved = moved_by_pgd(model, split, budget, config.seed, config.batch_size, MOVED)
    return ImportResults(
        clean_accuracy=share(found.clean),
        robust_accuracy=share(found.worst(0)),
        pgd_steps=config.pgd_steps,
        n=len(split),
        seconds=0,
        moved=moved,
    )


def judged(
    config: ImportConfig, model: BlockModel, split: Split, results: ImportResults, normalized: bool
) -> list[str]:
    """Whether the model is robust, and whether another normalization would suit it better."""
    found = []
    clean, robust = results.clean_accuracy or 0.0, results.robust_accuracy or 0.0
    right_ones, largest = round(clean * results.n), int(split.labels.bincount().max())
    if guessed := chance(right_ones, results.n, largest):
        found.append(
            f"warning: clean accuracy {100 * clean:.1f} % {guessed}; these may be other images "
            "than its own, --arch another network, or --classes in another order than its outputs"
        )
    if not normalized:
        rights = {name: right(config, model, split, usual) for name, usual in USUAL.items()}
        best = max(rights, key=lambda name: rights[name])
        if rights[best] > clean + BETTER:
            mean, std = (",".join(map(str, part)) for part in (USUAL[best].mean, USUAL[best].std))
            found.append(
                f"warning: no normalization is known; with that of {best} "
                f"{100 * rights[best]:.1f} % are right, not {100 * clean:.1f} %: look up what it "
                f"was trained with, such as --mean {mean} --std {std}"
            )
    if robust < FEW_LEFT * clean:
        found.append(
            f"warning: this source is not robust: PGD-{config.pgd_steps} at eps "
            f"{shown_pixels(config.eps)} leaves {100 * robust:.1f} % of {100 * clean:.1f} %; a "
            "transfer has no robustness to inherit from it"
        )
    return found


def _listed(numbers: Tensor) -> str:
    return ",".join(f"{number:.4g}" for number in numbers.flatten().tolist())


def right(config: ImportConfig, model: BlockModel, split: Split, usual: Normalization) -> float:
    """The share of images that are right with another normalization; the model is left as it is."""
    kept: tuple[Tensor, Tensor] = model.normalize.mean.clone(), model.normalize.std.clone()
    model.normalize.fix(usual.mean, usual.std)
    found = clean_correct(model, split, config.batch_size, split.labels.device)
    model.normalize.mean.copy_(kept[0])
    model.normalize.std.copy_(kept[1])
    return share(found)
