"""Device caches inside one process: local copies, registration, refusals. Each program has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs.py")


@pytest.mark.parametrize(
    "program", ["local_copies", "registration", "zeroing", "freeing", "two_endpoints", "odd_blocks", "pools"]
)
def test_program(program: str) -> None:
    done = subprocess.run([sys.executable, PROGRAMS, program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
