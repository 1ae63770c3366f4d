from __future__ import annotations

import json

import pytest

from cgd_wrap import CGDConfig, cli
from cgd_wrap.demo import run
from cgd_wrap.drill import Recipe


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that runs in seconds: the same code on fewer pictures."""
    monkeypatch.setattr(run, "TRAIN_SIZE", 200)
    monkeypatch.setattr(run, "TEST_SIZE", 60)
    monkeypatch.setattr(run, "RECIPE", Recipe(epochs=2, batch_size=64, widths=(4, 8, 16, 32)))


@pytest.mark.usefixtures("small")
def test_demo_prints_figures_and_writes_report_and_json(tmp_path, capsys):
    file, folder = tmp_path / "new" / "demo.json", tmp_path / "report"
    config = tmp_path / "quick.yaml"
    numbers = {"suspicious_epochs": 1, "suspicious_side": 16, "epochs": 1}
    CGDConfig(**numbers, allow_missing_classes=True).to_yaml(config)
    arguments = ["demo", "--quiet", "--json", str(file), "--out", str(folder)]
    assert cli.main([*arguments, "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    for word in ("before (backdoored)", "after (guarded)", "clean-trained", "triggered"):
        assert word in printed
    figures = json.loads(file.read_text())
    for part in ("before", "after"):
        for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy"):
            assert 0 <= figures[part][name] <= 1
    assert str(folder / "entropy_map.png") in printed
    assert (folder / "report.html").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", list(run.ATTACKS))
def test_demo_repairs_the_victim(attack, tmp_path):
    result = run.run_demo(attack, folder=tmp_path, progress=False).outcome
    before, after, clean = result.before, result.after, result.clean_trained
    assert before.attack_success_rate > 0.9
    assert after.attack_success_rate < max(0.01, clean.attack_success_rate + 0.005)
    assert after.clean_accuracy > clean.clean_accuracy - 0.005
