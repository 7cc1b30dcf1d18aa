"""Freed memory is kept for the next tensor."""

import ctypes
import subprocess
import sys

import pytest

from segdistill.engine.memory import keep_freed_memory

PAGES_MADE = """
import resource, sys
import torch
from segdistill.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(30):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_made(how):
    done = subprocess.run([sys.executable, "-c", PAGES_MADE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_large_tensors_pages_are_used_again():
    assert pages_made("kept") < 5000 < pages_made("as it is")


def test_elsewhere_it_does_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    assert asked == []
