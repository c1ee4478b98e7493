"""Freed memory is kept while a CPU trains, and given back after."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from hjepa_pl.functional.allocator import keep_freed_memory

def faults():
    return int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[7])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) // 256

def cost():
    before = faults()
    for _ in range(20):  # an aligned block needs a little more than one that was freed: a few are made at first
        torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
    return faults() - before

assert keep_freed_memory(False)
first = cost()
assert keep_freed_memory()
kept, held = cost(), resident()
assert keep_freed_memory(False)
print(first, kept, cost(), held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told")
def test_the_pages_of_freed_tensors_are_used_again_and_given_back_at_the_end() -> None:
    # A process of its own: what it says is said to the whole process.
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, kept, after, given_back = (int(x) for x in run.stdout.split())
    assert kept < first / 2
    assert after > 2 * kept
    assert given_back >= 40  # MiB: a tensor's
