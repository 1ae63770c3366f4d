"""Files of six formats with bytes flipped, cut, repeated and mixed: an image, or a bad sample.

Rows 1 to 5, 7 and 8. Every mutant follows from its number: `python mutated_images.py NUMBER 1`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutated_images import FORMATS, outcomes

REASONS = {"image", "empty", "not_image", "truncated", "corrupt", "too_large", "io_error",
           "getitem_failed"}  # fmt: skip


def test_a_few_hundred_mutants() -> None:
    found = outcomes(0, 50 * 2 * len(FORMATS))
    assert found.keys() <= REASONS
    assert found.total() == 600
    assert min(found[reason] for reason in ("image", "not_image", "truncated")) > 20
    assert found["getitem_failed"] < 30


@pytest.mark.slow
def test_many_mutants_within_a_memory_limit() -> None:
    total: Counter[str] = Counter()
    script, count = Path(__file__).with_name("mutated_images.py"), 2000
    for first in range(0, 24_000, count):
        run = subprocess.run(
            [sys.executable, script, str(first), str(count)], capture_output=True, text=True,
            timeout=280,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        total.update(json.loads(run.stdout))
    assert total.keys() <= REASONS
    assert total.total() == 24_000
