"""How this process holds its memory."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of <malloc.h>


def keep_freed_memory() -> None:
    """Let glibc keep what one pass frees for the next; without glibc nothing happens.

    By default it gives large blocks back to the system, which hands out every page anew and zeroed:
    thousands of page faults in each pass of a network, up to a third of its time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
