"""What several commands' settings have in common besides their fields."""

import itertools

from pydantic import ConfigDict

SETTINGS = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def own_eps(dataset: str | None) -> float:
    """The radius that a data set is trained and attacked with unless another is given."""
    return 0.15 if dataset in ("mnist", "fashion-mnist") else 8 / 255


def check_step_size(eps: float, step_size: float | None) -> None:
    """A step leads at most from one side of the ball to the other. Raises ValueError."""
    if step_size is not None and eps > 0 and step_size > 2 * eps:
        raise ValueError(f"step_size: must be at most 2 x eps = {2 * eps:g}, got {step_size:g}")


def check_schedule(schedule: str, milestones: tuple[int, ...], warmup: float, epochs: int) -> None:
    """Milestones rise and lie within the epochs, as the warm-up does. Raises ValueError."""
    if schedule != "step":
        return
    rising = all(a < b for a, b in itertools.pairwise(milestones))
    if not rising or any(not 0 < milestone < epochs for milestone in milestones):
        shown = ",".join(map(str, milestones))
        raise ValueError(f"milestones: must rise and be < epochs ({epochs}), got {shown}")
    if warmup >= epochs:
        raise ValueError(f"warmup_epochs: must be < epochs ({epochs}), got {warmup:g}")


def check_batch(batch_size: int) -> None:
    """A single image has no variance for batch norm. Raises ValueError."""
    if batch_size < 2:
        raise ValueError("batch_size: batch norm needs at least 2 images per batch, got 1")
