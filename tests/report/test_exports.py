"""The reference's files and the table, read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from poisoned_scan import Scan
from safetensors.torch import load_file

from cgd_wrap.report import write_clean_indices, write_entropy_score, write_logits, write_table


def test_clean_indices(tmp_path: Path) -> None:
    path = write_clean_indices(tmp_path / "clean_indices.json", torch.tensor([3, 3, 1]))
    assert json.loads(path.read_text()) == [3, 3, 1]


def test_entropy_score_holds_exact_ranks_and_leaves_unreadable_out(
    scan: Scan, tmp_path: Path
) -> None:
    path = write_entropy_score(tmp_path / "entropy_score.json", scan.entropy_map, scan.poisoned)
    rows = json.loads(path.read_text())
    assert set(rows) == {str(index) for index in range(600)} - {"5", "17"}
    for index, (clip, suspicious, poisoned) in rows.items():
        assert clip == scan.entropy_map.clip_rank[int(index)].item()
        assert suspicious == scan.entropy_map.suspicious_rank[int(index)].item()
        assert poisoned is bool(scan.poisoned[int(index)])
    write_entropy_score(path, scan.entropy_map)
    assert not any(row[2] for row in json.loads(path.read_text()).values())


def test_logits(tmp_path: Path) -> None:
    clip, suspicious = torch.randn(4, 3), torch.randn(3, 4).T
    labels = torch.tensor([0, 1, 2, 0])
    path = write_logits(tmp_path / "logits.safetensors", clip, suspicious, labels)
    found = load_file(path)
    assert torch.equal(found["clip_logits"], clip)
    assert torch.equal(found["suspicious_logits"], suspicious)
    assert torch.equal(found["labels"], labels)


def test_table_is_safe_and_complete(scan: Scan, tmp_path: Path) -> None:
    paths = [f"-dir\n/\udcff{index}.png" for index in range(600)]
    path = write_table(tmp_path / "samples.csv", scan.report(paths=paths))
    text = path.read_text("utf-8")
    assert len(text.splitlines()) == 601
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(600))
    assert [int(row["label"]) for row in rows] == scan.labels.tolist()
    assert [row["split"] for row in rows] == scan.split.names()
    assert rows[5]["split"] == "unreadable"
    assert rows[5]["clip_rank"] == "nan"
    assert [float(row["clip_rank"]) for row in rows[6:17]] == (
        scan.entropy_map.clip_rank[6:17].tolist()
    )
    nll = torch.tensor([float(row["clip_nll"]) for row in rows])
    assert torch.equal(nll.nan_to_num(-1), scan.entropy_map.clip_nll.nan_to_num(-1))
    assert rows[4]["path"] == r"'-dir\x0a/\udcff4.png"
    assert {row["class_name"] for row in rows if row["label"] == "3"} == {
        '\'=HYPERLINK("http://x")'
    }


def test_table_without_paths_keeps_negative_numbers(scan: Scan, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", scan.report())
    assert "'-" not in path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]
