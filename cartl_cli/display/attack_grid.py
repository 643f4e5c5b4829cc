"""Pictures as PNG bytes, drawn without a window and without any global setting of matplotlib."""

import io
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.display.terminal import printable

if TYPE_CHECKING:
    from cartl_cli.core.evaluation.gallery import Gallery

DPI = 100
SIDE = 176  # pixels, at least, to which an image is magnified by a whole number
MARGIN, GAP = 28, 20  # pixels around all, and between columns
HEADER, LABEL, FOOTER = 84, 52, 32  # pixels above the rows, under each of them, and below
INK, GREY, RED, GREEN = "#1a1a1a", "#666666", "#b3261e", "#1b6e3c"
FAMILY = "DejaVu Sans"  # comes with matplotlib
TITLE = FontProperties(family=FAMILY, size=12, weight="bold")
HEAD, TEXT = FontProperties(family=FAMILY, size=10.5), FontProperties(family=FAMILY, size=9)

Align = Literal["left", "center"]
Length = Callable[[str, FontProperties], float]


def attack_grid(gallery: "Gallery") -> bytes:
    """Rows of images: clean, adversarial, and the change magnified, with what was predicted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class name may have letters that the font has not
        return _drawn(gallery)


def _drawn(gallery: "Gallery") -> bytes:
    pixels = gallery.images[0].clean.shape[-1]
    side = pixels * math.ceil(SIDE / pixels)
    width = 2 * MARGIN + 3 * side + 2 * GAP
    height = HEADER + len(gallery.images) * (side + LABEL) + FOOTER
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def length(text: str, font: FontProperties) -> float:
        """Pixels from the first letter to the last."""
        return float(canvas.get_renderer().get_text_width_height_descent(text, font, False)[0])

    def write(
        text: str, x: float, y: float, font: FontProperties, colour: str, align: Align = "center"
    ) -> None:
        """Text whose baseline is so many pixels from the left and from the top."""
        place = x / width, 1 - y / height
        figure.text(*place, text, ha=align, fontproperties=font, color=colour, parse_math=False)

    eps = f", eps {shown_pixels(gallery.eps)} ({NORM_SIGNS[gallery.norm]})"
    room = width - 2 * MARGIN - length(eps, TITLE)
    write(_cut(gallery.attacked, room, TITLE, length) + eps, MARGIN, 33, TITLE, INK, "left")
    reach = _reach(gallery)
    lefts = [MARGIN + column * (side + GAP) for column in range(3)]
    heads = ("clean", "adversarial", f"change × {0.5 / reach:.3g}")
    for left, head in zip(lefts, heads, strict=True):
        write(head, left + side / 2, 71, HEAD, INK)
    for row, image in enumerate(gallery.images):
        top = HEADER + row * (side + LABEL)
        change = (0.5 + 0.5 * (image.adversarial - image.clean) / reach).clamp(0, 1)
        for left, drawn in zip(lefts, (image.clean, image.adversarial, change), strict=True):
            axes = figure.add_axes(
                (left / width, 1 - (top + side) / height, side / width, side / height)
            )
            axes.imshow(drawn.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
        below = top + side + 16
        for left, predicted in zip(lefts, (image.before, image.after), strict=False):
            colour = GREEN if predicted == image.label else RED
            whole = printable(f"{image.label} → {predicted}")
            lines = [whole] if length(whole, TEXT) <= side else [image.label, f"→ {predicted}"]
            for number, line in enumerate(lines):
                fitting = _cut(line, side, TEXT, length)
                write(fitting, left + side / 2, below + 17 * number, TEXT, colour)
        write(f"image {image.index}", lefts[2] + side / 2, below, TEXT, GREY)
    filling = shown_pixels(reach) if gallery.norm == "linf" else f"{reach:.3g}"
    legend = f"true → predicted; mid grey: no change; ±{filling} fills the range"
    write(legend, MARGIN, height - 16, TEXT, GREY, "left")
    file = io.BytesIO()
    canvas.print_figure(file, dpi=DPI, format="png")
    return file.getvalue()


def _reach(gallery: "Gallery") -> float:
    """The change of a pixel that fills the range: eps; in the ℓ₂ ball the largest one shown."""
    if gallery.norm == "linf":
        return gallery.eps or 1.0
    return max(float((i.adversarial - i.clean).abs().max()) for i in gallery.images) or 1.0


def _cut(text: str, room: float, font: FontProperties, length: Length) -> str:
    """As much of a text as there is room for, in pixels."""
    shown = whole = printable(text)[:200]
    while whole and length(shown, font) > room:
        whole = whole[:-1]
        shown = f"{whole}…"
    return shown
