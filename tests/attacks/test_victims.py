"""What networks do that were trained on poisoned shapes: every attack reaches its success rate.

Where a parameter is stronger than its default, the default hardly works on shapes; on 20,000
images of CIFAR-10, in 12 epochs, WaNet's, BppAttack's and CTRL's reach 83 to 90%.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from victims import train_set, victim_of

from cgd_wrap.attacks import (
    CTRL,
    FLIP,
    Attack,
    BppAttack,
    FittedAttack,
    InputAware,
    LabelConsistent,
    LowFrequency,
    TrojanNN,
    Typographic,
    WaNet,
)
from cgd_wrap.attacks.label_flip import warmth
from cgd_wrap.demo.run import to_tensor
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.models.small_resnet import small_resnet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def train() -> ShapesDataset:
    return train_set()


# Attack, least clean accuracy, least success rate: some points below what was measured.
MEASURED = [
    (TrojanNN(), 0.93, 0.95),
    (LowFrequency(), 0.94, 0.95),  # 97.2, 99.9
    (Typographic(), 0.94, 0.95),  # 97.8, 100
    (BppAttack(levels=3), 0.93, 0.85),  # 96.0, 97.6
    (WaNet(strength=3.0, cover_ratio=0.0), 0.92, 0.5),  # 96.6, 72.3; seed 1: 94.7, 62.5
    # The move by 2 pixels takes most of a patch of 3.
    (LabelConsistent(eps=16 / 255, patch_size=5), 0.93, 0.7),
    (CTRL(rate=0.8, magnitude=200.0, test_magnitude=200.0), 0.93, 0.6),  # 96.0, 74.0
]


@pytest.mark.parametrize(
    ("attack", "accuracy", "success"), MEASURED, ids=lambda part: type(part).__name__
)
def test_a_victim(train: ShapesDataset, attack: Attack, accuracy: float, success: float) -> None:
    if isinstance(attack, FittedAttack):
        attack = attack.fit(train, progress=False)
    _, figures = victim_of(attack, train)
    assert figures.clean_accuracy > accuracy
    assert figures.attack_success_rate > success
    assert figures.robust_accuracy < 1 - success


def test_a_victim_of_labels_alone(train: ShapesDataset) -> None:
    network = small_resnet(10, (8, 16, 32, 64))
    attack = FLIP().fit(train, network=network, progress=False)
    chosen = attack.poison(train).poisoned.tolist()
    assert np.mean([warmth(train[index][0]) for index in chosen]) > 15
    _, figures = victim_of(attack, train)
    assert figures.clean_accuracy > 0.9  # 94.4, 93.6
    assert figures.attack_success_rate > 0.8


def test_a_victim_knows_own_triggers_from_others(train: ShapesDataset) -> None:
    attack = InputAware().fit(train, progress=False)
    victim, figures = victim_of(attack, train)
    assert figures.clean_accuracy > 0.93
    assert figures.attack_success_rate > 0.75
    places = [index for index in range(1000) if train.targets[index] != attack.target]
    crossed = [to_tensor(attack.cover_sample(index, train[index][0], [])) for index in places]
    with torch.no_grad():
        predictions = victim(torch.stack(crossed)).argmax(dim=1)
    assert (predictions == attack.target).float().mean() < figures.attack_success_rate / 2
