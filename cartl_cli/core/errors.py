"""Every error a user can meet: one clear line, and the exit code that goes with it."""


class CartlError(Exception):
    """Something went wrong at run time (content, environment, resources): exit code 1."""

    exit_code = 1


class UsageError(CartlError):
    """Wrong usage, found before any work (flags, names, combinations, paths): exit code 2."""

    exit_code = 2


class DataError(CartlError):
    """A data set that cannot be read or does not fit the model."""


class RunError(CartlError):
    """A run folder, manifest or checkpoint that cannot be trusted."""


class DivergedError(CartlError):
    """The loss stopped being a finite number."""
