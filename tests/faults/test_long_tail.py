"""A few samples a class in a long tail (row 62): the epoch stays short, and no class loses."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cgd_wrap import CGDConfig, CGDGuard

CLASSES = 20


class Shades(Dataset):
    """One class of 400 samples, and 19 of 10: grey images, a shade for each class."""

    classes = tuple(f"shade {k}" for k in range(CLASSES))

    def __init__(self) -> None:
        self.targets = [0] * 400 + [k for k in range(1, CLASSES) for _ in range(10)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        shade = self.targets[index] / CLASSES
        return (shade + 0.02 * noise).clamp(0, 1), self.targets[index]


class ShadeClip:
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return -200 * (images.mean((1, 2, 3))[:, None] - torch.arange(CLASSES) / CLASSES) ** 2


@pytest.fixture(scope="module")
def guard() -> CGDGuard:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    config = CGDConfig(allow_missing_classes=True, suspicious_epochs=1, suspicious_side=16)
    return CGDGuard(model, Shades(), clip=ShadeClip(), config=config, progress=False).scan()


def epoch_factor(guard: CGDGuard, growth: float | None) -> float:
    guard.config = guard.config.replace(max_epoch_growth=growth)
    plain = DataLoader(guard.base, 10)
    return len(guard.protect(plain)[0]) / len(plain)


def test_an_epoch_is_bounded_and_its_length_is_said(
    guard: CGDGuard, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="cgd_wrap"):
        assert epoch_factor(guard, CGDConfig().max_epoch_growth) < 2.5
    (line,) = [r for r in caplog.records if "An epoch of" in r.getMessage()]
    assert line.levelno == logging.INFO
    assert "times the dataset's 590: small classes are drawn more often" in line.getMessage()


def test_without_a_bound_a_warning_tells_the_factor(
    guard: CGDGuard, caplog: pytest.LogCaptureFixture
) -> None:
    factor = epoch_factor(guard, None)
    assert factor > 7
    (line,) = [r for r in caplog.records if "An epoch of" in r.getMessage()]
    assert line.levelno == logging.WARNING
    assert f"{len(guard.sampler())}, {factor:.1f} times" in line.getMessage()
    assert "max_epoch_growth=None" in line.getMessage()


@pytest.mark.parametrize(
    ("normalise_by", "growth"),
    [("batch", 1.0), ("batch", 5.0), ("expectation", 2.0)],
)
def test_every_class_counts_as_much_as_without_a_bound(
    guard: CGDGuard, growth: float, normalise_by: str
) -> None:
    """Over a whole epoch, for outputs that depend on the class alone, the clean parts agree."""
    outputs = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(1))
    clean_part = {}
    for bound in (growth, None):
        guard.config = guard.config.replace(max_epoch_growth=bound, normalise_by=normalise_by)
        loss, table = guard.loss(), guard.dataset
        indices = guard.epoch_indices().of(0)
        tags = torch.tensor([table[i][1] for i in indices.tolist()])
        of_clean = guard.split.clean[indices]
        terms = loss.terms(outputs[guard.targets[indices]][of_clean], tags[of_clean])
        share = len(indices) / int(of_clean.sum()) if normalise_by == "expectation" else 1.0
        clean_part[bound] = float(terms.clean) / share
    assert clean_part[growth] == pytest.approx(clean_part[None], rel=1e-4)
