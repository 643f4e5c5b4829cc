"""Adversarial weight perturbation (AWP; Wu et al. 2020, arXiv 2004.05884)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def weight_perturbation(
    model: nn.Module, loss: Callable[[], Tensor], gamma: float
) -> dict[str, Tensor]:
    """v_l = γ · ‖w_l‖ · ∇_l / ‖∇_l‖ of every weight w_l, one step of ascent, by name.

    ∇_l is the gradient of ``loss``, a pass of ``model``; norms are of the whole tensor. Weights are
    those of convolutions and linear layers that are trained: biases and batch norm are left alone,
    as in the authors' code, and so are the batch-norm statistics, which the pass would move.
    """
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
    statistics = [buffer.clone() for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), list(weights.values()))
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(before)
        return {
            name: gamma * weight.norm() / gradient.norm().clamp_min(1e-20) * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }


def perturb_weights(
    model: nn.Module, loss: Callable[[], Tensor], gamma: float
) -> Callable[[], None]:
    """Add the perturbation to the weights; what is given back restores them, bit by bit."""
    added = weight_perturbation(model, loss, gamma)
    weights = {name: model.get_parameter(name) for name in added}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(added[name])
    torch.clear_autocast_cache()  # it holds the weights of the pass before in bfloat16

    def restore() -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])

    return restore
