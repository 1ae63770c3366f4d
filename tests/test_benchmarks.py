"""The benchmarks run, and what they compute is right; how long it takes is not tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launching import run_python

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.mark.slow  # a process for each number
def test_the_numbers_are_measured_and_printed_as_a_table(tmp_path):
    options = ["--only", "split", "order", "--sizes", "2000", "--tries", "1"]
    printed = run_python(str(BENCHMARKS / "lean_numbers.py"), *options, folder=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert [row.split(" | ")[1] for row in rows[2:]] == ["2,000", "2,000"]
    assert all(re.search(r"\d x ", row) for row in rows[2:])


@pytest.mark.slow  # some seconds
def test_the_guarded_loader_is_measured_and_reads_hardly_more_than_it_serves(tmp_path):
    options = ["--samples", "600", "--tries", "1", "--workers", "0", "--batch-size", "64"]
    printed = run_python(str(BENCHMARKS / "guarded_loader.py"), *options, folder=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert [1 <= float(row.split(" | ")[-1].strip("| ")) < 1.1 for row in rows[2:]] == [True, True]


@pytest.mark.parametrize("rows", ["1", "150000"])
def test_thresholds_by_two_passes_are_those_of_a_sort(tmp_path, rows):
    options = ["--rows", rows, "--check"]
    printed = run_python(str(BENCHMARKS / "streamed_thresholds.py"), *options, folder=tmp_path)
    assert printed.splitlines()[-1] == "the same as by a sort of all scores"


@pytest.mark.slow  # imports open_clip
def test_the_ways_to_make_clips_pixels_are_measured(tmp_path):
    options = ["--tries", "1", "--widths", "32", "640"]
    printed = run_python(str(BENCHMARKS / "jpeg_preprocess.py"), *options, folder=tmp_path)
    rows = [line for line in printed.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 9
    assert sum("open_clip's own" in row for row in rows) == 2
    assert all(re.search(r"\d x ", row) for row in rows)
