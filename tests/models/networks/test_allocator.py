from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
from models.networks import allocator

setting, mebibytes = sys.argv[1], int(sys.argv[2])
getattr(allocator, setting, lambda: None)()

def work():
    faults = lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(20):
        before = faults()
        [b"x" * (mebibytes * 2**20) for _ in range(5)]
    print(faults() - before)  # the last time, when all that is ever needed has been had

thread = threading.Thread(target=work)  # as a walk is embedded, and gradients are computed
thread.start()
thread.join()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(
    ("setting", "mebibytes"), [("keep_freed_memory", 8), ("keep_all_freed_memory", 100)]
)
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel(
    setting: str, mebibytes: int
) -> None:
    assert faults(setting, mebibytes) < faults("no setting", mebibytes) / 20


def faults(setting: str, mebibytes: int) -> int:
    """Of blocks that are taken and given back in turn, in a process that ends with its setting."""
    command = [sys.executable, "-c", FAULTS, setting, str(mebibytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)
