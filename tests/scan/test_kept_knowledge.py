from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cgd_wrap import CGDConfig
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.kept_knowledge import FILE, kept_knowledge
from cgd_wrap.scan.pass_options import PassOptions

ABOUT = {"dataset": "d", "architecture": "a", "volatile": ["dataset.reads"]}


def options_of(folder: Path) -> PassOptions:
    runtime = Runtime(torch.device("cpu"))
    return PassOptions(folder, dataset={}, num_classes=3, config=CGDConfig(), runtime=runtime)


def fails() -> float:
    raise AssertionError("measured again")


def test_a_measurement_stands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = options_of(tmp_path)
    assert kept_knowledge(lambda: 0.25, ABOUT, options) == 0.25
    caplog.set_level(logging.INFO, logger="cgd_wrap")
    assert not caplog.records
    assert kept_knowledge(fails, {**ABOUT, "dataset.reads": "7"}, options) == 0.25
    assert "as decided when" in caplog.text
    assert "class knowledge 0.25" in caplog.text


@pytest.mark.parametrize("change", ["data", "model", "overwrite", "damage", "no cache"])
def test_it_is_measured_again(tmp_path: Path, change: str) -> None:
    options, about = options_of(tmp_path), dict(ABOUT)
    kept_knowledge(lambda: 0.25, about, options)
    if change == "data":
        about["dataset"] = "other"
    elif change == "model":
        about["architecture"] = "other"
    elif change == "overwrite":
        options = replace(options, overwrite=True)
    elif change == "damage":
        text = (tmp_path / FILE).read_text()
        (tmp_path / FILE).write_text(text.replace("0.25", "0.95"))
    else:
        options = replace(options, is_kept=False)
    assert kept_knowledge(lambda: 0.5, about, options) == 0.5
    if change != "no cache":
        assert kept_knowledge(fails, about, replace(options, overwrite=False)) == 0.5


def test_a_cache_that_cannot_be_written_ends_no_scan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = options_of(tmp_path / "missing")
    assert kept_knowledge(lambda: 0.25, ABOUT, options) == 0.25
    assert "can't be kept" in caplog.text
