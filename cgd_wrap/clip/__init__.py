"""CLIP, or another zero-shot classifier: images -> logits."""

from __future__ import annotations

from cgd_wrap.clip.zero_shot import ClipText, OpenClipZeroShot, ZeroShot, load_zero_shot
from cgd_wrap.models.weights import hash_weights

__all__ = ["ClipText", "OpenClipZeroShot", "ZeroShot", "hash_weights", "load_zero_shot"]
