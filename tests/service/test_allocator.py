from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, threading
import numpy as np
from service.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(50):
        np.ones(2**20)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

def measure():
    handed_back = faults()
    keep_freed_memory()
    print(handed_back, faults())

thread = threading.Thread(target=measure)  # as a walk is embedded: in a thread of its own
thread.start()
thread.join()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel() -> None:
    # In a process of its own: the setting holds for good.
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60
    )
    handed_back, kept = map(int, done.stdout.split())
    assert kept < handed_back / 5
