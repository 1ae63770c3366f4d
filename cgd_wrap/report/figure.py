"""Drawing the entropy map as a picture."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from cgd_wrap.errors import MissingExtraError
from cgd_wrap.files import write_atomically
from cgd_wrap.functional import Split
from cgd_wrap.split.entropy_map import EntropyMap

MAX_POINTS = 200_000  # samples drawn at most: more points would only make ink
_BLUE, _RED, _GREY = "#2f6db3", "#d1342f", "#9aa0a6"


@dataclass(frozen=True)
class _Group:
    name: str
    colour: str
    clip_rank: np.ndarray
    suspicious_rank: np.ndarray


def require_matplotlib() -> None:
    """Check that matplotlib is installed, so that a report fails before its work, not after.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("report", "matplotlib") from error


def plot_entropy_map(
    entropy_map: EntropyMap,
    split: Split,
    path: str | Path,
    *,
    poisoned: Bool[Tensor, "n"] | None = None,
    sigma_clean: float = 0.2,
    sigma_triggered: float = 0.1,
) -> Path:
    """Draw the entropy map: the two ranks as a scatter plot, with a histogram along each axis.

    Args:
        entropy_map: entropy map of the training set; unreadable samples are left out.
        split: split of the training set.
        path: path of the file; its ending (.png, .pdf, .svg) decides the format.
        poisoned: True for each poisoned sample, if known: poison is drawn red, all else blue.
            Default: the colours show the split.
        sigma_clean: threshold of the clean split, drawn as lines.
        sigma_triggered: threshold of the triggered split, drawn as lines.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    path = Path(path)
    groups = _groups(entropy_map, split, poisoned)
    figure = Figure(figsize=(8.4, 8.0), facecolor="white")
    grid = figure.add_gridspec(
        2, 2, width_ratios=(4, 1), height_ratios=(1, 4), wspace=0.05, hspace=0.05,
        left=0.085, right=0.98, bottom=0.07, top=0.98,
    )  # fmt: skip
    axes = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=axes)
    right = figure.add_subplot(grid[1, 1], sharey=axes)
    corner = figure.add_subplot(grid[0, 1])
    _scatter(axes, groups)
    _thresholds(axes, top, right, sigma_clean, sigma_triggered)
    _histograms(top, right, groups, known=poisoned is not None)
    _legend(corner, axes, groups, sigma_clean, sigma_triggered)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xlabel("CLIP rank  (1: CLIP contradicts the label)")
    axes.set_ylabel("suspicious rank  (0: the label was learned fastest)")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:] or "png", dpi=140)
    write_atomically(path, picture.getvalue())
    return path


def _groups(
    entropy_map: EntropyMap, split: Split, poisoned: Bool[Tensor, "n"] | None
) -> list[_Group]:
    if poisoned is None:
        masks = [
            ("clean", _BLUE, split.clean),
            ("mixed", _GREY, split.mixed),
            ("triggered", _RED, split.triggered),
        ]
    else:
        masks = [("clean", _BLUE, ~poisoned), ("poisoned", _RED, poisoned)]
    known = ~(entropy_map.clip_rank.isnan() | entropy_map.suspicious_rank.isnan())
    return [
        _Group(
            name,
            colour,
            entropy_map.clip_rank[mask & known].numpy(),
            entropy_map.suspicious_rank[mask & known].numpy(),
        )
        for name, colour, mask in masks
    ]


def _scatter(axes: Any, groups: list[_Group]) -> None:
    total = sum(len(group.clip_rank) for group in groups)
    kept = min(1.0, MAX_POINTS / max(total, 1))
    generator = np.random.default_rng(0)
    for group in groups:
        x, y = group.clip_rank, group.suspicious_rank
        if kept < 1:
            chosen = generator.random(len(x)) < kept
            x, y = x[chosen], y[chosen]
        # A group has about the same amount of ink, however many points it has.
        ink = math.sqrt(max(len(x), 1))
        axes.scatter(
            x, y, color=group.colour, linewidths=0, rasterized=True,
            s=min(30.0, max(1.6, 500 / ink)), alpha=min(0.85, max(0.07, 35 / ink)),
        )  # fmt: skip
    if kept < 1:
        axes.text(
            0.99, 0.985, f"{kept:.0%} of the {total:,} points are drawn; histograms hold all",
            transform=axes.transAxes, ha="right", va="top", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
        )  # fmt: skip


def _thresholds(
    axes: Any, top: Any, right: Any, sigma_clean: float, sigma_triggered: float
) -> None:
    for sigma, style in ((sigma_clean, "--"), (sigma_triggered, ":")):
        line = {"color": "#202124", "linewidth": 1.1, "linestyle": style, "zorder": 3}
        for panel in (axes, top):
            panel.axvline(1 - sigma, **line)
        for panel in (axes, right):
            panel.axhline(sigma, **line)


def _histograms(top: Any, right: Any, groups: list[_Group], *, known: bool) -> None:
    total = sum(len(group.clip_rank) for group in groups)
    bins = np.linspace(0, 1, min(50, max(5, math.isqrt(total))) + 1)
    # The splits are parts of a whole, so they are stacked. Rare poison shows only as a density.
    look: dict[str, Any] = {"bins": bins, "histtype": "stepfilled"}
    look |= {"density": True, "alpha": 0.45} if known else {"stacked": True, "alpha": 0.6}
    drawn = [group for group in groups if len(group.clip_rank)]
    look["color"] = [group.colour for group in drawn]
    if drawn:
        top.hist([group.clip_rank for group in drawn], **look)
        right.hist([group.suspicious_rank for group in drawn], orientation="horizontal", **look)
    top.set_ylabel("density" if known else "samples", fontsize=8)
    right.set_xlabel("density" if known else "samples", fontsize=8)
    for panel in (top, right):
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    right.locator_params(axis="x", nbins=3)
    top.tick_params(labelbottom=False)
    right.tick_params(labelleft=False)


def _legend(
    corner: Any, axes: Any, groups: list[_Group], sigma_clean: float, sigma_triggered: float
) -> None:
    corner.axis("off")
    handles = [axes.scatter([], [], color=g.colour, s=36, linewidths=0) for g in groups]
    labels = [f"{g.name}: {len(g.clip_rank):,}" for g in groups]
    for name, sigma, style in (("clean", sigma_clean, "--"), ("triggered", sigma_triggered, ":")):
        handles += axes.plot([], [], style, color="#202124", linewidth=1.1)
        labels.append(f"{name}: sigma {sigma:g}")
    corner.legend(handles, labels, loc="center", frameon=False, fontsize=8, handlelength=1.6)
