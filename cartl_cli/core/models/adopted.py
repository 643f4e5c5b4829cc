"""Another's network made a ``BlockModel`` of: its own modules, in a row of blocks."""

import re
from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import Renames


def last_block(before: Iterable[nn.Module], classifier: nn.Linear) -> nn.Sequential:
    """What comes before the classifier, and the classifier by the name that it has here."""
    named = [(str(number), module) for number, module in enumerate(before)]
    return nn.Sequential(OrderedDict([*named, ("linear", classifier)]))


def moved_names(names: dict[int, str], model: BlockModel) -> Renames:
    """The rules from the ``names_of`` a network to those of the model made of its modules."""
    found = ((names.get(number), name) for number, name in names_of(model).items())
    return tuple((f"^{re.escape(old)}$", new) for old, new in found if old not in (None, new))


def names_of(network: nn.Module) -> dict[int, str]:
    """The name of each tensor that is saved, by the identity of the tensor."""
    return {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
