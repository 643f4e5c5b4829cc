"""The adversarial images as files: written, read back from the disk, and predicted again."""

import io
import re
from collections.abc import Callable, Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor

from cartl_cli.core import storage
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.decoding import MAX_PIXELS, decode_image
from cartl_cli.core.data.layout import split_named
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.errors import StorageError
from cartl_cli.core.evaluation.targets import AttackSetup
from cartl_cli.core.evaluation.verdicts import Verdicts, share
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs import weights
from cartl_cli.core.runs.command_line import resuming
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.recorded import read_recorded
from cartl_cli.core.runs.results import SavedImages
from cartl_cli.core.runs.weights import from_bytes, to_bytes
from cartl_cli.core.storage import FileRecord

FILE = "adversarial.safetensors"
FOLDER = "adversarial"  # of pictures, one folder a class
BLOCK = 4096  # bytes that the smallest file takes on a disk


def saved_size(split: Split) -> int:
    """Bytes that the adversarial images take: float32 and, a file each, 8 bits a pixel."""
    return len(split) * (5 * split.images[0].numel() + BLOCK)


def write_and_reread(
    run: Run, setup: AttackSetup, verdicts: Verdicts, say: Callable[[str], None]
) -> tuple[FileRecord, SavedImages]:
    """Write what became of each attacked image, and predict it again as it stands on the disk.

    ``verdicts`` keep all images. The model is read anew from the attacked run, and batches are
    other ones than the attack's. Raises StorageError, RunError.
    """
    split, indices, labels = setup.split, setup.indices, setup.split.labels.cpu()
    content = to_bytes({"adversarial": verdicts.adversarial, "labels": labels, "indices": indices})
    file = storage.describe(FILE, content)
    folders = folder_names(run.manifest.model.classes)
    numbered = zip(labels.tolist(), indices.tolist(), strict=True)
    names = [f"{folders[label]}/{index}.png" for label, index in numbered]
    pictures = {
        name: png(image)
        for name, image in zip(names, eight_bits(verdicts.adversarial.cpu()), strict=True)
    }
    try:
        storage.write_whole(run.folder / FILE, content)
        storage.commit_folder(run.folder / FOLDER, pictures)
    except StorageError as error:
        raise StorageError(
            f"cannot save the adversarial images: {error}; the verdicts are kept; make room, then "
            f"go on with: {resuming(run)}"
        ) from error

    device, config = split.labels.device, run.attack
    batch_size = min(config.batch_size, len(split)) // 2 or 2
    model = weights.read_model(setup.attacked).to(device)
    read = read_saved(run, file, len(split))["adversarial"]
    exact = right(model, read.to(device).split(batch_size), split.labels)
    rounded = right(model, _batches(run, names, batch_size, device), split.labels)
    robust = verdicts.clean & ~verdicts.fallen
    found = SavedImages(
        accuracy=share(exact),
        accuracy_8bit=share(rounded),
        missed=int((robust & ~exact).sum()),
        recovered=int((~robust & exact).sum()),
    )
    if found.missed or found.recovered:
        say(
            f"warning: read back from the disk, {found.missed} robust images are wrong and "
            f"{found.recovered} fallen ones are right"
        )
    return file, found


def read_saved(run: Run, file: FileRecord, count: int) -> dict[str, Tensor]:
    """``adversarial`` (N, C, H, W), ``labels`` and ``indices`` (N,) of a file. Raises RunError."""
    side = run.manifest.model.image_size
    with torch.device("meta"):
        expected = {
            "adversarial": torch.empty(count, 3, side, side),
            "labels": torch.empty(count, dtype=torch.int64),
            "indices": torch.empty(count, dtype=torch.int64),
        }
    return from_bytes(read_recorded(run.folder, file), expected, run.folder / file.name)


def eight_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] to uint8 0..255, same shape."""
    return (images * 255).round().to(torch.uint8)


def png(image: Tensor) -> bytes:
    """A uint8 image (C, H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def right(model: BlockModel, batches: Iterable[Tensor], labels: Tensor) -> Tensor:
    """Which images, given in batches, the model gets right (N,), in float32."""
    logits = [predict(model, b.to(memory_format=torch.channels_last)) for b in batches]
    return correct(torch.cat(logits), labels)


def folder_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes as names of folders: distinct, in the same order, each one part of a path.

    They stay as they are unless one of them will not do; then all are numbered.
    """
    if all(map(_is_folder_name, classes)):
        return classes
    width = len(str(len(classes) - 1))
    plain = (re.sub(r"[^\w.-]+", "_", name)[:40] for name in classes)
    return tuple(f"{label:0{width}}-{name}" for label, name in enumerate(plain))


def _is_folder_name(name: str) -> bool:
    """Whether this is a folder that anyone sees, and that nobody takes for a split."""
    return (
        name.isprintable()
        and not name.startswith((".", " "))
        and not {"/", "\\"} & set(name)
        and name not in ("", "__MACOSX")
        and split_named(name) is None
        and len(name.encode()) <= 200
    )


def _batches(run: Run, names: list[str], batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The saved pictures from the disk, in [0, 1]."""
    as_it_is = Preprocessing(image_size=run.manifest.model.image_size)
    for first in range(0, len(names), batch_size):
        images = []
        for name in names[first : first + batch_size]:
            data, _ = storage.read(run.folder / FOLDER / name, f"picture {name}", 4 * MAX_PIXELS)
            images.append(decode_image(data, name, as_it_is)[0])
        yield to_pixels(torch.stack(images).to(device))
