"""Weights of a stranger against a network, name by name and shape by shape: all or nothing."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.errors import DataError
from cartl_cli.core.imports.recognition import recognise
from cartl_cli.core.imports.unwrapping import COUNTER, Normalization, shared_prefix
from cartl_cli.core.registry.architectures import Renames, renamed

LISTED = 10
MEAN, STD = "normalize.mean", "normalize.std"
UNUSED = (
    (re.compile(r"(.*\.)?sub_block1\..*"), "sub_block1 (a block no image goes through)"),
    (re.compile(r"(.*\.)?model_preact_hl1\..*"), "model_preact_hl1 (a head of the pre-training)"),
    (
        re.compile(r"(.*\.)?(relative_position_index|attn_mask)"),
        "relative_position_index and attn_mask (a Swin computes them)",
    ),
)
"""What published files have that no network here expects, and what it is."""

HEAD = re.compile(
    r"(.*\.)?linear\d*\.weight|(fc|logits|head|heads|classifier|last_linear|output)\d*(\.\w+)*\.weight"
)


@dataclass(frozen=True)
class Matched:
    """Every tensor that the network expects, of its shape and type; ``remarks`` say what was left
    aside or filled in.
    """

    tensors: dict[str, Tensor]
    remarks: tuple[str, ...]


def match(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    renames: Renames = (),
    normalization: Normalization | None = None,
    first_layer: bool = True,
) -> Matched:
    """The weights ``found`` in a file under the names of the network that ``expected`` describes.

    ``renames`` are pairs (pattern, replacement); the first that fits a published name counts. A
    wrapper's prefix that all names share counts for nothing on either side. ``expected`` may hold
    meta tensors. ``normalization`` fills the network's ``first_layer``, if it is one of ours.

    Raises DataError, with all that does not fit, if anything is missing, left over or of another
    shape.
    """
    apart = (MEAN, STD) if first_layer else ()
    ours = {name: like for name, like in expected.items() if name not in apart}
    full, named = _short(ours), _renamed(found, renames)
    published = {short: named[name] for short, name in _short(named).items()}
    filled = [name for name in full if name not in published and name.rpartition(".")[2] == COUNTER]
    missing = [full[name] for name in full if name not in published and name not in filled]
    pairs = {full[name]: found[published[name]] for name in full if name in published}
    taken = {published[name] for name in published if name in full}
    unused = {name: what for name in found if name not in taken and (what := _unused(name))}
    surplus = [name for name in found if name not in taken and name not in unused]
    misshapen = [
        f"{name} is {_kind(tensor)}, should be {_kind(ours[name])}"
        for name, tensor in pairs.items()
        if not _alike(tensor, ours[name])
    ]
    if missing or surplus or misshapen:
        lines = [_some(missing, "missing"), _some(surplus, "left over")]
        lines += [_some(misshapen, "of another shape"), _hint(missing, surplus, pairs, ours, found)]
        raise DataError(f"the file does not fit: {'; '.join(filter(None, lines))}")
    remarks = [f"left aside: {what}" for what in dict.fromkeys(unused.values())]
    if filled:
        remarks.append(f"{len(filled)} counters {COUNTER} are not in the file as such; set to 0")
    tensors = {name: tensor.to(ours[name].dtype) for name, tensor in pairs.items()}
    tensors |= {full[name]: torch.zeros_like(ours[full[name]], device="cpu") for name in filled}
    if first_layer and MEAN in expected:
        tensors |= _first_layer(expected, normalization)
        if normalization is None:
            remarks.append("no normalization is known: pixels go in as they are, in 0..1")
    return Matched({name: tensors[name] for name in expected}, tuple(remarks))


def guess_classes(found: Mapping[str, Tensor]) -> int:
    """The number of classes: rows of the last linear layer. Raises DataError if there is none."""
    if (name := last_linear(found)) is None:
        raise DataError("the file has no linear layer at its end; it has no classes")
    return found[name].shape[0]


def last_linear(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the classifier's weight: the last matrix with a classifier's name, else the last
    matrix.
    """
    matrices = [name for name, t in tensors.items() if t.dim() == 2 and name.endswith("weight")]
    named = [name for name in matrices if HEAD.fullmatch(name)]
    return (named or matrices)[-1] if matrices else None


def _unused(name: str) -> str | None:
    """What a tensor is that published files have for nothing, None for any other."""
    return next((what for pattern, what in UNUSED if pattern.fullmatch(name)), None)


def _renamed(found: Mapping[str, Tensor], renames: Renames) -> dict[str, str]:
    """Our name of each published name; of two that become one, the first counts."""
    names: dict[str, str] = {}
    for published in found:
        names.setdefault(renamed(renames, published), published)
    return names


def _short(names: Iterable[str]) -> dict[str, str]:
    """Each name by what is left of it without the wrappers' prefix that all share."""
    names = list(names)
    prefix = shared_prefix(names)
    return {name.removeprefix(prefix): name for name in names}


def _alike(tensor: Tensor, like: Tensor) -> bool:
    return tensor.shape == like.shape and tensor.is_floating_point() == like.is_floating_point()


def _kind(tensor: Tensor) -> str:
    shape = "×".join(map(str, tensor.shape)) or "a scalar"
    return shape if tensor.is_floating_point() else f"{shape} of integers"


def _some(what: Sequence[str], how: str) -> str:
    """``12 missing (a, b, …)``, nothing for none."""
    if not what:
        return ""
    return f"{len(what)} {how} ({', '.join(what[:LISTED])}{', …' if len(what) > LISTED else ''})"


def _hint(
    missing: Sequence[str],
    surplus: Sequence[str],
    pairs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> str:
    """What the differences probably mean and what to do."""
    head = last_linear(ours)
    head_names = {head, head.removesuffix("weight") + "bias"} if head else set()
    wrong = {name for name, tensor in pairs.items() if not _alike(tensor, ours[name])}
    if head and not missing and not surplus and wrong <= head_names and head in pairs:
        rows, classes = pairs[head].shape[0], ours[head].shape[0]
        return (
            f"the classifier has {rows} rows where {classes} classes were given: give --classes "
            f"with {rows} names, or a --dataset that has {rows}"
        )
    if head in missing and not surplus and not wrong and set(missing) <= head_names:
        return "the file has no classifier: it is of a feature extractor, not of a whole network"
    if not missing and not surplus and all("pos_embed" in name for name in wrong):
        return "the file is for images of another size: give --image-size"
    if arch := recognise(found):
        return f"the file seems to be {arch}"
    if missing and [ours[name].shape for name in missing] == [
        found[name].shape for name in surplus
    ]:
        return "only the names differ, and the order is the same: rename the keys of the file"
    return "give --arch the architecture of the file, or write its network in a file of your own"


def _first_layer(
    expected: Mapping[str, Tensor], normalization: Normalization | None
) -> dict[str, Tensor]:
    """Mean and deviation in the shape of the network's first layer, 0 and 1 if unknown."""
    shape = expected[MEAN].shape
    if normalization is None:
        return {MEAN: torch.zeros(shape), STD: torch.ones(shape)}
    return {
        MEAN: torch.tensor(normalization.mean).view(shape),
        STD: torch.tensor(normalization.std).view(shape),
    }
