"""The folder as a whole, and the page as a browser reads it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from poisoned_scan import NAMES, Images, Scan, result_of

from cgd_wrap import CGDConfig
from cgd_wrap.config.calibration import DEFAULT
from cgd_wrap.errors import MissingExtraError
from cgd_wrap.functional import Split
from cgd_wrap.report import Report, write_report
from cgd_wrap.report.classes import class_rows, most_suspicious
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.doubts import Doubt
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate, SuspectedClass

FIGURES = {
    "before": {"clean_accuracy": 0.784, "attack_success_rate": 0.946, "robust_accuracy": 0.05},
    "after": {"clean_accuracy": 0.785, "robust_accuracy": float("nan"), "<b>own</b>": 3},
}

SUSPICION = PoisonEstimate(0.1, (SuspectedClass(label=1, confidence=0.9, poisoned=0.4),))
NOTHING = PoisonEstimate(0.0, ())


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def files(scan: Scan, images: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    report = scan.report(
        paths=[f"/data/<img src=x onerror=alert(1)>\n{index}.png" for index in range(600)],
        images=images,
        poisoned=scan.poisoned,
        figures=FIGURES,
        stage_seconds={"CLIP": 8.25},
        title="Report </title><script>",
    )
    return write_report(report, tmp_path_factory.mktemp("out") / "new" / "report")


def test_folder_is_complete(files: dict[str, Path]) -> None:
    assert {name: path.name for name, path in files.items()} == {
        "page": "report.html",
        "figure": "entropy_map.png",
        "samples": "samples.csv",
        "summary": "summary.json",
        "entropy_score": "entropy_score.json",
    }
    assert {p.name for p in files["page"].parent.iterdir()} == {p.name for p in files.values()}


def test_page_is_inert_and_self_contained(files: dict[str, Path]) -> None:
    text = files["page"].read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "\u202e" not in text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.tags.count("img") == len(page.sources) > 50
    for shown in ("<script>alert(1)</script>", r"evil \u202egpj.exe", "{{ 7*7 }}", r"\x0abreak"):
        assert shown in page.text
    assert "Report </title><script>" in page.text
    assert "unreadable" in page.text


def test_page_shows_figures_and_times(files: dict[str, Path]) -> None:
    text = " ".join(Page(files["page"].read_text("utf-8")).text.split())
    for shown in ("78.4%", "94.6%", "–", "<b>own</b>", "poison left in the clean split", "8.2"):
        assert shown in text
    assert "than 0.3 are mixed. There, too, all that is likelier than 0.9 is triggered" in text


def test_summary_names_the_target(files: dict[str, Path], scan: Scan) -> None:
    summary = json.loads(files["summary"].read_text())
    assert summary["suspected_target_classes"] == [0]
    assert summary["estimated_poison_rate"] == pytest.approx(
        float(scan.poisoned.double().mean()), rel=0.3
    )
    assert summary["split"] == scan.split.counts()
    assert summary["split"]["unreadable"] == 2
    assert summary["figures"]["after"]["robust_accuracy"] is None
    assert summary["figures"]["detection"]["poison_in_triggered"] > 0.9
    assert summary["classes"][0]["name"] == NAMES[0]


def test_bare_report_on_few_samples(tmp_path: Path) -> None:
    entropy_map = EntropyMap.from_scores(torch.randn(10).double(), torch.randn(10).double())
    result = result_of(entropy_map, torch.arange(10) % 2, poison_estimate=NOTHING)
    files = write_report(Report(result, ["a", "b"]), tmp_path)
    page = Page(files["page"].read_text("utf-8"))
    assert page.tags.count("img") == 1
    assert "None: under no label" in page.text
    assert "Measured" not in page.text
    shown = " ".join(page.text.split())
    first = shown.index(
        "Verdict: undecided Undecided whether there is an attack: there are too few"
    )
    assert first < shown.index("Every training sample is ranked")
    assert "Whatever is said here is not to be trusted" in shown


def test_warnings_of_clip_come_first_and_are_escaped(scan: Scan, tmp_path: Path) -> None:
    teachers = ClipAgreement(("CLIP 1 (<i>)", "CLIP 2 (b)"), (0.91, 0.4), 0.37, 0.11, 4)
    doubts = (
        Doubt("clips_disagree", "CLIP never gives <script>alert(1)</script> its name.", "<b>!"),
        Doubt("name_given_too_often", "a \u202egpj", "Name it <i>so</i>."),
    )
    result = scan.result(doubts=doubts, teachers=teachers)
    files = write_report(Report(result, NAMES), tmp_path)
    text = files["page"].read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "\u202e" not in text
    shown = " ".join(page.text.split())
    places = [shown.index(part) for part in (
        "Verdict: suspected An attack seems to aim at <script>alert(1)</script>",
        "CLIP never gives",
        "Can CLIP be trusted here?", r"a \u202egpj Name it <i>so</i>.", "Suspected target classes",
    )]  # fmt: skip
    assert places == sorted(places)
    for sentence in (
        "CLIP never gives <script>alert(1)</script> its name. <b>!",
        "CLIP 1 (<i>) agrees with 91.0% of the labels.",
        "All of them choose the same class for 37.0% of the samples; least often for those "
        "labelled '{{ 7*7 }}{% raw %}', 11.0%.",
    ):
        assert sentence in shown
    summary = json.loads(files["summary"].read_text())
    assert summary["warnings"] == [doubt.text for doubt in doubts]
    assert summary["verdict"] == json.loads(json.dumps(result.verdict.as_dict()))
    assert [why["code"] for why in summary["verdict"]["reasons"]] == [
        "clips_disagree",
        "too_few_samples",
    ]
    assert summary["teachers"]["agreement"] == [0.91, 0.4]
    assert summary["teachers"]["lowest_class"] == 4


def test_without_warnings_the_page_has_none(files: dict[str, Path]) -> None:
    assert "Can CLIP be trusted here?" not in files["page"].read_text("utf-8")
    summary = json.loads(files["summary"].read_text())
    assert summary["warnings"] == []
    assert summary["teachers"]["agreement"] == [0.8]


def test_class_rows_count_every_sample_once(scan: Scan) -> None:
    rows = class_rows(scan.split, scan.labels, NAMES, SUSPICION)
    assert [(row.suspected, row.confidence, row.poisoned) for row in rows[:2]] == [
        (False, 0.0, 0.0), (True, 0.9, 0.4)
    ]  # fmt: skip
    counts = scan.split.counts()
    for name in ("clean", "triggered", "mixed"):
        assert sum(getattr(row, name) for row in rows) == counts[name]
    assert sum(row.total for row in rows) == 600
    assert sum(row.share_overall for row in rows) == pytest.approx(1)
    assert sum(row.share_triggered for row in rows) == pytest.approx(1)


def test_class_rows_without_samples() -> None:
    none = torch.zeros(4, dtype=torch.bool)
    rows = class_rows(
        Split(none, none, none), torch.zeros(4, dtype=torch.long), ["a", "b"], NOTHING
    )
    assert [(row.total, row.lift, row.suspected) for row in rows] == [(4, 0, False), (0, 0, False)]


def test_most_suspicious_come_first_without_unreadable(scan: Scan) -> None:
    order = most_suspicious(scan.entropy_map, 1000)
    assert len(order) == len(set(order)) == 598
    assert not {5, 17} & set(order)
    assert scan.poisoned[order[:20]].float().mean() > 0.9


def test_columns_of_another_dataset_are_refused(scan: Scan) -> None:
    with pytest.raises(ValueError, match="600 samples, but paths has 3"):
        scan.report(paths=["a", "b", "c"])
    with pytest.raises(ValueError, match="labels are no class of 2"):
        Report(scan.result(), NAMES[:2])


def test_the_report_shows_what_the_scan_decided_and_no_second_opinion(
    scan: Scan, tmp_path: Path
) -> None:
    decided = PoisonEstimate(0.123, (SuspectedClass(label=3, confidence=0.97, poisoned=0.456),))
    result = scan.result(poison_estimate=decided)  # the map itself speaks of class 0
    files = write_report(Report(result, NAMES), tmp_path)
    summary = json.loads(files["summary"].read_text())
    assert summary["suspected_target_classes"] == [3]
    assert summary["estimated_poison_rate"] == 0.123
    assert [row["label"] for row in summary["classes"] if row["suspected"]] == [3]
    text = " ".join(Page(files["page"].read_text("utf-8")).text.split())
    assert "About 12.3% of all samples" in text
    assert "45.6% of the class" in text


def test_the_page_names_the_thresholds_that_the_scan_used(scan: Scan, tmp_path: Path) -> None:
    config = CGDConfig(poison_cut=0.42, calibration=replace(DEFAULT, sure_of_poison=0.77))
    report = Report(scan.result(config=config), NAMES)
    text = " ".join(Page(write_report(report, tmp_path)["page"].read_text("utf-8")).text.split())
    assert "than 0.42 are mixed. There, too, all that is likelier than 0.77 is triggered" in text
    fixed = Report(scan.result(config=CGDConfig(sigma="fixed")), NAMES)
    assert "There, too" not in write_report(fixed, tmp_path)["page"].read_text("utf-8")


def test_missing_jinja_names_the_extra(
    scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cgd-wrap\[report\]'"):
        write_report(scan.report(), tmp_path)


def test_none_means_no_figures_and_no_seconds(scan: Scan, tmp_path: Path) -> None:
    files = write_report(scan.report(figures=None, stage_seconds=None), tmp_path)
    summary = json.loads(files["summary"].read_text())
    assert summary["figures"] == summary["stage_seconds"] == {}
