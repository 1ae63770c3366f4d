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

from cgd_wrap.functional import share_by_class
from cgd_wrap.split.clip_agreement import ClipAgreement
from cgd_wrap.split.label_scores import LabelScores

NEVER = 0.05  # share of its samples up to which CLIP "almost never" gives a class its name
SWAPPED = 0.3  # share of its samples that get a swapped class' name
KNOWN = 0.3  # share from which it may be said to know a class
FEW = 30  # samples, below which a class' shares say little
TOO_MANY, EXCESS = 3.0, 0.02  # times as often as labelled; and by this share of all samples
WORSE_THAN_CHANCE = 0.05  # share of samples; of agreement below that of independent errors
GAP, UNUSUAL = 0.4, 0.3  # between two CLIPs' shares of a class; beyond that of all classes
SURE = 0.9  # probability of poison
VOUCHES, DENIES = 0.6, 0.3  # shares of the samples that look poisoned
LISTED = 8  # classes in a message


def disagreement(figures: ClipAgreement, num_classes: int) -> list[str]:
    """CLIPs that agree with hardly more labels than chance would.

    Args:
        figures: of the scan.
        num_classes: C.
    """
    chance = 1 / num_classes
    # A fifth of the way from chance to certainty: below it, the split can't tell wrong from right.
    return [
        f"{name}'s first choice is the given label for only {agreement:.1%} of the samples "
        f"(chance: {chance:.1%}). Are the class names in the labels' order, and does this CLIP "
        "know them? The split is not to be trusted."
        for name, agreement in zip(figures.names, figures.agreement, strict=True)
        if agreement < chance + 0.2 * (1 - chance)
    ]


