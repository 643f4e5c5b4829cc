"""Every error a user can meet: one clear line, and the exit code that goes with it."""

from typing import Literal

Ended = Literal["failed", "diverged", "interrupted"]


class CartlError(Exception):
    """Something went wrong at run time (content, environment, resources): exit code 1.

    ``status`` is what the manifest of a run says that ended with this error.
    """

    exit_code = 1
    status: Ended = "failed"


class UsageError(CartlError):
    """Wrong usage, found before any work (flags, names, combinations, paths): exit code 2."""

    exit_code = 2


class DataError(CartlError):
    """A data set that cannot be read or does not fit the model."""


class RunError(CartlError):
    """A run folder, manifest or checkpoint that cannot be trusted."""


class InUseError(CartlError):
    """A run that another process is writing."""


class StorageError(CartlError):
    """The system refused to write a file: full disk, quota, permissions, broken storage."""


class DivergedError(CartlError):
    """The loss stopped being a finite number."""

    status = "diverged"


class StoppedError(CartlError):
    """A signal asked to stop, and everything done so far is saved: exit code 128 + signal."""

    status = "interrupted"

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
