"""Writing the files that the authors' code writes, for the tools that read such files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cgd_wrap.files import write_atomically
from cgd_wrap.functional import balanced_indices
from cgd_wrap.scan.stored_logits import StoredLogits
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.result import ScanResult


def write_clean_indices(path: str | Path, indices: Iterable[int] | Int[Tensor, "k"]) -> Path:
    """Write ``clean_indices.json``: a flat list of whole numbers.

    Args:
        path: path of the file.
        indices: indices of clean samples, oversampled so that classes are balanced; repeats
            included.
    """
    path = Path(path)
    write_atomically(path, json.dumps([int(index) for index in indices]).encode())
    return path


def write_entropy_score(
    path: str | Path, entropy_map: EntropyMap, poisoned: Bool[Tensor, "n"] | None = None
) -> Path:
    """Write ``entropy_score.json``: index -> [clip_rank, suspicious_rank, is_poisoned].

    Unreadable samples are left out: JSON knows no NaN.

    Args:
        path: path of the file.
        entropy_map: ranks of the samples, in (0, 1].
        poisoned: True for each poisoned sample. None: the truth is unknown, and ``is_poisoned`` is
            False throughout.
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
    """Write ``logits.safetensors``, in place of the ``logits.pt`` that the authors' code pickles.

    Args:
        path: path of the file.
        clip_logits: CLIP's zero-shot logits.
        suspicious_logits: the suspicious model's logits.
        labels: given labels.
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


def export_for_reference(
    result: ScanResult, logits: tuple[StoredLogits, StoredLogits], folder: Path, *, seed: int
) -> dict[str, Path]:
    """Write the files that other tools of CGD read: clean indices, ranks and logits.

    The files are ``clean_indices.json`` (balanced, with repeats), ``entropy_score.json``, and
    ``logits.safetensors`` in place of the pickle of the authors' code.

    Args:
        result: result of the scan.
        logits: logits of CLIP and of the suspicious model.
        folder: folder of the files; created if missing.
        seed: seed of the draw that balances the classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clip, suspicious = (torch.cat([values for _, values, _ in one.units()]) for one in logits)
    generator = torch.Generator().manual_seed(seed)
    clean = balanced_indices(result.labels, result.split.clean, generator=generator)
    return {
        "clean_indices": write_clean_indices(folder / "clean_indices.json", clean.tolist()),
        "entropy_score": write_entropy_score(folder / "entropy_score.json", result.entropy_map),
        "logits": write_logits(folder / "logits.safetensors", clip, suspicious, result.labels),
    }
