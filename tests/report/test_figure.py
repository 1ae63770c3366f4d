"""The entropy map is drawn for any size, and leaves no trace in matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from launching import run_python
from PIL import Image
from poisoned_scan import Scan, make_scan

from cgd_wrap.errors import MissingExtraError
from cgd_wrap.report import figure as figure_module
from cgd_wrap.report import plot_entropy_map
from cgd_wrap.split.entropy_map import EntropyMap


@pytest.mark.parametrize(("known", "count"), [(True, 10), (False, 30_000)])
def test_draws_any_size(count: int, known: bool, tmp_path: Path) -> None:
    scan = make_scan(count)
    poisoned = scan.poisoned if known else None
    path = plot_entropy_map(scan.entropy_map, scan.split, tmp_path / "m.png", poisoned=poisoned)
    with Image.open(path) as picture:
        assert picture.size == (1176, 1120)
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 50


def test_large_sets_are_subsampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = make_scan(2000)
    whole = plot_entropy_map(scan.entropy_map, scan.split, tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(figure_module, "MAX_POINTS", 500)
    part = plot_entropy_map(scan.entropy_map, scan.split, tmp_path / "b.svg").read_text("utf-8")
    assert whole[:4] == b"\x89PNG"
    assert "<svg" in part


def test_same_map_same_bytes_and_no_use_of_the_global_rng(scan: Scan, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    pictures = {
        plot_entropy_map(scan.entropy_map, scan.split, tmp_path / name).read_bytes()
        for name in ("a.png", "b.png")
    }
    assert len(pictures) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_all_poisoned_or_all_unreadable(scan: Scan, tmp_path: Path) -> None:
    everything = torch.ones(600, dtype=torch.bool)
    plot_entropy_map(scan.entropy_map, scan.split, tmp_path / "a.png", poisoned=everything)
    nothing = EntropyMap.from_scores(
        torch.zeros(600).double(), torch.zeros(600).double(), valid=~everything
    )
    plot_entropy_map(nothing, scan.split, tmp_path / "b.png")


def test_pyplot_and_backend_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys, torch, matplotlib, cgd_wrap.report as report\n"
        "from cgd_wrap.split.entropy_map import EntropyMap\n"
        "m = EntropyMap.from_scores(torch.randn(50).double(), torch.randn(50).double())\n"
        # Reading the backend would choose one, by importing pyplot.
        "rc = matplotlib.rcParams\n"
        "read = lambda: {k: rc[k] for k in rc if k != 'backend'}\n"
        "settings = read()\n"
        "sys.modules.pop('matplotlib.pyplot', None)\n"
        f"report.plot_entropy_map(m, m.split(), {str(tmp_path / 'm.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert read() == settings\n"
    )
    run_python("-c", code, imports=["matplotlib.figure"])


def test_missing_matplotlib_names_the_extra(
    scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cgd-wrap\[report\]'"):
        plot_entropy_map(scan.entropy_map, scan.split, tmp_path / "m.png")
