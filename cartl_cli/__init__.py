"""cartl: transfer robust image classifiers. Importing this loads no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image
    from torch import Tensor, nn

    from cartl_cli.core.evaluation.any_model import Attacked

    class Classifier(nn.Module):
        """What ``load_model`` gives."""

        classes: tuple[str, ...]
        image_size: int
        preprocess: Callable[[Image | str | Path], Tensor]
        num_classes: int
        pretrained_cfg: dict[str, Any]


__version__ = "0.2.0"


def load_model(run: str | Path) -> "Classifier":
    """The trained network of a finished run folder, in evaluation mode.

    It takes images (B, 3, S, S) in [0, 1] and returns logits (B, classes); normalization is inside.
    It raises TypeError for images of whole numbers, such as uint8, and ValueError for another
    shape. Weights and gradients have torch's usual memory layout, which other libraries expect.
    Raises RunError for a folder that cannot be trusted.

    It also has ``classes``, their names in the order of the logits, ``image_size``, which is S, and
    ``preprocess``, which makes a tensor (3, S, S) of an image file, given by its path, or of an
    image of Pillow, and raises DataError or RunError for one that is not taken. ``num_classes`` and
    ``pretrained_cfg`` tell timm the same.
    """
    from functools import partial

    import torch

    from cartl_cli.core.data.decoding import pixels_of
    from cartl_cli.core.runs.reader import read_run
    from cartl_cli.core.runs.weights import read_model

    found = read_run(Path(run))
    network = read_model(found).to(memory_format=torch.contiguous_format)
    model = cast("Classifier", network)
    spec = found.manifest.model
    model.classes, model.image_size = spec.classes, spec.image_size
    model.preprocess = partial(pixels_of, spec.preprocessing)
    network.normalize.takes = (3, spec.image_size, spec.image_size)
    model.num_classes, model.pretrained_cfg = len(spec.classes), spec.preprocessing.for_timm
    return model


def attack(model: "nn.Module", images: "Tensor", labels: "Tensor", **settings: Any) -> "Attacked":
    """Attack any network as ``cartl attack`` does, and check that the attack worked.

    ``model`` takes ``images`` (N, C, H, W), float32 in [0, 1], and gives logits (N, classes);
    normalization is its own affair. ``labels`` (N,) are class numbers. ``settings`` are those of
    ``cartl attack``, by name: ``attack``, ``norm``, ``eps``, ``step_size``, ``pgd_steps``,
    ``restarts``, ``queries``, ``checks``, ``batch_size``, ``seed`` and ``precision``. The model is
    left as it was found.

    Gives which images are right and which survive, the accuracies with their intervals, and the
    checks: see ``Attacked``. Raises UsageError for what cannot be attacked.
    """
    from cartl_cli.core.evaluation.any_model import attack_any

    return attack_any(model, images, labels, settings)
