import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from cartl_cli.core.runtime.devices import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {kept}:
    keep_freed_memory()
for number in range(40):
    if number == 10:  # by then it has found its size
        before = faults()
    torch.ones(1 << 24)  # 64 MiB: more than glibc keeps by default
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_not_asked_for_again() -> None:
    def counted(kept: bool) -> int:
        command = [sys.executable, "-c", FAULTS.format(kept=kept)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert counted(True) < counted(False) / 4
