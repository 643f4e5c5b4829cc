"""Non-expansive fine-tuning (NEFT): Eq. 11 on every weight of the sub-model, convex residuals."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cartl_cli.core.errors import RunError
from cartl_cli.core.models.blocks import BlockModel, ResidualSum, make_convex, sub_model


class NonExpansive(nn.Module):
    """W* = β · W / σ(W)  (Eq. 11), W seen as a (C_out, C_in·K·K) matrix.

    σ = uᵀWv is followed by one power iteration per forward pass in training mode. It is the norm
    of the flattened kernel, not of the convolution operator: no Lipschitz bound follows.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.register_buffer("u", weight.new_empty(weight.shape[0]))
        self.register_buffer("v", weight.new_empty(weight[0].numel()))
        self.settle(weight)

    @torch.no_grad()
    def settle(self, weight: Tensor) -> None:
        """Set u, v to the exact leading singular vectors."""
        left, _, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        self.u.copy_(left[:, 0])
        self.v.copy_(right[0])

    @torch.no_grad()
    def iterate(self, matrix: Tensor) -> None:
        """One power iteration: v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖."""
        v = nn.functional.normalize(matrix.T @ self.u, dim=0)
        self.v.copy_(v)
        self.u.copy_(nn.functional.normalize(matrix @ v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """W → W*, same shape, in float32 whatever the caller's autocast."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)  # (C_out, C_in·K·K)
            if self.training:
                self.iterate(matrix)
            # clones: the next iteration must not change what this graph has saved
            sigma = self.u.clone() @ matrix @ self.v.clone()
            return self.beta * weight / sigma


def obstacle(model: BlockModel, k: int) -> str | None:
    """What in the last k blocks Eq. 11 and convex residuals cannot reach, in words, or None.

    Weights must be those of convolutions and linear layers, beside batch norm. A layer of another's
    class may add in its passes, unseen: it must hold its sum as a ``ResidualSum``.
    """
    for module in sub_model(model, k).modules():
        kind = type(module)
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1
        if kind in (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d) and not grouped:
            continue
        if any(True for _ in module.parameters(recurse=False)):
            what = "a grouped convolution" if grouped else kind.__name__
            return (
                f"cannot give the weights of {what} a spectral norm; tune fewer blocks, or drop it"
            )
        summed = any(isinstance(child, ResidualSum) for child in module.children())
        known = kind.__module__.startswith("torch.nn.") or summed
        if not known and any(True for _ in module.children()):
            return (
                f"cannot make the residual sums of {kind.__name__} convex, since they are no "
                "ResidualSum; tune fewer blocks, or drop it"
            )
    return None


def apply_neft(model: BlockModel, k: int, beta: float) -> list[str]:
    """Non-expansive fine-tuning of the last k blocks: Eq. 11 on every weight, convex residuals.

    Returns the names of the normalized weights. Raises RunError for an all-zero weight, whose
    σ = 0 cannot be scaled.
    """
    make_convex(model, k)
    normalized = []
    for name, module in weight_modules(model, k):
        if not module.weight.any():
            raise RunError(f"{name}.weight is all zero; NEFT cannot divide by its spectral norm 0")
        parametrize.register_parametrization(
            module, "weight", NonExpansive(module.weight.detach(), beta)
        )
        normalized.append(name)
    return normalized


def weight_modules(model: BlockModel, k: int) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Every convolution and linear layer of the last k blocks, with its name in the model."""
    inside = set(sub_model(model, k).modules())
    return [
        (name, module)
        for name, module in model.named_modules()
        if module in inside and isinstance(module, nn.Conv2d | nn.Linear)
    ]


def bake(model: BlockModel, k: int) -> None:
    """Replace each parametrized weight by the plain weight β·W/σ, σ exact."""
    for _, module in weight_modules(model, k):
        parametrized = cast(nn.ModuleDict, module.parametrizations)["weight"]
        cast(NonExpansive, cast(nn.ModuleList, parametrized)[0]).settle(
            cast(Tensor, parametrized.original)
        )
        module.eval()  # removal in training mode would run one more power iteration
        parametrize.remove_parametrizations(module, "weight")


def spectral_norms(model: BlockModel, k: int) -> dict[str, float]:
    """σ of every plain weight of the last k blocks, by singular value decomposition."""
    return {
        name: torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2).item()
        for name, module in weight_modules(model, k)
    }
