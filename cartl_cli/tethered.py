"""``python -m cartl_cli.tethered``: cartl, told to save and end should the process above it die."""

import ctypes
import signal
import sys

from cartl_cli.app import main

PR_SET_PDEATHSIG = 1  # prctl(2)


def tie() -> None:
    """Have the system send us SIGTERM when the process that started us dies, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    tie()
    main()
