"""Warning, by a scan's own results, that CLIP can't be trusted with the classes.

No image is looked at again. An attack must not set these warnings off. Under attack, CLIP disagrees
with many labels of the target class (half of the labels, or most if there are many classes), but
CLIP still gives the true samples of the class their name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.functional import share_by_class
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.doubts import LISTED, Doubt
from cgd_wrap.split.label_scores import LabelScores

COMPARE = "Leave out the one that you trust less, and compare."


def disagreement(
    figures: ClipAgreement, num_classes: int, calibration: Calibration = DEFAULT
) -> list[Doubt]:
    """Warn of CLIPs that agree with hardly more labels than chance would.

    Args:
        figures: agreement of the scan's CLIPs.
        num_classes: number of classes.
        calibration: thresholds.
    """
    chance = 1 / num_classes
    least = chance + calibration.least_agreement * (1 - chance)
    return [
        Doubt(
            "clip_does_not_know_classes",
            f"{name}'s first choice is the given label for only {agreement:.1%} of the samples "
            f"(chance: {chance:.1%}): the split is not to be trusted.",
            "Are the class names in the labels' order, and does this CLIP know them?",
        )
        for name, agreement in zip(figures.names, figures.agreement, strict=True)
        if agreement < least
    ]


def unknown_classes(
    name: str,
    choice: Int[Tensor, "n"],
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[Doubt]:
    """Warn of classes whose samples don't get the class' name from CLIP, as other classes' do.

    A class is listed in two cases:

    - CLIP almost never gives the name. The hits (samples that get the name of their class) must be
      few both for the class' size and beside other classes' hits: in a small class that an attack
      fills with poison, the true samples still get their name.
    - The class' name seems swapped: less than half as often as another class' name is given, and
      the other class doesn't get its name either. CLIP may mix the classes up besides.

    Args:
        name: name of the CLIP.
        choice: the CLIP's first choice for each sample.
        labels: given labels.
        class_names: names of the classes, in the order of the labels.
        calibration: thresholds.
    """
    number = len(class_names)
    size = torch.bincount(labels, minlength=number)
    hits = torch.bincount(labels[choice == labels], minlength=number)
    share = hits / size.clamp(min=1)
    known = share >= calibration.known_by_name
    if not known.any():
        return []
    rare = hits < calibration.rarely_named * hits[known].double().quantile(0.5)
    looked_at = size >= calibration.fewest_named
    taken = {
        label: torch.bincount(choice[labels == label], minlength=number)
        for label in (looked_at & (share < calibration.doubtful_name)).nonzero().squeeze(1).tolist()
    }
    never = {n for n in taken if share[n] < calibration.never_named and rare[n]}
    lost = never | _swapped(taken, calibration)
    if not lost:
        return []
    described = ", ".join(
        f"{class_names[label]!r} ({float(share[label]):.1%} of its {int(size[label])} samples; "
        f"{float(taken[label].max() / size[label]):.0%} are taken for "
        f"{class_names[int(taken[label].argmax())]!r})"
        for label in sorted(lost)[:LISTED]
    )
    more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return [
        Doubt(
            "clip_does_not_know_classes",
            f"{name} doesn't give these classes their name: {described}{more}; the median class "
            f"gets it for {float(share[known].median()):.0%} of its samples. In these classes "
            "right labels look wrong, and suspicions and clean split are not to be trusted.",
            "Are the names in the labels' order? Try other class_names, or several prompts "
            "(prompts='openai'), or another CLIP.",
            tuple(sorted(lost)),
        )
    ]


def _swapped(taken: Mapping[int, Int[Tensor, "classes"]], calibration: Calibration) -> set[int]:
    """Find classes whose samples get another such class' name at least twice as often as their own.

    Args:
        taken: for each class looked at, how often CLIP gives its samples each name.
        calibration: thresholds.
    """
    rival = {
        label: int(counts.argmax())
        for label, counts in taken.items()
        if counts.max()
        >= max(
            calibration.swapped_times * int(counts[label]),
            calibration.swapped_name * int(counts.sum()),
        )
    }
    while open_ended := [label for label, other in rival.items() if other not in rival]:
        for label in open_ended:
            del rival[label]
    return set(rival)


def names_given_too_often(
    name: str,
    choice: Int[Tensor, "n"],
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[Doubt]:
    """Warn of class names that CLIP gives to far more samples than have the class' label.

    The share of samples that get a name is compared with the share that has the label, or with an
    even share, if larger. So an attack that relabels samples of a class causes no warning.

    Args:
        name: name of the CLIP.
        choice: the CLIP's first choice for each sample.
        labels: given labels.
        class_names: names of the classes, in the order of the labels.
        calibration: thresholds.
    """
    number = len(class_names)
    given = torch.bincount(choice, minlength=number) / len(choice)
    labelled = torch.bincount(labels, minlength=number) / len(labels)
    fair = labelled.clamp(min=1 / number)
    greedy = given > calibration.greedy_times * fair
    greedy &= given - fair > calibration.greedy_excess
    return [
        Doubt(
            "name_given_too_often",
            f"{name} takes {float(given[label]):.0%} of the samples for {class_names[label]!r}, "
            f"{float(labelled[label]):.0%} are labelled so: is the name too general, or does it "
            "stand for something else, too?",
            "Try a more exact name, or several prompts (prompts='openai').",
            (label,),
        )
        for label in greedy.nonzero().squeeze(1).tolist()[:LISTED]
    ]


def discord(
    figures: ClipAgreement,
    scores: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[Doubt]:
    """Warn of two CLIPs that agree too little with each other, or of which only one knows a class.

    If their errors were independent, two CLIPs that agree with shares a and b of the labels would
    agree with each other on at least a b of the samples. Honest CLIPs agree on more, since a sample
    that is hard for one CLIP is hard for the other, too.

    Args:
        figures: agreement of the scan's CLIPs.
        scores: label scores of each CLIP, on the samples that count.
        labels: given labels.
        class_names: names of the classes, in the order of the labels.
        calibration: thresholds.
    """
    found: list[Doubt] = []
    shares = [share_by_class(one_scores.choice == labels, labels) for one_scores in scores]
    size = torch.bincount(labels)
    for one, other in permutations(range(len(scores)), 2):
        names = figures.names[one], figures.names[other]
        agreement = figures.agreement[one], figures.agreement[other]
        both = float((scores[one].choice == scores[other].choice).double().mean())
        if one < other and both < agreement[0] * agreement[1] - calibration.discord:
            why = (
                f"{names[0]} and {names[1]} agree with {agreement[0]:.0%} and {agreement[1]:.0%} "
                f"of the labels, but with each other on only {both:.0%} of the samples: one of "
                "them may be backdoored, or not know some classes."
            )
            found.append(Doubt("clips_disagree", why, COMPARE))
        gap = shares[one] - shares[other]
        unusual = gap - max(0.0, agreement[0] - agreement[1]) >= calibration.unusual_gap
        apart = (
            ((gap >= calibration.class_gap) & unusual & (size >= calibration.fewest_named))
            .nonzero()
            .squeeze(1)
            .tolist()
        )
        found += [
            Doubt(
                "clips_disagree",
                f"{names[0]} agrees with {float(shares[one][label]):.0%} of the labels "
                f"{class_names[label]!r}, {names[1]} with {float(shares[other][label]):.0%}: "
                "either the second doesn't know this class, or the first is backdoored and "
                "vouches for poison.",
                COMPARE,
                (label,),
            )
            for label in apart[:LISTED]
        ]
    return found


def shared_backdoor(
    names: Sequence[str],
    scores: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    poison: Float[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[Doubt]:
    """Warn of CLIPs that agree with the labels of samples that look poisoned, where others don't.

    Args:
        names: name of each CLIP.
        scores: label scores of each CLIP, on the samples that count.
        labels: given labels.
        poison: probability that each sample is poisoned, in [0, 1].
        class_names: names of the classes, in the order of the labels.
        calibration: thresholds.
    """
    if len(scores) < 2:
        return []
    found: list[Doubt] = []
    for label in labels[poison > calibration.sure_of_poison].unique().tolist():
        members = (poison > calibration.sure_of_poison) & (labels == label)
        shares = [float((v.choice[members] == label).double().mean()) for v in scores]
        least = shares.index(min(shares))
        if int(members.sum()) < calibration.fewest_named or shares[least] > calibration.contradicts:
            continue
        found += [
            Doubt(
                "clip_may_be_backdoored",
                f"{name} takes {share:.0%} of the {int(members.sum())} samples labelled "
                f"{class_names[label]!r} that look poisoned for just that, {names[least]} "
                f"{shares[least]:.0%}: {name} may itself be backdoored with the same trigger.",
                "Leave it out.",
                (label,),
            )
            for name, share in zip(names, shares, strict=True)
            if share >= calibration.vouches
        ]
    return found


def clip_warnings(
    figures: ClipAgreement,
    scores: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    valid: Bool[Tensor, "n"],
    poison: Float[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[Doubt]:
    """Collect all warnings of this module about a scan's CLIPs.

    Args:
        figures: agreement of the scan's CLIPs.
        scores: label scores of each CLIP.
        labels: given labels.
        valid: False for samples that don't count.
        poison: probability that each sample is poisoned, in [0, 1].
        class_names: names of the classes, in the order of the labels.
        calibration: thresholds.
    """
    seen = [replace(v, score=v.score[valid], choice=v.choice[valid]) for v in scores]
    labels, poison = labels[valid], poison[valid]
    found = disagreement(figures, len(class_names), calibration)
    for name, one_scores in zip(figures.names, seen, strict=True):
        found += unknown_classes(name, one_scores.choice, labels, class_names, calibration)
        found += names_given_too_often(name, one_scores.choice, labels, class_names, calibration)
    if len(seen) > 1:
        found += discord(figures, seen, labels, class_names, calibration)
        found += shared_backdoor(figures.names, seen, labels, poison, class_names, calibration)
    return found
