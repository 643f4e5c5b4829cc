"""One image file as pixels: what is taken, what is changed, what is refused."""

import io
import warnings

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from cartl_cli.core.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000
MIN_SIDE = 8


def decode_image(data: bytes, name: str, image_size: int) -> tuple[Tensor, list[str]]:
    """One image as uint8 (3, S, S) and what had to be changed. Raises DataError naming it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own; what matters is checked here
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_image(opened, name)
            opened.load()
            image, changes = _upright_rgb(opened)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"image too large: {name!r}") from None
    except UnidentifiedImageError:
        raise DataError(f"not an image: {name!r}") from None
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise DataError(f"damaged image: {name!r} ({error})") from None
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        changes.append(f"were resized to {image_size}x{image_size}")
    return pil_to_tensor(image), changes


def _check_image(image: Image.Image, name: str) -> None:
    """Refuse, by what its header says, an image that is not taken. Raises DataError."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"image too large: {name!r} has {width}x{height} pixels")
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"multi-frame image: {name!r}; keep one frame")
    if image.mode == "CMYK":
        raise DataError(f"CMYK image: {name!r}; convert it to RGB")
    if image.mode.startswith("I") or image.mode == "F":
        bits = 16 if ";16" in image.mode else 32
        raise DataError(f"{bits}-bit image: {name!r}; convert it to 8 bits a channel")
    if min(width, height) < MIN_SIDE:
        raise DataError(
            f"image too small: {name!r} is {width}x{height}; images must be at least "
            f"{MIN_SIDE}x{MIN_SIDE}"
        )


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image as RGB, turned as its EXIF asks, and what had to be changed."""
    changes = []
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
        changes.append("were turned upright (EXIF)")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
        changes.append("were transparent, laid on black")
    elif image.mode in ("L", "1"):
        changes.append("were grayscale, made RGB")
    return image.convert("RGB"), changes
