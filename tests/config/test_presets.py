from __future__ import annotations

from cgd_wrap import CGDConfig
from cgd_wrap.config.settings import REPAIRED


def test_paper_has_the_references_numbers():
    paper = CGDConfig.paper()
    expected = {
        "sigma_clean": 0.2, "sigma_triggered": 0.1, "guidance_weight": 5e-4,
        "unlearning_weight": 0.025, "temperature": 3.0, "epsilon": 1e-6, "corner_power": 0.0,
        "normalise_by": "batch", "keep_mixed": True, "scaled_clip_logits": False,
        "prompts": "a photo of a {}", "suspicious_epochs": 5, "suspicious_runs": 3,
        "suspicious_optimizer": "adam", "suspicious_learning_rate": 3e-4,
        "suspicious_schedule": "constant",
        "suspicious_weight_decay": 5e-4, "suspicious_batch_size": 256, "tolerance": 1.0,
        "epochs": 10, "batch_size": 256, "learning_rate": 0.01, "momentum": 0.0,
        "weight_decay": 5e-4, "lr_schedule": "constant", "max_batches_per_epoch": 200,
        "doubt_labels": False, "reference_scores": True,
    }  # fmt: skip
    assert {name: getattr(paper, name) for name in expected} == expected
    assert CGDConfig.paper(epochs=3) == paper.replace(epochs=3)


def test_from_scratch_is_what_the_default_is_for_an_untrained_model():
    scratch, default = CGDConfig.from_scratch(epochs=3), CGDConfig(epochs=3)
    assert default.depends_on_model
    assert not scratch.depends_on_model
    assert scratch.decided(trained=True) == scratch == default.decided(trained=False)
    repaired = default.decided(trained=True)
    assert repaired.unlearning_weight > scratch.unlearning_weight
    assert repaired.early_exposure > scratch.early_exposure == 0
    assert scratch.replace(**dict.fromkeys(REPAIRED)) == default


def test_the_paper_does_not_ask_what_the_model_knows():
    assert not CGDConfig.paper().depends_on_model
