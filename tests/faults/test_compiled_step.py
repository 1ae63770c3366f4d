"""A step of model and loss under torch.compile: one graph, the same values (rows 25 to 30)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compiled_steps
import pytest
import torch
from compiled_steps import CASES, EVALUATED
from launching import run_python


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file: Path = tmp_path_factory.mktemp("compiled") / "seen.pt"
    run_python(compiled_steps.__file__, str(file))
    return torch.load(file)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_all_steps_are_one_graph_of_the_same_values(name, kind, seen):
    """Rows 25 and 27: no graph break, and nothing that counts and so is compiled anew each step."""
    run = seen["training"][name, kind]
    assert run["graphs"] == 1
    torch.testing.assert_close(run["found"], run["expected"])


@pytest.mark.parametrize("name", EVALUATED)
def test_in_evaluation_plain_targets_get_the_criterion(name, seen):
    """Row 29: batches with and without tags share a graph, and each gets its own loss."""
    run = seen["evaluation"][name]
    assert run["graphs"] == 1
    assert torch.equal(run["plain"], run["criterion"])
    torch.testing.assert_close(run["tagged"], run["guarded"])


def test_untagged_training_batches_get_the_criterion(seen):
    """Row 29: the warning is left to steps that aren't compiled."""
    torch.testing.assert_close(seen["untagged"], seen["criterion"])


def test_strict_ends_a_compiled_step_without_tags(seen):
    """Row 29."""
    assert seen["strict"].startswith("RuntimeError: a training batch without tags reached")


def test_soft_targets_are_refused_in_a_compiled_step(seen):
    """Row 30."""
    assert "Turn off mixup and CutMix" in seen["soft"]
