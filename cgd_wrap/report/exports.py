"""The files that the reference code writes, for the tools that read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.files import write_atomically
from cgd_wrap.split.entropy_map import EntropyMap


def write_clean_indices(path: str | Path, indices: Iterable[int] | Int[Tensor, "k"]) -> Path:
    """``clean_indices.json``: a flat list of whole numbers.

    Args:
        path: the file.
        indices: the oversampled, class-balanced clean indices, repeats included.
    """
    path = Path(path)
    write_atomically(path, json.dumps([int(index) for index in indices]).encode())
    return path


def write_entropy_score(
    path: str | Path, entropy_map: EntropyMap, poisoned: Bool[Tensor, "n"] | None = None
) -> Path:
    """``entropy_score.json``: index -> [clip_rank, suspicious_rank, is_poisoned].

    Unreadable samples are left out: JSON knows no NaN.

    Args:
        path: the file.
        entropy_map: ranks in (0, 1].
        poisoned: the truth; False throughout where it is unknown.
    """
    path = Path(path)
    truth = [False] * len(entropy_map) if poisoned is None else poisoned.tolist()
    rows = zip(
        entropy_map.clip_rank.tolist(), entropy_map.suspicious_rank.tolist(), truth, strict=True
    )
    body = ", ".join(
        f'"{index}": [{clip!r}, {suspicious!r}, {"true" if poison else "false"}]'
        for index, (clip, suspicious, poison) in enumerate(rows)
        if clip == clip and suspicious == suspicious
    )
    write_atomically(path, f"{{{body}}}".encode())
    return path


def write_logits(
    path: str | Path,
    clip_logits: Float[Tensor, "n classes"],
    suspicious_logits: Float[Tensor, "n classes"],
    labels: Int[Tensor, "n"],
) -> Path:
    """``logits.safetensors``, in place of the reference's pickled ``logits.pt``.

    Args:
        path: the file.
        clip_logits: CLIP's zero-shot logits.
        suspicious_logits: the suspicious model's.
        labels: the given labels.
    """
    from safetensors.torch import save

    path = Path(path)
    tensors = {
        "clip_logits": clip_logits,
        "suspicious_logits": suspicious_logits,
        "labels": labels,
    }
    write_atomically(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    return path
