import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from cartl_cli.core.allocation import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {kept}:
    keep_freed_memory()
before = None
for _ in range(20):
    blocks = [torch.zeros(1 << 20) for _ in range(16)]
    del blocks
    before = faults() if before is None else before
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_not_asked_for_again() -> None:
    def counted(kept: bool) -> int:
        command = [sys.executable, "-c", FAULTS.format(kept=kept)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # 19 rounds of 64 MiB in pages of 4 KiB, or of 2 MiB where the system makes large ones
    assert counted(False) > 10 * max(counted(True), 1)
