"""Batch norm in evaluation mode is an affine map, which a convolution before it can do as well."""

import copy
import itertools
from collections.abc import Sequence
from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cartl_cli.core.models import compiling
from cartl_cli.core.models.blocks import Affine, BlockModel, Shift
from cartl_cli.core.models.whole import within_whole
from cartl_cli.core.models.wide_resnet import PreActivationBlock

Model = TypeVar("Model", bound=nn.Module)


def folded(model: Model) -> Model:
    """A copy for gradients with respect to the input: no batch norm is left in it.

    It is in evaluation mode, its logits and features are the model's up to rounding, and its
    parameters take no gradient. A pass takes about three quarters of the time.
    """
    light = copy.deepcopy(model).eval().requires_grad_(False)
    known = (light.stem, *light.blocks) if isinstance(light, BlockModel) else (light,)
    for module in known:
        _join(module)
    untouched = within_whole(light)  # its code may ask a norm for its statistics
    for module in set(light.modules()) - untouched:
        for name, child in module.named_children():
            if _is_affine(child):
                module.set_submodule(name, Affine(child))
    for module in list(light.modules()):
        if isinstance(module, PreActivationBlock):
            _pass_scale_on(module)
    return light


def _join(module: nn.Module) -> None:
    """Convolutions in ``module`` take over the batch norms that follow them.

    Within a module whose passes nobody has told, as in another's network, nothing is known to
    follow.
    """
    followed = _followed(module)
    if followed is None:
        return
    for before, after in followed:
        conv, norm = module.get_submodule(before), module.get_submodule(after)
        if type(conv) is nn.Conv2d and _is_affine(norm):  # not parametrized
            module.set_submodule(before, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            module.set_submodule(after, nn.Identity())
    for child in module.children():
        _join(child)


def _is_affine(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether it is a batch norm and no more than that, with statistics and parameters."""
    if type(module) is not nn.BatchNorm2d:
        return False
    return module.running_mean is not None and module.affine


class FoldedCopy:
    """``folded`` of a model in training, step after step.

    Its tensors stay where they are, since a CUDA graph finds them by their addresses.
    """

    def __init__(self, model: BlockModel) -> None:
        self.model = model
        self._light: BlockModel | None = None

    def refreshed(self) -> BlockModel:
        """The copy, with what the model has become; the model itself where kernels are compiled
        for CUDA, since these do the work of batch norm on the way.
        """
        if compiling.on_cuda(self.model):
            return self.model
        new = folded(self.model)
        if self._light is None or self._light.state_dict().keys() != new.state_dict().keys():
            self._light = new  # the first, or a scale has changed its sign
        else:
            self._light.load_state_dict(new.state_dict())
        return self._light


def _pass_scale_on(block: PreActivationBlock) -> None:
    """Scale the weights rather than what they are applied to, on a CPU.

    A leaky ReLU of s · x is s times that of x, if s > 0. Other devices would have to be waited for
    to know that, and scale within the addition at no cost.
    """
    affine = block.norm_act1.norm
    convolutions = [block.conv1]
    if block.shortcut is not None and not block.raw_shortcut:
        convolutions.append(block.shortcut)
    plain = all(type(conv) is nn.Conv2d for conv in convolutions)  # not parametrized
    if not (isinstance(affine, Affine) and plain and affine.scale.device.type == "cpu"):
        return
    if bool((affine.scale > 0).all()):
        for conv in convolutions:
            conv.weight.data.mul_(affine.scale)
        block.norm_act1.set_submodule("norm", Shift(affine))


def _followed(module: nn.Module) -> Sequence[tuple[str, str]] | None:
    """The names of layers of which the second takes nothing but what the first gives.

    A block tells them as its ``FOLLOWED``. None: not known.
    """
    if type(module) is nn.Sequential:
        return list(itertools.pairwise(module._modules))  # with one that occurs twice
    return getattr(module, "FOLLOWED", None)