def unknown_classes(
    name: str, choice: Int[Tensor, "n"], labels: Int[Tensor, "n"], class_names: Sequence[str]
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
    """
    number = len(class_names)
    size = torch.bincount(labels, minlength=number)
    hits = torch.bincount(labels[choice == labels], minlength=number)
    share = hits / size.clamp(min=1)
    known = share >= KNOWN
    if not known.any():
        return []
    rare = hits < 0.1 * hits[known].double().quantile(0.5)
    taken = {
        label: torch.bincount(choice[labels == label], minlength=number)
        for label in ((size >= FEW) & (share < 1 / 3)).nonzero().squeeze(1).tolist()
    }
    lost = {label for label in taken if share[label] < NEVER and rare[label]} | _swapped(taken)
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


def _swapped(taken: Mapping[int, Int[Tensor, "classes"]]) -> set[int]:
    """Classes that mostly get the name of another of them, at least twice as often as their own.

    Args:
        taken: how often each name is given, by label.
    """
    rival = {
        label: int(counts.argmax())
        for label, counts in taken.items()
        if counts.max() >= max(2 * int(counts[label]), SWAPPED * int(counts.sum()))
    }
    while open_ended := [label for label, other in rival.items() if other not in rival]:
        for label in open_ended:
            del rival[label]
    return set(rival)


def names_given_too_often(
    name: str, choice: Int[Tensor, "n"], labels: Int[Tensor, "n"], class_names: Sequence[str]
) -> list[str]:
    """Names that CLIP gives to far more samples than are labelled so.

    Measured against the labels' share or an even one, whichever is larger: an attack that relabels
    a class' samples doesn't make its name too frequent.

    Args:
        name: of the CLIP.
        choice: its first choices.
        labels: given labels.
        class_names: C names.
    """
    number = len(class_names)
    given = torch.bincount(choice, minlength=number) / len(choice)
    labelled = torch.bincount(labels, minlength=number) / len(labels)
    fair = labelled.clamp(min=1 / number)
    greedy = (given > TOO_MANY * fair) & (given - fair > EXCESS)
    return [
        f"{name} takes {float(given[label]):.0%} of the samples for {class_names[label]!r}, "
        f"{float(labelled[label]):.0%} are labelled so: is the name too general, or does it stand "
        "for something else, too? Try a more exact name, or several prompts (prompts='openai')."
        for label in greedy.nonzero().squeeze(1).tolist()[:LISTED]
    ]


def discord(
    figures: ClipAgreement,
    verdicts: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    class_names: Sequence[str],
) -> list[str]:
    """Two CLIPs that are right on different samples, or of which only one knows a class.

    If their errors were independent, CLIPs that agree with a and b of the labels would agree with
    each other on a b of the samples at least; what is hard for one being hard for the other, too,
    they agree on more.

    Args:
        figures: of the scan.
        verdicts: of the CLIPs, on the samples that count.
        labels: given labels.
        class_names: C names.
    """
    found = []
    shares = [share_by_class(verdict.choice == labels, labels) for verdict in verdicts]
    size = torch.bincount(labels)
    for one, other in permutations(range(len(verdicts)), 2):
        names = figures.names[one], figures.names[other]
        agreement = figures.agreement[one], figures.agreement[other]
        both = float((verdicts[one].choice == verdicts[other].choice).double().mean())
        if one < other and both < agreement[0] * agreement[1] - WORSE_THAN_CHANCE:
            found.append(
                f"{names[0]} and {names[1]} agree with {agreement[0]:.0%} and {agreement[1]:.0%} "
                f"of the labels, but with each other on only {both:.0%} of the samples: one of "
                "them may be backdoored, or not know some classes. Leave out the one that you "
                "trust less, and compare."
            )
        gap = shares[one] - shares[other]
        unusual = gap - max(0.0, agreement[0] - agreement[1]) >= UNUSUAL
        apart = ((gap >= GAP) & unusual & (size >= FEW)).nonzero().squeeze(1).tolist()
        found += [
            f"{names[0]} agrees with {float(shares[one][label]):.0%} of the labels "
            f"{class_names[label]!r}, {names[1]} with {float(shares[other][label]):.0%}: either "
            "the second doesn't know this class, or the first is backdoored and vouches for poison."
            for label in apart[:LISTED]
        ]
    return found


def vouching(
    names: Sequence[str],
    verdicts: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    poison: Float[Tensor, "n"],
    class_names: Sequence[str],
) -> list[str]:
    """CLIPs that agree with the labels of just the samples that look poisoned, where others don't.

    Args:
        names: of the CLIPs.
        verdicts: theirs, on the samples that count.
        labels: given labels.
        poison: probability that each sample is poisoned, in [0, 1].
        class_names: C names.
    """
    if len(verdicts) < 2:
        return []
    found = []
    for label in labels[poison > SURE].unique().tolist():
        members = (poison > SURE) & (labels == label)
        shares = [float((v.choice[members] == label).double().mean()) for v in verdicts]
        least = shares.index(min(shares))
        if int(members.sum()) < FEW or shares[least] > DENIES:
            continue
        found += [
            f"{name} takes {share:.0%} of the {int(members.sum())} samples labelled "
            f"{class_names[label]!r} that look poisoned for just that, {names[least]} "
            f"{shares[least]:.0%}: {name} may itself be backdoored with the same trigger. Leave it "
            "out."
            for name, share in zip(names, shares, strict=True)
            if share >= VOUCHES
        ]
    return found


def teacher_warnings(
    figures: ClipAgreement,
    verdicts: Sequence[LabelScores],
    labels: Int[Tensor, "n"],
    valid: Bool[Tensor, "n"],
    poison: Float[Tensor, "n"],
    class_names: Sequence[str],
) -> list[str]:
    """All that seems wrong with the CLIPs, a message each.

    Args:
        figures: of the scan.
        verdicts: of the CLIPs.
        labels: given labels.
        valid: False for samples that don't count.
        poison: probability that each sample is poisoned, in [0, 1].
        class_names: C names.
    """
    seen = [LabelScores(v.score[valid], v.choice[valid], {}) for v in verdicts]
    labels, poison = labels[valid], poison[valid]
    found = disagreement(figures, len(class_names))
    for name, verdict in zip(figures.names, seen, strict=True):
        found += unknown_classes(name, verdict.choice, labels, class_names)
        found += names_given_too_often(name, verdict.choice, labels, class_names)
    if len(seen) > 1:
        found += discord(figures, seen, labels, class_names)
        found += vouching(figures.names, seen, labels, poison, class_names)
    return found
