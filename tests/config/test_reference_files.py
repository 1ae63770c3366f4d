from __future__ import annotations

import logging

import pytest

from cgd_wrap import CGDConfig

REFERENCE_YAML = """
alpha: 5e-4
beta: 0.03
sigma1: 0.25
sigma2: 0.05
temperature: 2
tolerance: 1.5
epochs: 7
batch_size: 128
lr: 1e-2
wd: 0.0005
lr_scheduler: CosineAnnealingLR
amp: true
sgd_momentum: 0.9
random_seed: 3
prefetch: false
device: cuda:0
num_workers: 4
dataset: cifar10
dataset_path: ./data
"""


def test_reference_keys_are_read_and_start_from_its_preset(yaml_file, caplog):
    with caplog.at_level(logging.INFO):
        config = CGDConfig.from_yaml(yaml_file(REFERENCE_YAML))
    assert "dataset, dataset_path, device, num_workers" in caplog.text
    assert config == CGDConfig.paper(
        guidance_weight=5e-4, unlearning_weight=0.03, sigma_clean=0.25, sigma_triggered=0.05,
        temperature=2, tolerance=1.5, epochs=7, batch_size=128, learning_rate=0.01,
        weight_decay=0.0005, lr_schedule="cosine", mixed_precision="fp16", momentum=0.9, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gamma: 0.1", "unknown settings .'gamma'."),
        ("prefetch: true", "prefetch"),
        ("lr_scheduler: ReduceLROnPlateau", "lr_scheduler"),
        ("learning_rate: much", "learning_rate='much'"),
    ],
)
@pytest.mark.parametrize("rest", ["alpha: 0.1", "epochs: 3"])
@pytest.mark.usefixtures("unchecked")
def test_unknown_and_ignored_settings_are_refused(line, message, rest, yaml_file):
    with pytest.raises(ValueError, match=message):
        CGDConfig.from_yaml(yaml_file(f"{rest}\n{line}\n"))
