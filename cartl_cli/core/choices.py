"""Choices of one word that settings and tensors share; importing this loads no torch."""

from collections.abc import Mapping
from typing import Literal

Norm = Literal["linf", "l2"]
NORM_SIGNS: dict[Norm, str] = {"linf": "ℓ∞", "l2": "ℓ₂"}

Form = Literal["torch", "onnx", "hub"]
"""As what a model is exported."""
FORM_ENDINGS: Mapping[Form, str] = {"torch": ".pt2", "onnx": ".onnx", "hub": "-hub"}

Precision = Literal["auto", "fp32", "bf16"]

HeadInit = Literal["linear", "uniform"]
"""How a new classifier is drawn: as a linear layer usually is, or from U(0, 1)."""

FreezeBatchNorm = Literal["none", "affine", "stats", "all", "everything"]
"""Which batch-norm parts stay as they are: the sub-model's affine parameters, the extractor's
running statistics, neither, both, or both and the sub-model's statistics (CARTL Section 6, Table 1;
the last is in its text)."""
