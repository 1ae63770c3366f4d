"""Two older detectors of poison, to compare with the guard on the same victim: for reproduce.py.

The detectors, spectral signatures (arXiv 1811.00636) and activation clustering (arXiv 1811.03728),
come from IBM's Adversarial Robustness Toolbox: ``pip install adversarial-robustness-toolbox``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Penultimate(nn.Module):
    """A classifier cut off before its last linear layer: images -> features [B, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.features = model, torch.empty(0)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        """Features of the images: the inputs of the last linear layer."""
        self.model(images)
        return self.features


def kept_by(method: str, victim: nn.Module, dataset: Any, poison_rate: float) -> Tensor:
    """Run a detector of poison on a data set: the samples that it takes for clean, bool [N].

    Args:
        method: name of the detector, ``"spectral"`` or ``"activation"``.
        victim: network trained on the data set.
        dataset: (image tensor, label) tuples, without augmentation.
        poison_rate: true share of poisoned samples; only the spectral detector uses the rate.
    """
    from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
    from art.estimators.classification import PyTorchClassifier

    images, labels = (np.stack(part) for part in zip(*dataset, strict=True))
    num_classes = int(labels.max()) + 1
    classifier = PyTorchClassifier(
        model=nn.Sequential(Penultimate(victim.eval()), nn.Identity()),
        loss=nn.CrossEntropyLoss(),
        input_shape=images.shape[1:],
        nb_classes=num_classes,
    )
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    if method == "spectral":
        detector = SpectralSignatureDefense(
            classifier, images, one_hot, expected_pp_poison=min(poison_rate, 0.66)
        )
        _, clean = detector.detect_poison()
    else:
        detector = ActivationDefence(classifier, images, one_hot)
        # One of the paper's rules: a class holds poison if its two clusters are well apart.
        _, clean = detector.detect_poison(
            nb_clusters=2, nb_dims=10, reduce="PCA", cluster_analysis="silhouette-scores"
        )
    return torch.tensor(clean).bool()
