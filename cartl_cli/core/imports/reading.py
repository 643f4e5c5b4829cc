"""A checkpoint from elsewhere, or a file of code, as a network and what its run is to say of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from cartl_cli.core.config import ImportConfig
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.data_sets import DataChoice, described, in_order, load_data_set
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.evaluation.any_model import outputs
from cartl_cli.core.imports.checkpoint_files import Checkpoint, read_checkpoint
from cartl_cli.core.imports.matching import MEAN, guess_classes, match
from cartl_cli.core.imports.published import obtained
from cartl_cli.core.imports.recognition import recognise
from cartl_cli.core.imports.told import Told, completed
from cartl_cli.core.imports.unwrapping import Normalization
from cartl_cli.core.models.blocks import BlockModel, make_convex
from cartl_cli.core.models.own_network import check_function, digest_of
from cartl_cli.core.models.whole import Whole, laid_out
from cartl_cli.core.registry.architectures import (
    build_model,
    check_k,
    own_network,
    parse_architecture,
)
from cartl_cli.core.runs import writer
from cartl_cli.core.runs.manifest import Manifest, ModelSpec, Original, data_record
from cartl_cli.core.runs.results import Distances
from cartl_cli.core.runs.weights import DTYPES, is_empty_weight, is_negative_variance
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import (
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    versions,
)
from cartl_cli.core.runtime.randomness import seeded

SAME = 1e-3  # of spectral norms, what rounding makes of equal ones


@dataclass(frozen=True)
class Import:
    """A model that was read, and what its run is to say of it; ``data`` are to measure it on.

    ``normalized``: it is known what it takes off its images. ``moved``: as its maker measured it.
    """

    config: ImportConfig
    model: BlockModel
    draft: Manifest
    data: DataSet | None
    device: torch.device
    normalized: bool
    moved: Distances


def read_import(config: ImportConfig, session: Session) -> Import:
    """The model, and the run that is to be. Raises UsageError or DataError."""
    device = resolve_device(config.device)
    keep_freed_memory()
    writer.check_place(session)
    told = Told()
    data: DataSet | None
    if config.whole:
        weights = weights_of(config, session)  # before images, which may have to be fetched
        data = images_of(config, session)
        classes = classes_of(config, told, len(data.classes if data else config.classes), data)
        model, original = whole_network(config, classes, weights)
        normalized, normalization = True, "its own"
    else:
        path, told = obtained(config.checkpoint, session.place.store, config.arch)
        checkpoint = read_checkpoint(path, config.member)
        config = completed(config, told)
        check_named(config, checkpoint)
        check_told(path, checkpoint, told)
        found = checkpoint.normalization or told.normalization
        checkpoint = replace(checkpoint, normalization=found)
        count = guess_classes(checkpoint.tensors)
        data = images_of(config, session)
        check_outputs(data, count)
        classes = classes_of(config, told, count, data)
        model, remarks = fitted(config, checkpoint, told, len(classes))
        side = config.preprocessing.image_size
        outputs(model, torch.full((1, 3, side, side), 0.5))  # or it takes no such images
        if "k" in config.model_fields_set:
            check_k(config.k, config.arch, len(model.blocks))
        original = original_of(path, checkpoint, (*checkpoint.remarks, *remarks), told.claim)
        known = (config.mean, found, checkpoint.tensors.get(MEAN))
        normalized = any(one is not None for one in known)
        mean, std = (_listed(part) for part in (model.normalize.mean, model.normalize.std))
        normalization = f"mean {mean}, std {std}"
    if data is not None and classes == data.classes and not config.classes:
        session.say(f"its outputs are taken for the classes of {data.name}, in their order")
    if data is not None:
        data = in_order(data, classes)
    if told.classes and not config.classes and classes != told.classes:
        session.say(
            f"note: the {len(told.classes)} names of classes beside the weights do not name its "
            "outputs and are left aside; --classes names them"
        )
    for remark in original.remarks:
        session.say(remark)
    if original.claim:
        session.say(f"its maker measured {original.claim}")
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
    return Import(config, laid_out(model.to(device)), draft, data, device, normalized, told.moved)


def check_named(config: ImportConfig, checkpoint: Checkpoint) -> None:
    """Refuse weights whose network is not named, with what it seems to be. Raises UsageError."""
    if not config.arch:
        seems = recognise(checkpoint.tensors)
        how = f"the file seems to be {seems}" if seems else "as --arch wrn-28-10-relu"
        raise UsageError(f"--arch: name the network; {how}")


def weights_of(config: ImportConfig, session: Session) -> tuple[Path, Checkpoint] | None:
    """The checkpoint for the network of a file, if one is named, and where it is.

    Raises UsageError for a file that is not there or has no such function, and DataError for a
    checkpoint that is none.
    """
    found = own_network(config.arch)
    assert found is not None  # or there would be no such architecture
    check_function(*found)
    if not config.checkpoint:
        return None
    file, _ = obtained(config.checkpoint, session.place.store, config.arch)
    return file, read_checkpoint(file, config.member, apart=False)


def whole_network(
    config: ImportConfig, classes: tuple[str, ...], weights: tuple[Path, Checkpoint] | None
) -> tuple[BlockModel, Original]:
    """The network of a file as it is, with the weights of the checkpoint if there is one.

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
    if weights is not None:
        file, checkpoint = weights
        network = cast(Whole, model.blocks[0]).network
        matched = match(checkpoint.tensors, network.state_dict(), first_layer=False)
        network.load_state_dict(matched.tensors)
        said = (*checkpoint.remarks, *matched.remarks, *remarks)
        original = original_of(file, checkpoint, said)
    for name, tensor in model.state_dict().items():
        if tensor.dtype not in DTYPES:
            raise DataError(f"its tensor {name} is {tensor.dtype}, which a run does not keep")
    check_weights(model.state_dict())
    side = config.preprocessing.image_size
    count = outputs(model.blocks[0], torch.full((1, 3, side, side), 0.5))
    if count != len(classes):
        raise UsageError(
            f"the network has {count} outputs, the data {len(classes)} classes; name images of its "
            "own classes"
        )
    return model, original


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what no run may have. Raises DataError."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{name} has values that are not finite; the model is broken")
        if is_negative_variance(name, tensor):
            raise DataError(f"running_var < 0 in {name}; the model is broken")
        if is_empty_weight(name, tensor):
            raise DataError(f"{name} is all zero; the model is broken")


