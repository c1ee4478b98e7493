"""Freed memory is kept while a CPU trains, and given back after."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from hjepa_pl.utils.malloc import keep_freed_memory

def faults():
    return int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[7])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) // 256

def returned():
    tensors = [torch.empty(40 << 20, dtype=torch.uint8).fill_(1) for _ in range(8)]
    full = resident()
    del tensors
    return full - resident()

def cost():
    before = faults()
    torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
    return faults() - before

assert keep_freed_memory(False)
usual, dear = returned(), cost()
assert keep_freed_memory()
kept, cheap, full = returned(), cost(), resident()
assert keep_freed_memory(False)
print(usual, dear, kept, cheap, full - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told")
def test_the_pages_of_freed_tensors_are_used_again_and_given_back_at_the_end() -> None:
    # A process of its own: what it says is said to the whole process. MiB of 320, page faults of a 40 MiB tensor.
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, dear, kept, cheap, given_back = (int(x) for x in run.stdout.split())
    assert usual >= 240
    assert kept <= 40
    assert cheap < dear / 10
    # Not asserted: what a later tensor costs. It may find its place in the heap that remains, as it may without us.
    assert given_back >= 240
