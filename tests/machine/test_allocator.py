"""Memory that training frees is used again, not given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource
import torch
from tcl.machine.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def least():
    # The first round fetches, and the system may take idle pages away in another.
    return min(faults() for _ in range(5))

print(least())
assert keep_freed_memory()
print(least())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_freed_tensor_is_not_fetched_from_the_system_again():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    # Four tensors of 64 MB: 16,384 pages each, or at least 32 when the system hands out huge ones.
    assert after < 4 * 32 <= before
