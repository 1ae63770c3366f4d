"""Reading the argument ``clip``, which names one CLIP or several, and averaging their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from cgd_wrap.clip import ZeroShot
from cgd_wrap.config import CGDConfig

Clips: TypeAlias = str | ZeroShot | Sequence[str | ZeroShot]


def as_list(clip: Clips) -> list[str | ZeroShot]:
    """List the CLIPs of an argument ``clip``: a single CLIP, or each CLIP of a list or tuple."""
    return list(clip) if isinstance(clip, (list, tuple)) else [clip]  # type: ignore[list-item]


def check_clips(clip: Clips, config: CGDConfig) -> None:
    """Refuse CLIPs that can't score images, or can't be combined.

    Raises:
        TypeError: a CLIP is neither text nor has a method ``logits``.
        ValueError: the list is empty, or has several CLIPs while ``reference_scores`` is set.
    """
    clips = as_list(clip)
    if not clips:
        raise ValueError("clip is an empty list: name at least one CLIP")
    for one in clips:
        is_object = callable(getattr(one, "logits", None)) and not isinstance(one, type)
        if not isinstance(one, str) and not is_object:
            got = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
            raise TypeError(
                "clip must be an open_clip name such as 'ViT-B-32/laion2b_s34b_b79k', an object "
                f"with logits(images) -> [B, C], or a list of these, got {got}"
            )
    if len(clips) > 1 and config.reference_scores:
        raise ValueError(
            f"clip is a list of {len(clips)}, but reference_scores (as in CGDConfig.paper()) "
            "reproduces the authors' scores, which know one CLIP: pass one, or set "
            "reference_scores=False"
        )


def names_of(clip: Clips) -> tuple[str, ...]:
    """Name each CLIP for messages: "CLIP", or with number and source if there are several.

    The source of an object is its class; other sources may be paths of the user's.
    """
    clips = as_list(clip)
    if len(clips) == 1:
        return ("CLIP",)
    sources = [one if isinstance(one, str) else type(one).__qualname__ for one in clips]
    return tuple(f"CLIP {number} ({source})" for number, source in enumerate(sources, start=1))


def mean_log_softmax(logits: Sequence[Float[Tensor, "rows classes"]]) -> Float[Tensor, "rows c"]:
    """Average several CLIPs' log-softmaxes: logits of their normalised geometric mean, float32."""
    total = torch.stack([one.float().log_softmax(dim=1) for one in logits])
    return total.mean(dim=0)
