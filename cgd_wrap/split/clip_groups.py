"""Warning of a CLIP that is itself backdoored, by the CLIP's own image features.

Among the images of a class, a backdoored CLIP holds the triggered images close together, and apart
from the true images of the class; and the suspicious model learns just the triggered images fast. A
test with changed prompts, after BDetCLIP (arXiv 2405.15269), was measured, too, and left out: with
the text towers at hand, triggered images reacted more to changed prompts, not less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.functional import auroc
from cgd_wrap.scan.stored_logits import StoredLogits
from cgd_wrap.split.doubts import Doubt

MOST, MOST_IN_ALL = 1000, 200_000  # largest number of samples looked at, per class and in all
ROUNDS = 20  # of two-means (k-means with two groups)


def fast_groups(
    name: str,
    clip: StoredLogits,
    labels: Int[Tensor, "n"],
    looked_at: Bool[Tensor, "n"],
    suspicious_rank: Float[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[Doubt]:
    """Warn of classes whose features form two groups, one of which was learned faster.

    Args:
        name: name of the CLIP.
        clip: pass of the CLIP; without stored image features there is no warning.
        labels: given labels.
        looked_at: samples whose label CLIP agrees with, in classes that no attack seems to aim at.
        suspicious_rank: rank of the label's NLL under the suspicious model, in (0, 1].
        class_names: names of the classes, in the order of the labels.
        calibration: thresholds.

    Returns:
        A warning of each such class.
    """
    chosen = _some_of_each(labels, looked_at, min(MOST, MOST_IN_ALL // len(class_names)))
    features = clip.features(chosen)
    if features is None:
        return []
    labels, suspicious_rank = labels[chosen], suspicious_rank[chosen]
    found = []
    for label in labels.unique().tolist():
        members = labels == label
        if int(members.sum()) < calibration.fewest_grouped:
            continue
        fast = two_groups(features[members])
        apart = auroc(-suspicious_rank[members], fast)
        if apart < 0.5:
            fast, apart = ~fast, 1 - apart
        if apart >= calibration.group_apart:
            found.append(
                Doubt(
                    "clip_may_be_backdoored",
                    f"{name} holds {float(fast.double().mean()):.0%} of the samples labelled "
                    f"{class_names[label]!r} that it agrees with apart from the rest, and just "
                    f"these were learned fast (AUROC {apart:.2f}): {name} may itself be "
                    "backdoored with the trigger in your data, and vouch for the poison.",
                    "Look at both groups; compare with another CLIP.",
                    (label,),
                )
            )
    return found


def two_groups(features: Float[Tensor, "m dim"]) -> Bool[Tensor, "m"]:
    """Divide features of unit norm into two groups by two-means.

    The groups start as the two sides of the features' first principal component.
    """
    features = F.normalize(features, dim=1)
    centred = features - features.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    group: Tensor = centred @ directions[0] > 0
    for _ in range(ROUNDS):
        if not bool(group.any()) or bool(group.all()):
            break
        centres = torch.stack([features[~group].mean(dim=0), features[group].mean(dim=0)])
        group = torch.cdist(features, centres).argmin(dim=1).bool()
    return group


def _some_of_each(
    labels: Int[Tensor, "n"], looked_at: Bool[Tensor, "n"], most: int
) -> Int[Tensor, "k"]:
    """Choose up to ``most`` of the samples looked at in each class, evenly spaced; ascending."""
    parts = [torch.empty(0, dtype=torch.int64)]
    for label in labels[looked_at].unique():
        members = ((labels == label) & looked_at).nonzero().squeeze(1)
        evenly = torch.linspace(0, len(members) - 1, min(most, len(members)))
        parts.append(members[evenly.long()])
    return torch.cat(parts).sort().values
