"""The pass of CLIP over the user's images: features or logits of every image are stored."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgd_wrap.clip import ClipText, OpenClipZeroShot, ZeroShot, load_zero_shot
from cgd_wrap.clip.several import Clips, as_list
from cgd_wrap.config import CGDConfig
from cgd_wrap.data import RawView, check_deterministic
from cgd_wrap.data.fingerprint import parts
from cgd_wrap.data.identity import settled_parts
from cgd_wrap.data.probes import spread
from cgd_wrap.data.views import FromRaw, in_bytes
from cgd_wrap.errors import CacheMismatchError
from cgd_wrap.models.weights import hash_weights
from cgd_wrap.randomness import kept_rng
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.small_copies import SmallCopies
from cgd_wrap.scan.stored_logits import CombinedLogits, StoredLogits, stored_logits
from cgd_wrap.scan.unit_results import Output
from cgd_wrap.sealed import read_sealed, write_sealed


@dataclass(frozen=True)
class _Prepared:
    """A pass of one CLIP, before any image is read.

    Attributes:
        logits: the logits, when all images are scored.
        output: what is computed; None where all is stored already.
        preprocess: RGB image -> what the output's function takes.
    """

    logits: StoredLogits
    output: Output | None = None
    preprocess: Callable[[Any], Tensor] = in_bytes


def clip_pass(
    clip: Clips,
    class_names: Sequence[str],
    raw: RawView,
    options: PassOptions,
    *,
    small: SmallCopies | None = None,
    load: Callable[..., ZeroShot] | None = None,
) -> StoredLogits:
    """Score every sample by one or several zero-shot classifiers, such as CLIP, in one read.

    For open_clip models the image features are stored, in fp16, and the class matrix beside
    them: other prompts or class names need no second image pass. A finished pass is read without
    loading the model. Each of several CLIPs has a pass of its own, in ``clip``, ``clip-2``, ...;
    the passes are read together as :class:`~cgd_wrap.scan.stored_logits.CombinedLogits`.

    Args:
        clip: as for :class:`~cgd_wrap.guard.CGDGuard`.
        class_names: names of the classes, in the order of the labels.
        raw: gives the raw images, by index.
        options: cache, device and configuration.
        small: small copies that the same read leaves.
        load: :func:`~cgd_wrap.clip.load_zero_shot`, or what calls it once for several passes.

    Raises:
        DatasetError: a raw image differs each time it is read; nothing is left in the cache.
    """
    clips, stores = as_list(clip), store_names(clip)
    # Checked first, so that a failed scan doesn't claim the cache for its arguments.
    if any(options.begins(store) for store in stores):
        check_deterministic(raw, "clip_dataset", workers=options.workers, known=options.unreadable)
    passes = [
        _open_clip_pass(one, class_names, raw, options, store, load or load_zero_shot)
        if isinstance(one, str)
        else _other_zero_shot_pass(one, raw, options, store)
        for one, store in zip(clips, stores, strict=True)
    ]
    waiting = [(one.preprocess, one.output) for one in passes if one.output is not None]
    if small is not None and not small.store.is_complete():
        waiting.append((small.copy_of, small.output()))
    if waiting:
        view = FromRaw(raw, [preprocess for preprocess, _ in waiting])
        options.scan_all(view, [output for _, output in waiting], title="CLIP")
    return CombinedLogits.of([one.logits for one in passes])


def store_names(clip: Clips) -> list[str]:
    """Names of the passes of one or several CLIPs: ``clip``, ``clip-2``, ..."""
    return ["clip", *(f"clip-{number}" for number in range(2, len(as_list(clip)) + 1))]


def _open_clip_pass(
    clip: str,
    class_names: Sequence[str],
    raw: RawView,
    options: PassOptions,
    name: str,
    load: Callable[..., ZeroShot],
) -> _Prepared:
    config, request = options.config, _clip_request(clip, class_names, options.config)
    path, place = options.folder / name / "text.safetensors", {"kind": "text", "pass": name}
    known = read_sealed(path, place)
    if known and known[1]["request"] == request:
        try:
            store = options.open_store(name, len(raw), known[1]["image_side"])
            if store.is_complete():
                return _Prepared(StoredLogits(store, _from_features(ClipText(**known[0]))))
        except CacheMismatchError as error:
            if set(error.fields) - set(known[1]["image_side"]):
                raise
            known = None  # the text is of another CLIP of this name: copied from another cache
    model = load(
        clip, tuple(class_names),
        prompts=config.prompts, precision=config.clip_precision, device=options.runtime.device,
        scaled_logits=config.scaled_clip_logits,
    )  # fmt: skip
    assert isinstance(model, OpenClipZeroShot)
    steps = model.preprocess_in_two(fast=config.clip_resize == "fast")
    _check_edge(config.jpeg_edge, steps.edge, clip)
    image_side = {**model.fingerprint(), **steps.made_by}
    store = options.open_store(name, len(raw), image_side)
    # Text and request in one file: a kill can't leave the one without the other.
    notes = {"request": request, "image_side": image_side}
    if options.runtime.is_main and not (known and known[1] == notes):
        write_sealed(path, vars(model.text()), place, notes)

    logits = StoredLogits(store, _from_features(model.text().to("cpu")))
    if store.is_complete():
        return _Prepared(logits)

    def score(images: Tensor, *, full_precision: bool) -> Tensor:
        precision = "fp32" if full_precision else None
        return model.features(steps.on_device(images), precision=precision)

    output = options.output(store, score, features=model.class_matrix.shape[0])
    return _Prepared(logits, output, steps.in_worker)


def _check_edge(kept: int | None, needed: int | None, clip: str) -> None:
    if kept is not None and needed is not None and kept < needed:
        raise ValueError(
            f"jpeg_edge={kept} leaves images smaller than the {needed} pixels that {clip!r} scales "
            f"them to: at least {needed} is possible, and {2 * needed} is nearer to the whole image"
        )


def _from_features(text: ClipText) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda tensors: text.logits(tensors["features"])


def _clip_request(clip: str, class_names: Sequence[str], config: CGDConfig) -> dict[str, Any]:
    """Describe the CLIP, class names and settings that are asked for, without loading the model."""
    parts = [Path(clip.removeprefix("local-dir:")), Path(clip.partition("/")[2])]
    files = [f for p in parts for f in (sorted(p.glob("*")) if p.is_dir() else [p]) if f.is_file()]
    return {
        "clip": clip,
        "open_clip": importlib.metadata.version("open_clip_torch"),
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "class_names": list(class_names),
        "prompts": config.as_dict()["prompts"],
        "precision": config.clip_precision,
        "scaled": config.scaled_clip_logits,
        "resize": config.clip_resize,
    }


def _other_zero_shot_pass(
    clip: ZeroShot, raw: RawView, options: PassOptions, name: str
) -> _Prepared:
    if isinstance(clip, nn.Module):
        clip.to(options.runtime.device)
    preprocess = getattr(clip, "preprocess", None)

    def logits(images: Tensor) -> Tensor:
        found = clip.logits(images if preprocess else images.float() / 255)
        if not isinstance(found, Tensor):
            raise TypeError(f"clip.logits(images) must return a tensor, not {type(found).__name__}")
        return found

    view = FromRaw(raw, [preprocess or in_bytes])
    describe = partial(_describe_zero_shot, clip, view, logits, options.runtime.device)
    try:  # a finished pass is read without asking the classifier
        store = options.open_store(name, len(raw), describe(use=options.begins(name)))
    except CacheMismatchError:
        store = options.open_store(name, len(raw), describe(use=True))

    def score(images: Tensor, *, full_precision: bool) -> Tensor:
        return logits(images)

    found = StoredLogits(store, stored_logits)
    if store.is_complete():
        return _Prepared(found)
    return _Prepared(found, options.output(store, score), preprocess or in_bytes)


def _describe_zero_shot(
    clip: ZeroShot, view: FromRaw, logits: Callable[[Tensor], Tensor], device: Any, *,
    use: bool,
) -> dict[str, Any]:  # fmt: skip
    """Describe a zero-shot classifier: weights, settings, and the code of its two functions.

    An object's own ``fingerprint()`` stands for its class and all that it holds, except its
    preprocessing, and functions that replace those of the class.

    Args:
        clip: the classifier.
        view: images that it can score.
        logits: scores a batch of them.
        device: where it scores them.
        use: let it score an image before the first look and between two looks: what loads late is
            there then, and what counts or caches shows itself.
    """
    own, held = getattr(clip, "fingerprint", None), getattr(clip, "__dict__", {})
    if callable(own):
        held = {name: held[name] for name in ("logits", "preprocess") if name in held}

    def describe() -> dict[str, str]:
        if not callable(own):
            return parts(clip, "zero_shot", ignore=(), weights=not isinstance(clip, nn.Module))
        functions = {"preprocess": getattr(type(clip), "preprocess", None), **held}
        return parts(functions, "zero_shot", ignore=())

    images = iter(spread(len(view), 8))

    def score() -> None:
        for index in images if use and held else ():  # what holds nothing can't change
            with suppress(Exception):  # unreadable, or unfit: the scan says so
                [image] = view[index]
                with torch.no_grad(), kept_rng():
                    logits(torch.stack([image, image]).to(device))
                return

    score()
    found = settled_parts(describe, score)
    if callable(own):
        found["zero_shot fingerprint"] = own()
    elif isinstance(clip, nn.Module):
        found["weights"] = hash_weights(clip)
    return found
