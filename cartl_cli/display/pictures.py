"""Pictures as PNG bytes, drawn without a window and without any global setting of matplotlib."""

import io
import warnings
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from cartl_cli.core.values import shown_pixels
from cartl_cli.display.text import printable

if TYPE_CHECKING:
    from cartl_cli.core.gallery import Gallery

DPI = 100
SIDE = 192  # pixels, about, to which an image is magnified by a whole number
MARGIN, GAP = 28, 20  # pixels around all, and between columns
HEADER, LABEL, FOOTER = 84, 46, 36  # pixels above the rows, under each of them, and below
LONGEST = 24  # characters of a line under an image
INK, GREY, RED, GREEN = "#1a1a1a", "#666666", "#b3261e", "#1b6e3c"
FONT = "DejaVu Sans"  # comes with matplotlib


def attack_grid(gallery: "Gallery") -> bytes:
    """Rows of images: clean, adversarial, and the change magnified, with what was predicted."""
    pixels = gallery.images[0].clean.shape[-1]
    side = pixels * max(1, round(SIDE / pixels))
    width = 2 * MARGIN + 3 * side + 2 * GAP
    height = HEADER + len(gallery.images) * (side + LABEL) + FOOTER
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def write(text: str, x: float, y: float, size: float, colour: str, **how: str) -> None:
        """Text whose baseline is so many pixels from the left and from the top."""
        weight = how.pop("weight", "normal")
        font = FontProperties(family=FONT, size=size, weight=weight)
        spot = x / width, 1 - y / height
        figure.text(*spot, text, fontproperties=font, color=colour, parse_math=False, **how)

    norm = "ℓ∞" if gallery.norm == "linf" else "ℓ₂"
    title = f"{_cut(gallery.attacked, 2 * LONGEST)}, eps {shown_pixels(gallery.eps)} ({norm})"
    write(title, MARGIN, 33, 13, INK, weight="bold")
    reach = _reach(gallery)
    lefts = [MARGIN + column * (side + GAP) for column in range(3)]
    heads = ("clean", "adversarial", f"change × {0.5 / reach:.3g}")
    for left, head in zip(lefts, heads, strict=True):
        write(head, left + side / 2, 71, 10.5, INK, ha="center")
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
            for number, line in enumerate(_verdict(image.label, predicted)):
                write(line, left + side / 2, below + 17 * number, 9, colour, ha="center")
        write(f"image {image.index}", lefts[2] + side / 2, below, 9, GREY, ha="center")
    legend = f"true → predicted; mid grey: no change; ±{shown_pixels(reach)} fills the range"
    write(legend, MARGIN, height - 18, 9, GREY)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class name may have letters that the font has not
        FigureCanvasAgg(figure).print_figure(file, dpi=DPI, format="png")
    return file.getvalue()


def _reach(gallery: "Gallery") -> float:
    """The change of a pixel that fills the range: eps; in the ℓ₂ ball the largest one shown."""
    if gallery.norm == "linf":
        return gallery.eps or 1.0
    return max(float((i.adversarial - i.clean).abs().max()) for i in gallery.images) or 1.0


def _verdict(label: str, predicted: str) -> list[str]:
    """``true → predicted`` as one line or, where that is too long, as two."""
    label, predicted = _cut(label, LONGEST - 2), _cut(predicted, LONGEST - 2)
    whole = f"{label} → {predicted}"
    return [whole] if len(whole) <= LONGEST else [label, f"→ {predicted}"]


def _cut(text: str, longest: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
