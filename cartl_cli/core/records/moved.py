"""What a diagnosis found, as a manifest keeps it: ``diagnostics`` measures it."""

from typing import Annotated

from pydantic import BaseModel, Field

from cartl_cli.core.config import SETTINGS


class Moved(BaseModel):
    """How far adversarial images move what leaves one block, f_b; Δ_b = f_b(x̃) − f_b(x).

    ``distance``: mean of ‖Δ_b‖₂ / ‖f_b(x)‖₂. ``growth``: median of ‖Δ_b‖₂ / ‖Δ_{b−1}‖₂, which the
    stem (b = 0) does not have. Both are taken over the images of which they are finite, and None
    if there are none.
    """

    model_config = SETTINGS

    distance: float | None
    growth: float | None


class BlockMoved(BaseModel):
    """One block of the attacked model and, on the same images, of the source model behind it.

    ``block`` 0 is the stem, L gives the logits. ``tuned``: one of the last k, which transfer tunes.
    """

    model_config = SETTINGS

    block: int
    tuned: bool
    target: Moved
    source: Moved | None = None


class Diagnosis(BaseModel):
    """Blocks 0 to L, on ``n`` images that are right when clean."""

    model_config = SETTINGS

    n: Annotated[int, Field(ge=0)]
    blocks: Annotated[tuple[BlockMoved, ...], Field(min_length=2)]
