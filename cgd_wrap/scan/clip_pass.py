"""The pass of CLIP over the user's images: features or logits of every image are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import Dataset

from cgd_wrap.clip import ClipText, OpenClipZeroShot, ZeroShot, load_zero_shot
from cgd_wrap.clip.several import Clips, as_list
from cgd_wrap.config import CGDConfig
from cgd_wrap.data import RawView, check_deterministic
from cgd_wrap.data.fingerprint import dataset_fingerprint
from cgd_wrap.files import read_json, write_atomically, write_json
from cgd_wrap.models.weights import hash_weights
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.stored_logits import CombinedLogits, StoredLogits, stored_logits


def clip_pass(
    clip: Clips, class_names: Sequence[str], raw: RawView, options: PassOptions
) -> StoredLogits:
    """Score every sample by one or several zero-shot classifiers, such as CLIP.

    For open_clip models the image features are stored, in fp16, and the class matrix beside
    them: other prompts or class names need no second image pass. A finished pass is read without
    loading the model. Each of several CLIPs has a pass of its own, in ``clip``, ``clip-2``, ...;
    the passes are read together as :class:`~cgd_wrap.scan.stored_logits.CombinedLogits`.

    Args:
        clip: as for :class:`~cgd_wrap.guard.CGDGuard`.
        class_names: names of the classes, in the order of the labels.
        raw: gives the raw images, by index.
        options: cache, device and configuration.

    Raises:
        DatasetError: a raw image differs each time it is read; nothing is left in the cache.
    """
    clips = as_list(clip)
    stores = ["clip", *(f"clip-{number}" for number in range(2, len(clips) + 1))]
    # Checked first, so that a failed scan doesn't claim the cache for its arguments.
    if any(options.begins(store) for store in stores):
        check_deterministic(raw, "clip_dataset", workers=options.workers, known=options.unreadable)
    passes = [
        _open_clip_pass(one, class_names, raw, options, store)
        if isinstance(one, str)
        else _other_zero_shot_pass(one, raw, options, store)
        for one, store in zip(clips, stores, strict=True)
    ]
    return CombinedLogits.of(passes)


def _open_clip_pass(
    clip: str, class_names: Sequence[str], raw: RawView, options: PassOptions, name: str
) -> StoredLogits:
    folder, config = options.folder / name, options.config
    request = _clip_request(clip, class_names, config)
    known = read_json(folder / "text.json")
    if known and known["request"] == request and (folder / "text.safetensors").is_file():
        store = options.open_store(name, len(raw), known["image_side"])
        if store.is_complete():
            text = ClipText(**load_file(folder / "text.safetensors"))
            return StoredLogits(store, _from_features(text))
    model = load_zero_shot(
        clip, class_names,
        prompts=config.prompts, precision=config.clip_precision, device=options.runtime.device,
        scaled_logits=config.scaled_clip_logits,
    )  # fmt: skip
    assert isinstance(model, OpenClipZeroShot)
    store = options.open_store(name, len(raw), model.fingerprint())
    if options.runtime.is_main:
        text_side = {n: t.detach().cpu() for n, t in vars(model.text()).items()}
        write_atomically(folder / "text.safetensors", save(text_side))
        write_json(folder / "text.json", {"request": request, "image_side": model.fingerprint()})

    def score(images: Tensor, *, full_precision: bool) -> Tensor:
        return model.features(images, precision="fp32" if full_precision else None)

    view = _Preprocessed(raw, model.preprocess)
    options.scan(view, score, store, title=_title(name), features=model.class_matrix.shape[0])
    return StoredLogits(store, _from_features(model.text().to("cpu")))


def _title(name: str) -> str:
    return name.replace("clip", "CLIP").replace("-", " ")


def _from_features(text: ClipText) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda tensors: text.logits(tensors["features"])


def _clip_request(clip: str, class_names: Sequence[str], config: CGDConfig) -> dict[str, Any]:
    """Describe the CLIP, class names and settings that are asked for, without loading the model."""
    parts = [Path(clip.removeprefix("local-dir:")), Path(clip.partition("/")[2])]
    files = [f for p in parts for f in (sorted(p.glob("*")) if p.is_dir() else [p]) if f.is_file()]
    return {
        "clip": clip,
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "class_names": list(class_names),
        "prompts": config.as_dict()["prompts"],
        "precision": config.clip_precision,
        "scaled": config.scaled_clip_logits,
    }


def _other_zero_shot_pass(
    clip: ZeroShot, raw: RawView, options: PassOptions, name: str
) -> StoredLogits:
    described = getattr(clip, "fingerprint", None)
    if callable(described):
        fingerprint = {"zero_shot": described()}
    elif isinstance(clip, nn.Module):
        fingerprint = {"zero_shot": type(clip).__qualname__, "weights": hash_weights(clip)}
        clip.to(options.runtime.device)
    else:
        fingerprint = {"zero_shot": dataset_fingerprint(clip, ignore=())}
    store = options.open_store(name, len(raw), fingerprint)

    def score(images: Tensor, *, full_precision: bool) -> Tensor:
        return clip.logits(images)

    view = _Preprocessed(raw, getattr(clip, "preprocess", None) or _unit_range)
    options.scan(view, score, store, title=_title(name))
    return StoredLogits(store, stored_logits)


class _Preprocessed(Dataset[Tensor]):
    def __init__(self, raw: RawView, preprocess: Callable[[Any], Tensor]) -> None:
        self.raw, self.preprocess = raw, preprocess

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(self.raw[index])


def _unit_range(image: Any) -> Float[Tensor, "3 height width"]:
    """Convert an RGB image to floats in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
