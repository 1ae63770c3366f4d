"""Two groups in CLIP's features, of which one was learned fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.stored_logits import StoredLogits, stored_logits
from cgd_wrap.split.clip_groups import fast_groups, two_groups

NAMES = ["a", "b"]
EACH = 800  # more than a unit of the store together


def cloud(size: int, centre: int, spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(16)[centre] + spread * torch.randn(size, 16, generator=generator)


def stored(folder: Path, name: str, values: Tensor) -> StoredLogits:
    store = UnitStore.open(folder, len(values), {})
    for unit in range(len(store)):
        rows = store.rows_of(unit)
        store.write(unit, {name: values[rows.start : rows.stop].half()}, {})
    return StoredLogits(store, stored_logits)


def features(vouched_for: int) -> Tensor:
    """Class "a" with so many samples in a tight group of their own, and class "b"."""
    true, tight = cloud(EACH - vouched_for, 0, 0.2, 0), cloud(vouched_for, 5, 0.02, 1)
    return torch.cat([true, tight, cloud(EACH, 1, 0.2, 2)])


LABELS = torch.arange(2).repeat_interleave(EACH)
EVERY = torch.ones(2 * EACH, dtype=torch.bool)


def ranks(fast: slice | None) -> Tensor:
    """Ranks at random, but that some samples come first."""
    values = torch.rand(2 * EACH, generator=torch.Generator().manual_seed(3)).double()
    if fast is not None:
        values[fast] *= 0.05
    return values


def test_two_groups_are_those_that_lie_apart():
    group = two_groups(features(200)[:EACH])
    assert group[-200:].float().mean() in (0, 1)
    assert group[:-200].float().mean() == 1 - group[-200:].float().mean()
    assert len(two_groups(torch.ones(5, 3))) == 5  # all the same: no two groups, and no error


@pytest.mark.parametrize("vouched_for", [100, 400])
def test_a_fast_group_apart_is_warned_of(tmp_path, vouched_for):
    clip = stored(tmp_path, "features", features(vouched_for))
    rank = ranks(slice(EACH - vouched_for, EACH))
    [text] = [doubt.text for doubt in fast_groups("CLIP", clip, LABELS, EVERY, rank, NAMES)]
    assert f"{vouched_for / EACH:.0%} of the samples labelled 'a'" in text
    assert "may itself be backdoored" in text
    looked_at = EVERY & (LABELS == 1)
    assert fast_groups("CLIP", clip, LABELS, looked_at, rank, NAMES) == []


def test_what_is_no_sign(tmp_path):
    fast = slice(EACH - 400, EACH)
    apart, together = features(400), features(0)
    for number, (values, rank) in enumerate([(apart, ranks(None)), (together, ranks(fast))]):
        clip = stored(tmp_path / str(number), "features", values)
        assert fast_groups("CLIP", clip, LABELS, EVERY, rank, NAMES) == []


def test_few_samples_and_none_and_logits_alone_say_nothing(tmp_path):
    clip = stored(tmp_path / "features", "features", features(400))
    rank = ranks(slice(EACH - 400, EACH))
    few = torch.zeros_like(EVERY)
    few[EACH - DEFAULT.fewest_grouped + 1 : EACH] = True
    for looked_at in (few, torch.zeros_like(EVERY)):
        assert fast_groups("CLIP", clip, LABELS, looked_at, rank, NAMES) == []
    logits = stored(tmp_path / "logits", "logits", features(400)[:, :2])
    assert fast_groups("CLIP", logits, LABELS, EVERY, rank, NAMES) == []
