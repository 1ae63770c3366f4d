"""Signs, in a scan's own results, that CLIP can't be trusted with these classes.

Nothing here looks at an image again. An attack must not set these off: it takes labels away from
CLIP in its target class (half of them, or most where classes are many), but the class' true
samples still get their name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.config.calibration import DEFAULT, Calibration
from cgd_wrap.functional import share_by_class
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.label_scores import LabelScores

LISTED = 8  # classes in one message, at most


def disagreement(
    figures: ClipAgreement, num_classes: int, calibration: Calibration = DEFAULT
) -> list[str]:
    """CLIPs that agree with hardly more labels than chance would.

    Args:
        figures: of the scan.
        num_classes: C.
        calibration: thresholds.
    """
    chance = 1 / num_classes
    least = chance + calibration.least_agreement * (1 - chance)
    return [
        f"{name}'s first choice is the given label for only {agreement:.1%} of the samples "
        f"(chance: {chance:.1%}). Are the class names in the labels' order, and does this CLIP "
        "know them? The split is not to be trusted."
        for name, agreement in zip(figures.names, figures.agreement, strict=True)
        if agreement < least
    ]


def unknown_classes(
    name: str,
    choice: Int[Tensor, "n"],
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[str]:
    """Classes that CLIP doesn't give their name, though it does so for others.

    Either almost never: the hits must be few among the class' samples and beside the other
    classes' hits, since an attack that fills a small class with poison leaves it the hits of its
    true samples. Or less than half as often as another class' name, which that class doesn't get
    either: swapped names, of classes that CLIP mixes up besides.

    Args:
        name: of the CLIP.
        choice: its first choices.
        labels: given labels.
        class_names: C names.
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
        f"{name} doesn't give these classes their name: {described}{more}; the median class gets "
        f"it for {float(share[known].median()):.0%} of its samples. In these classes right labels "
        "look wrong, and suspicions and clean split are not to be trusted. Are the names in the "
        "labels' order? Try other class_names, or several prompts (prompts='openai'), or another "
        "CLIP."
    ]


def _swapped(taken: Mapping[int, Int[Tensor, "classes"]], calibration: Calibration) -> set[int]:
    """Classes that mostly get the name of another of them, at least twice as often as their own.

    Args:
        taken: how often each name is given, by label.
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
) -> list[str]:
    """Names that CLIP gives to far more samples than are labelled so.

    Measured against the labels' share or an even one, whichever is larger: an attack that relabels
    a class' samples doesn't make its name too frequent.

    Args:
        name: of the CLIP.
        choice: its first choices.
        labels: given labels.
        class_names: C names.
        calibration: thresholds.
    """
    number = len(class_names)
    given = torch.bincount(choice, minlength=number) / len(choice)
    labelled = torch.bincount(labels, minlength=number) / len(labels)
    fair = labelled.clamp(min=1 / number)
    greedy = given > calibration.greedy_times * fair
    greedy &= given - fair > calibration.greedy_excess
    return [
        f"{name} takes {float(given[label]):.0%} of the samples for {class_names[label]!r}, "
        f"{float(labelled[label]):.0%} are labelled so: is the name too general, or does it stand "
        "for something else, too? Try a more exact name, or several prompts (prompts='openai')."
        for label in greedy.nonzero().squeeze(1).tolist()[:LISTED]
    ]


def discord(
    figures: ClipAgreement,
    scores: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
    calibration: Calibration = DEFAULT,
) -> list[str]:
    """Two CLIPs that are right on different samples, or of which only one knows a class.

    If their errors were independent, CLIPs that agree with a and b of the labels would agree with
    each other on a b of the samples at least; what is hard for one being hard for the other, too,
    they agree on more.

    Args:
        figures: of the scan.
        scores: of the CLIPs, on the samples that count.
        labels: given labels.
        class_names: C names.
        calibration: thresholds.
    """
    found = []
    shares = [share_by_class(one_scores.choice == labels, labels) for one_scores in scores]
    size = torch.bincount(labels)
    for one, other in permutations(range(len(scores)), 2):
        names = figures.names[one], figures.names[other]
        agreement = figures.agreement[one], figures.agreement[other]
        both = float((scores[one].choice == scores[other].choice).double().mean())
        if one < other and both < agreement[0] * agreement[1] - calibration.discord:
            found.append(
                f"{names[0]} and {names[1]} agree with {agreement[0]:.0%} and {agreement[1]:.0%} "
                f"of the labels, but with each other on only {both:.0%} of the samples: one of "
                "them may be backdoored, or not know some classes. Leave out the one that you "
                "trust less, and compare."
            )
        gap = shares[one] - shares[other]
        unusual = gap - max(0.0, agreement[0] - agreement[1]) >= calibration.unusual_gap
        apart = (
            ((gap >= calibration.class_gap) & unusual & (size >= calibration.fewest_named))
            .nonzero()
            .squeeze(1)
            .tolist()
        )
        found += [
            f"{names[0]} agrees with {float(shares[one][label]):.0%} of the labels "
            f"{class_names[label]!r}, {names[1]} with {float(shares[other][label]):.0%}: either "
            "the second doesn't know this class, or the first is backdoored and vouches for poison."
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
) -> list[str]:
    """CLIPs that agree with the labels of just the samples that look poisoned, where others don't.

    Args:
        names: of the CLIPs.
        scores: theirs, on the samples that count.
        labels: given labels.
        poison: probability that each sample is poisoned, in [0, 1].
        class_names: C names.
        calibration: thresholds.
    """
    if len(scores) < 2:
        return []
    found = []
    for label in labels[poison > calibration.sure_of_poison].unique().tolist():
        members = (poison > calibration.sure_of_poison) & (labels == label)
        shares = [float((v.choice[members] == label).double().mean()) for v in scores]
        least = shares.index(min(shares))
        if int(members.sum()) < calibration.fewest_named or shares[least] > calibration.contradicts:
            continue
        found += [
            f"{name} takes {share:.0%} of the {int(members.sum())} samples labelled "
            f"{class_names[label]!r} that look poisoned for just that, {names[least]} "
            f"{shares[least]:.0%}: {name} may itself be backdoored with the same trigger. Leave it "
            "out."
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
) -> list[str]:
    """All that seems wrong with the CLIPs, a message each.

    Args:
        figures: of the scan.
        scores: of the CLIPs.
        labels: given labels.
        valid: False for samples that don't count.
        poison: probability that each sample is poisoned, in [0, 1].
        class_names: C names.
        calibration: thresholds.
    """
    seen = [LabelScores(v.score[valid], v.choice[valid], {}) for v in scores]
    labels, poison = labels[valid], poison[valid]
    found = disagreement(figures, len(class_names), calibration)
    for name, one_scores in zip(figures.names, seen, strict=True):
        found += unknown_classes(name, one_scores.choice, labels, class_names, calibration)
        found += names_given_too_often(name, one_scores.choice, labels, class_names, calibration)
    if len(seen) > 1:
        found += discord(figures, seen, labels, class_names, calibration)
        found += shared_backdoor(figures.names, seen, labels, poison, class_names, calibration)
    return found
