"""The tests mirror the package: a module's tests are where its name says, or in this table."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "cgd_wrap"
ELSEWHERE = {  # module -> the tests of what it serves; a folder where that is all of its package
    "adapters/guarded": "adapters/test_conformance.py",
    "adapters/serving": "adapters/test_plain_pytorch.py",
    "adapters/trainer_loss": "adapters/test_transformers.py",
    "adapters/watching": "adapters/test_lightning.py",
    "attacks/arguments": "attacks/test_triggers.py",
    "attacks/clean_label": "attacks/test_ctrl.py",
    "attacks/label_matching": "attacks/test_flip_labels.py",
    "backdoorbench/awc": "backdoorbench/test_defending.py",
    "backdoorbench/errors": "backdoorbench/test_safe_reading.py",
    "backdoorbench/measuring": "backdoorbench/test_defending.py",
    "backdoorbench/plots": "backdoorbench/test_defending.py",
    "backdoorbench/preact_resnet": "backdoorbench/test_networks.py",
    "cli/arguments": "test_cli.py",
    "cli/commands": "test_cli.py",
    "clip/hub_text": "clip/test_configuration.py",
    "config/checks": "config/test_settings.py",
    "config/reading": "config/test_settings.py",
    "config/setting": "config/test_settings.py",
    "data/classes": "test_guard.py",
    "data/leaves": "data/test_fingerprint.py",
    "data/modules": "models/test_architecture.py",
    "data/pixel_hashes": "data/test_fingerprint.py",
    "data/probes": "data/test_labels.py",
    "data/raw_source": "data/test_views.py",
    "data/samples": "data/test_reading.py",
    "data/sources": "data/test_views.py",
    "data/tables": "data/test_fingerprint.py",
    "data/transforms": "data/test_views.py",
    "data/workers": "data/test_reading.py",
    "drill/experiment": "drill/test_drilling.py",
    "errors": "faults",
    "functional/loss_terms": "functional/test_functional_loss.py",
    "models/safe_loading": "faults/test_nothing_runs.py",
    "models/schedule": "scan/test_suspicious_training.py",
    "randomness": "faults/test_torch_state.py",
    "report/classes": "report/test_report.py",
    "report/html": "report/test_report.py",
    "report/summary": "report/test_report.py",
    "report/table": "report/test_exports.py",
    "report/thumbnails": "report/test_report.py",
    "report/value": "report/test_report.py",
    "report/writing": "report/test_report.py",
    "scan/clip_pass": "clip/test_several.py",
    "scan/passes": "scan/test_control.py",
    "scan/pass_options": "scan/test_scanner.py",
    "scan/scoring": "scan/test_scanner.py",
    "scan/subject": "test_guard.py",
    "scan/suspicious_pass": "test_guard.py",
    "scan/temporary_cache": "test_processes.py",
    "scan/unit_results": "scan/test_scanner.py",
    "split/class_figures": "split/test_wrong_labels.py",
    "split/control_scores": "split/test_power.py",
    "split/announcement": "test_guard.py",
    "split/clip_agreement": "split/test_clip_warnings.py",
    "split/label_scores": "clip/test_several.py",
    "split/result": "test_guard.py",
    "train/batch_checks": "faults/test_replaced_sampler.py",
    "train/criteria": "faults/test_criteria.py",
    "train/criterion_names": "train/test_loss.py",
    "train/epoch_indices": "train/test_sampler.py",
    "train/epochs": "train/test_fit.py",
    "train/mixing": "faults/test_mixup.py",
    "train/protection": "test_guard.py",
    "train/trials": "faults/test_criteria.py",
}


def modules() -> list[str]:
    """All that define something, as paths below the package; a package's own part by its name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE)
        statements = ast.parse(path.read_text()).body
        if part.name != "__init__.py":
            found.append(str(part.with_suffix("")))
        elif any(isinstance(made, (ast.FunctionDef, ast.ClassDef)) for made in statements):
            found.append(str(part.parent))
    return found


def own_tests(module: str) -> Path | None:
    """The module's own, which has the package's name too where two modules share theirs."""
    folder, name = TESTS / Path(module).parent, Path(module).name
    for own in (f"test_{name}.py", f"test_{folder.name}_{name}.py"):
        if (folder / own).is_file():
            return folder / own
    return None


@pytest.mark.parametrize("module", modules())
def test_a_module_has_its_tests(module):
    own, elsewhere = own_tests(module), ELSEWHERE.get(module)
    if own:
        assert elsewhere is None, f"{module} has {own.name}: take it out of the table"
    else:
        assert elsewhere, f"no test_{Path(module).name}.py, and the table doesn't name another"
        assert (TESTS / elsewhere).exists()


def test_the_table_names_modules():
    assert set(ELSEWHERE) <= set(modules())


def test_no_two_files_of_the_tests_share_a_name():
    """pytest imports them by name, from any folder."""
    count = Counter(path.name for path in TESTS.rglob("*.py"))
    assert [name for name, times in count.items() if times > 1] == ["conftest.py"]