def original_of(
    file: Path, checkpoint: Checkpoint, remarks: tuple[str, ...], claim: str = ""
) -> Original:
    """What the run keeps of a file of weights."""
    size, sha256 = checkpoint.size, checkpoint.sha256
    return Original(file=file.name, size=size, sha256=sha256, remarks=remarks, claim=claim)


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
    if not told.convex_blocks and looks_non_expansive(checkpoint.tensors):
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

    Raises UsageError for another number of names, or other names than the data has, and DataError
    for another number beside weights of ours.
    """
    if told.sha256 and len(told.classes) != outputs:
        raise DataError(
            f"{len(told.classes)} names of classes stand beside weights with {outputs} outputs; "
            "get the folder again"
        )
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
    check_weights(matched.tensors)
    model.load_state_dict(matched.tensors)
    blocks = len(model.blocks)
    if told.convex_blocks > blocks or len(told.moved) not in (0, blocks + 1):
        raise DataError(
            f"what stands beside the weights is not of {config.arch}, which has {blocks} blocks: "
            f"convex_blocks is {told.convex_blocks}, and moved has {len(told.moved)} numbers where "
            f"{blocks + 1} belong"
        )
    make_convex(model, told.convex_blocks)
    return model.eval(), (*remarks, *matched.remarks)


def nothing(classes: tuple[str, ...], preprocessing: Preprocessing) -> DataSet:
    """The data of a model that was not measured."""
    side = preprocessing.image_size
    none = Split(torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0).long())
    return DataSet("none", classes, none, none, "nothing")


def _listed(numbers: Tensor) -> str:
    return ",".join(f"{number:.4g}" for number in numbers.flatten().tolist())
