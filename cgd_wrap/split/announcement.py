"""Logging what a scan found, and refusing a split that can't be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from cgd_wrap.config import CGDConfig
from cgd_wrap.errors import DatasetError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.split.doubts import without_clean_samples
from cgd_wrap.split.result import ScanResult

logger = escaped_logger(__name__)


def announce(result: ScanResult, class_names: Sequence[str], config: CGDConfig) -> None:
    """Check that every class has clean samples to train on, and log what the scan found.

    Raises:
        DatasetError: a class has no clean sample, and ``config`` doesn't allow that.
    """
    check_clean_classes(
        result.labels, result.split.clean, class_names, allow_missing=config.allow_missing_classes
    )
    for line in _lines(result, class_names, config):
        logger.info("%s", line)


def log_warnings(result: ScanResult) -> None:
    """Log the warnings that a scan's CLIPs can't be trusted."""
    for warning in result.warnings:
        logger.warning("%s", warning)


def _lines(result: ScanResult, class_names: Sequence[str], config: CGDConfig) -> Iterator[str]:
    counts = ", ".join(f"{n} {name}" for name, n in result.split.counts().items() if n)
    yield f"Split of {len(result.labels)} samples: {counts}."
    if result.class_knowledge is not None:
        yield (
            f"On clean samples the model is {100 * max(0.0, result.class_knowledge):.0f}% of the "
            f"way from chance to perfect: it is "
            f"{'repaired' if result.trained else 'trained from scratch'}."
        )
    if config.guidance_by_agreement and result.guidance_share < 1:
        yield (
            f"CLIP agrees with {100 * result.agreement:.0f}% of the labels only: its guidance "
            f"counts {100 * result.guidance_share:.0f}%."
        )
    yield result.verdict.sentence
    for reason in result.verdict.reasons:
        if reason not in result.doubts:  # those are logged as warnings
            yield reason.text


def check_clean_classes(
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    class_names: Sequence[str],
    *,
    allow_missing: bool,
) -> None:
    """Refuse, or with ``allow_missing`` warn of, a split that leaves a class without clean samples.

    Raises:
        DatasetError: some classes have no clean sample; they are named.
    """
    missing = [class_names[k] for k in without_clean_samples(labels, clean, len(class_names))]
    if not missing:
        return
    message = (
        f"no sample of {missing[:10]} is in the clean split: the model would unlearn these "
        "classes. Does CLIP know them by these names? Try other class_names or prompts"
    )
    if not allow_missing:
        raise DatasetError(f"{message}; allow_missing_classes=True goes on regardless.")
    logger.warning("%s.", message[0].upper() + message[1:])
