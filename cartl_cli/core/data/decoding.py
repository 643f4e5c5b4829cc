"""One image file as pixels: what is taken, what is changed, what is refused."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.listings import read_image
from cartl_cli.core.data.split import to_pixels
from cartl_cli.core.errors import DataError

Image.init()  # loads every format; what an older Pillow lacks is no format of ours either
FORMATS = tuple(
    {"PNG", "JPEG", "MPO", "BMP", "DIB", "PPM", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"}
    & Image.OPEN.keys()
)
UNMARKED = {".tga": "TGA"}  # a format that nothing but the file's ending tells
MAX_PIXELS = 50_000_000
MIN_SIDE = 8
SPARE = 2  # a JPEG is decoded at a fraction of its size that is still so many times the target's
BITS_PER_SAMPLE = 258  # of TIFF


def decode_image(
    data: bytes, name: str, preprocessing: Preprocessing
) -> tuple[Tensor, tuple[str, ...]]:
    """One image as uint8 (3, S, S) and what had to be changed. Raises DataError naming it."""
    with _refusing(name):
        unmarked = UNMARKED.get(PurePath(name).suffix.lower())
        opened = Image.open(io.BytesIO(data), formats=[unmarked] if unmarked else FORMATS)
        _check_image(opened, name)
        _reduce(opened, preprocessing)
        _check_pixels(opened, name)
        image, changes = _upright_rgb(opened)
    side = preprocessing.image_size
    if opened.format == "MPO" and getattr(opened, "n_frames", 1) > 1:
        changes.append("were the first of several pictures in a file")
    if image.size != (side, side):
        changes.append(f"were resized to {side}x{side}")
    return as_tensor(resized(image, preprocessing)), tuple(changes)


def pixels_of(preprocessing: Preprocessing, image: Image.Image | str | Path) -> Tensor:
    """What a model takes of a file, given by its path, or of Pillow's image: (3, S, S) in [0, 1].

    Raises DataError for an image that is not taken or a file that cannot be read.
    """
    if not isinstance(image, Image.Image):
        name = str(image)
        pixels, _ = decode_image(read_image(Path(name).resolve(), name), name, preprocessing)
        return to_pixels(pixels)
    with _refusing("image"):
        _check_image(image, "image")
        _check_pixels(image, "image")
        upright, _ = _upright_rgb(image)
    return to_pixels(as_tensor(resized(upright, preprocessing)))


def as_tensor(image: Image.Image) -> Tensor:
    """The pixels of Pillow's 8-bit image, uint8 (C, H, W)."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Raise a DataError with its name for an image that Pillow or a check refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own; what matters is checked here
            yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DataError(
            f"image too large: {name!r} has more than {most} million pixels; make it smaller"
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"not an image: {name!r}") from None
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise DataError(f"damaged image: {name!r} ({error})") from None


def resized(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The square that a model takes of an image."""
    side = preprocessing.image_size
    box = preprocessing.part_taken(*image.size)
    if image.size == (side, side) and box == (0, 0, side, side):
        return image
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    return image.resize((side, side), resampling, box=box)


def _reduce(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Have a JPEG decoded at a half, quarter or eighth of its size, where that is enough."""
    side = SPARE * (preprocessing.shorter_side or preprocessing.image_size)
    image.draft(None, (side, side))


def _check_image(image: Image.Image, name: str) -> None:
    """Refuse, by what its header says, an image that is not taken. Raises DataError."""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise DataError(f"multi-frame image: {name!r}; keep one frame")
    if image.mode == "CMYK":
        raise DataError(f"CMYK image: {name!r}; convert it to RGB")
    if (bits := _bits(image)) > 8:
        raise DataError(f"{bits}-bit image: {name!r}; convert it to 8 bits a channel")
    if min(image.size) < MIN_SIDE:
        raise DataError(
            f"image too small: {name!r} is {image.width}x{image.height}; images must be at least "
            f"{MIN_SIDE}x{MIN_SIDE}"
        )


def _check_pixels(image: Image.Image, name: str) -> None:
    """Refuse what would take too much memory to decode, at the size it is decoded at."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"image too large: {name!r} has {image.width}x{image.height} pixels; make it smaller, "
            f"at most {MAX_PIXELS // 1_000_000} million are read"
        )


def _bits(image: Image.Image) -> int:
    """Bits of a channel in the file, of which Pillow may already have dropped the lower ones."""
    if image.format == "TIFF":
        depths = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (1,))
        if max(depths) > 8:
            return int(max(depths))
    for tile in getattr(image, "tile", ()):
        white = tile.args[1] if image.format == "PPM" and isinstance(tile.args, tuple) else 255
        if white > 255 or re.search(";16[BLN]", str(tile.args)):
            return 16
    if ";16" in image.mode:
        return 16
    return 32 if image.mode in ("I", "F") else 8


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image as RGB, turned as its EXIF asks, and what had to be changed."""
    image.load()  # of a TIFF it does the turning
    changes = []
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        changes.append("were turned upright (EXIF)")
    if _is_transparent(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
        changes.append("were transparent, laid on black")
    elif image.mode in ("L", "LA", "1"):
        changes.append("were grayscale, made RGB")
    return image.convert("RGB"), changes


def _is_transparent(image: Image.Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    return least < 255  # type: ignore[operator]
