"""How an image file becomes the pixels of a model."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from cartl_cli.core.config.values import SETTINGS

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]


class Preprocessing(BaseModel):
    """The square of ``image_size`` pixels that a model takes, and how images are brought to it.

    ``squash``: the whole image, whatever its shape. ``crop``: the centre, after the shorter side
    was made ``shorter_side`` long (``image_size``, unless it is given).
    """

    model_config = SETTINGS

    image_size: Annotated[int, Field(ge=8, le=512)]
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"
    shorter_side: Annotated[int, Field(ge=8, le=1024)] | None = None

    @model_validator(mode="after")
    def _sensible(self) -> "Preprocessing":
        if self.shorter_side is not None:
            if self.resize != "crop":
                raise ValueError("shorter_side: goes with --resize crop; drop it")
            if self.shorter_side < self.image_size:
                raise ValueError(f"shorter_side: must be {self.image_size} or more")
        return self

    def part_taken(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box of an image that becomes the square: left, upper, right, lower in its pixels."""
        if self.resize == "squash":
            return 0.0, 0.0, width, height
        shorter = self.shorter_side or self.image_size
        side = min(width, height) * self.image_size / shorter
        left, upper = (width - side) / 2, (height - side) / 2
        return left, upper, left + side, upper + side

    @property
    def for_timm(self) -> dict[str, Any]:
        """The same as timm's ``pretrained_cfg`` has it; the model normalizes its images itself."""
        side, shorter = self.image_size, self.shorter_side or self.image_size
        return {
            "input_size": (3, side, side),
            "interpolation": self.interpolation,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "crop_pct": side / shorter,
            "crop_mode": "squash" if self.resize == "squash" else "center",
        }

    @property
    def shown(self) -> str:
        """In words: ``224 pixels, crop of 256, bilinear``."""
        crop = f"crop of {self.shorter_side or self.image_size}"
        how = "squash" if self.resize == "squash" else crop
        return f"{self.image_size} pixels, {how}, {self.interpolation}"

    @property
    def steps(self) -> list[str]:
        """How an image file becomes what the network takes, step by step, in sentences."""
        side = self.image_size
        if self.resize == "squash":
            taken = "Take the whole image, whatever its shape."
        else:
            shorter = self.shorter_side or side
            taken = f"Take the square in the middle, {side}/{shorter} of the shorter side long."
        how = f"{self.interpolation}, with Pillow's resize (antialiased)"
        return [
            "Decode the file and turn it upright as its EXIF says.",
            "Lay it on black where it is transparent, and convert it to RGB.",
            taken,
            f"Resize that to {side} x {side} pixels, {how}.",
            "Divide the pixels by 255, as float32 of shape (3, height, width).",
            "Do not normalize: the network does that itself.",
        ]
