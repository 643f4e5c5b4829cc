"""From what a file holds to the weights of one network: wrappers, prefixes, normalization."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cartl_cli.core.errors import DataError

WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema_model", "ema"),
    *("state_dict_swa", "swa_state_dict"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "params", "weights"),
    *("last", "best"),
)
"""Which part of a file is the network, the first that is there. Averaged weights come first, as in
timm, and ``last`` before ``best``, as in RobustBench."""

OTHER = re.compile(r"optim|sched|scaler|^amp$|^args$|config|^opt$", re.IGNORECASE)
PREFIXES = (
    "module.",
    "model.",
    "_orig_mod.",
    "net.",
    "base_model.",
    "basic_net.",
    "backbone.",
    "0.",
    "1.",
)
BESIDE = re.compile(r"attacker\..*|n_averaged")
"""The copy of the network that MadryLab's attacker holds, and the counter of a weight average."""

NORMALIZATION = re.compile(
    r"(?P<place>((normalizer|normalize|normalization|norm|0)\.)?)(?P<mean>new_mean|mean|mu)"
)
STDS = {"new_mean": "new_std", "mean": "std", "mu": "sigma"}
UNIT = 1.5  # a mean or deviation above it is of pixels in 0..255
MAX_DEPTH = 16
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Normalization:
    """(pixels − mean) / std per channel, with pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def unwrap(content: Any, member: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """The flat dict of tensors within nested dicts and lists, and what was taken among several.

    Raises DataError where there are no weights, or it is open which are the network's.
    """
    said: list[str] = []
    for _ in range(MAX_DEPTH):
        parts = _parts(content)
        if member in parts:
            content, member = parts[member], None
            continue
        known = [name for name in WRAPPERS if name in parts]
        if not known and _is_state(content):
            break
        if not known and len(parts) > 1:
            names = ", ".join(map(_shown, list(parts)[:10]))
            raise DataError(f"holds several sets of weights ({names}); save the one you want")
        if not parts:
            raise DataError("holds no weights of a network")
        if len(parts) > 1:
            others = [*known, *(name for name in parts if name not in known)][:10]
            names = ", ".join(map(_shown, others))
            said.append(f"took {known[0]!r} of {names}; cartl import --member takes another")
        content = parts[(known or list(parts))[0]]
    if member is not None:
        raise DataError(f"has no part {member!r}")
    if not _is_state(content):
        raise DataError("holds no weights of a network")
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    return {name: tensor for name, tensor in tensors.items() if isinstance(name, str)}, said


def tidy(
    tensors: Mapping[str, Tensor], apart: bool = True
) -> tuple[dict[str, Tensor], Normalization | None, list[str]]:
    """Names without the prefixes that all share, without what is ``BESIDE`` the network, and
    without the normalization, which is given for itself unless it is the network's own affair (not
    ``apart``); and what was decided.

    Raises DataError for a normalization that divides by nothing.
    """
    left, normalization, said = dict(tensors), None, list[str]()
    while True:
        before = left
        prefix = shared_prefix(left)
        left = {name.removeprefix(prefix): tensor for name, tensor in left.items()}
        own = {name: tensor for name, tensor in left.items() if not BESIDE.fullmatch(name)}
        left = own or left
        if apart and normalization is None and (names := _normalization_names(left)):
            mean, std = (left.pop(name).double().flatten().tolist() for name in names)
            normalization, scaled = _on_unit_scale(mean, std)
            said += scaled
        if left.keys() == before.keys():
            return left, normalization, said


def shared_prefix(names: Iterable[str]) -> str:
    """The longest run of known wrappers' prefixes with which every name begins."""
    names, prefix = list(names), ""
    while names:
        further = [prefix + known for known in PREFIXES]
        shared = [p for p in further if all(name.startswith(p) and name != p for name in names)]
        if not shared:
            break
        prefix = shared[0]
    return prefix


def _parts(content: Any) -> dict[str, Any]:
    """The dicts and lists right in a dict or list that hold weights, without an optimizer's."""
    if isinstance(content, Mapping):
        entries = {name: part for name, part in content.items() if isinstance(name, str)}
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        entries = {str(place): part for place, part in enumerate(content)}
    else:
        return {}
    return {
        name: part
        for name, part in entries.items()
        if not OTHER.search(name) and _holds_weights(part)
    }


def _holds_weights(content: Any) -> bool:
    """Whether there is a dict of weights at any depth; a part that holds itself is seen once."""
    seen, waiting = set(), [content]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not isinstance(part, Mapping | list | tuple):
            continue
        seen.add(id(part))
        if _is_state(part):
            return True
        waiting += part.values() if isinstance(part, Mapping) else part
    return False


def _is_state(content: Any) -> bool:
    """Whether a dict names weights itself."""
    return isinstance(content, Mapping) and any(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 0
        for name, value in content.items()
    )


def _normalization_names(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of mean and standard deviation of three channels, if there are such."""
    for name in tensors:
        if match := NORMALIZATION.fullmatch(name):
            other = match["place"] + STDS[match["mean"]]
            if other in tensors and _of_channels(tensors[name]) and _of_channels(tensors[other]):
                return name, other
    return None


def _of_channels(tensor: Tensor) -> bool:
    return tuple(tensor.shape) in {(3,), (3, 1, 1), (1, 3, 1, 1)}


def _on_unit_scale(mean: Sequence[float], std: Sequence[float]) -> tuple[Normalization, list[str]]:
    """Mean and deviation for pixels in 0..1, and a word where they were for 0..255."""
    if not all(0 < value < float("inf") for value in std) or not all(
        abs(value) < float("inf") for value in mean
    ):
        raise DataError(f"has a normalization that is none: mean {mean}, std {std}")
    if max(*mean, *std) <= UNIT:
        return Normalization(tuple(mean), tuple(std)), []
    scaled = Normalization(tuple(m / 255 for m in mean), tuple(s / 255 for s in std))
    return scaled, ["its normalization was for pixels in 0..255, and is divided by 255"]


def _shown(name: str) -> str:
    return name if len(name) <= 60 else name[:60] + "…"
