"""Freed memory is kept for the next step."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from upo.ops.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def step():
    for size in (16, 20, 24):
        torch.empty(size << 20).fill_(1.0)
for _ in range(10):  # until the heap is as large as it gets
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_takes_no_new_pages():
    faults = {}
    for how in ("keep", "plain"):
        command = [sys.executable, "-c", CODE, how]
        faults[how] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["keep"] < 0.01 * faults["plain"], faults
