"""Zero-shot logits of a CLIP model, which judges the labels without having learned from them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cgd_wrap.clip.loading import RGBFirst, load_model, load_tokenizer
from cgd_wrap.clip.preprocessing import Preprocessing, in_two_steps
from cgd_wrap.clip.prompts import fill, resolve_prompts, warn_truncated
from cgd_wrap.clip.weights import locate
from cgd_wrap.errors import ClipLoadError
from cgd_wrap.models.weights import hash_weights

_PRECISIONS = ("fp32", "bf16", "fp16", "amp")


@runtime_checkable
class ZeroShot(Protocol):
    """A classifier that tells classes apart without having seen the training set.

    An optional attribute ``preprocess`` turns a PIL image into the tensor that ``logits`` reads.
    """

    def logits(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Score every class for every image."""
        ...


@dataclass(frozen=True)
class ClipText:
    """The text side of a zero-shot classifier: all that turns image features into logits.

    Attributes:
        class_matrix: text features [d, C], fp32, of unit norm per class.
        scale: factor of the cosines between image and text features; 1 for bare cosines.
        bias: added to the scaled cosines; 0 for bare cosines.
    """

    class_matrix: Float[Tensor, "dim classes"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""]

    def logits(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Compute logits from image features of any floating type: fp32, on the text's device."""
        features = features.to(device=self.class_matrix.device, dtype=torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * features @ self.class_matrix + self.bias

    def to(self, device: str | torch.device) -> ClipText:
        """Copy the text side to another device."""
        return ClipText(*(t.to(device) for t in (self.class_matrix, self.scale, self.bias)))


class OpenClipZeroShot(nn.Module):
    """A zero-shot classifier made of any open_clip model.

    ``logits = scale * normalise(encode_image(x)) @ class_matrix + bias``, with normalisation and
    product in fp32. The model is frozen, and always in eval mode.

    Args:
        source: where the weights come from; see :func:`cgd_wrap.clip.weights.locate`.
        class_names: names of the classes for the text tower, in the order of the labels.
        prompts: templates whose text features are averaged; see
            :func:`cgd_wrap.clip.prompts.resolve_prompts`.
        precision: precision of the image tower: ``"fp32"``, ``"bf16"``, ``"fp16"`` (weights cast)
            or ``"amp"`` (fp32 weights under autocast). The text side is always fp32.
        device: where the model runs.
        scaled_logits: multiply by the trained scale and add the bias; False gives bare cosines.
        revision: commit, branch or tag of an ``hf-hub:`` source.

    Attributes:
        preprocess: PIL image -> tensor [3, H, W], the model's own evaluation transform.
        class_matrix: text features [d, C], fp32, of unit norm per class.

    Raises:
        ClipLoadError: the trained weights cannot be had; random weights are never used instead.
        ValueError: there is no class name, the precision is unknown, or a template lacks ``{}``.
    """

    class_matrix: Tensor
    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(
        self,
        source: str,
        class_names: Sequence[str],
        *,
        prompts: str | Sequence[str] = "a photo of a {}",
        precision: str = "fp32",
        device: str | torch.device = "cpu",
        scaled_logits: bool = True,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if precision not in _PRECISIONS:
            raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
        if not class_names:
            raise ValueError("class_names is empty: CLIP needs a name for every class")
        self.source, self.precision, self.scaled_logits = source, precision, scaled_logits
        self.class_names, self.templates = tuple(class_names), resolve_prompts(prompts)
        self._weights = locate(source, revision)
        self._revision = revision
        tokenizer = load_tokenizer(self._weights)
        device = torch.device(device)
        # Loaded in fp32 first: the hash, the scale and the text side don't depend on the precision.
        model, transform = load_model(self._weights, "fp32", device)
        self.preprocess = RGBFirst(transform)
        self._weights_hash = hash_weights(model)
        self._read_text_side(model, tokenizer, device)
        if precision in ("bf16", "fp16"):
            del model
            model, _ = load_model(self._weights, precision, device)
        self.image_model = model
        self.eval()

    def _read_text_side(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        import open_clip

        texts = [fill(template, name) for name in self.class_names for template in self.templates]
        warn_truncated(tokenizer, texts, tokenizer.context_length)
        fillers = [lambda name, t=template: fill(t, name) for template in self.templates]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            matrix = open_clip.build_zero_shot_classifier(
                model, tokenizer, self.class_names, fillers, device=device
            )
            scale = model.logit_scale.exp().reshape(()).clone()
            bias = getattr(model, "logit_bias", None)
            bias = torch.zeros_like(scale) if bias is None else bias.reshape(()).clone()
        if not torch.isfinite(matrix).all():
            raise ClipLoadError(
                f"CLIP model {self.source!r} gives text features that are not finite. "
                "Its weights are damaged: download them again"
            )
        self.register_buffer("class_matrix", matrix.contiguous())
        self.register_buffer("logit_scale", scale)
        self.register_buffer("logit_bias", bias)

    def train(self, mode: bool = True) -> OpenClipZeroShot:
        """Stay in eval mode, whatever ``mode`` says: the model is frozen."""
        super().train(False)
        return self

    def preprocess_in_two(self, *, fast: bool = False) -> Preprocessing:
        """Take the preprocessing apart: see :func:`~cgd_wrap.clip.preprocessing.in_two_steps`."""
        return in_two_steps(self.preprocess, fast=fast, device=self.class_matrix.device)

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "batch channels height width"], precision: str | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Compute image features of unit norm, fp32.

        Args:
            images: preprocessed batch, any floating type, on any device.
            precision: None for the model's own precision; ``"fp32"`` to repeat a batch that
                overflowed, with the (rounded) weights in fp32.

        Raises:
            TypeError: images hold whole numbers.
            ValueError: the precision is neither None, ``"fp32"`` nor the model's own.
        """
        from open_clip import get_input_dtype

        if precision not in (None, "fp32", self.precision):
            raise ValueError(f"precision must be None or 'fp32', got {precision!r}")
        if not images.is_floating_point():
            raise TypeError(f"images must be preprocessed floats, got {images.dtype}")
        precision = precision or self.precision
        model: Any = self.image_model
        if precision == "fp32" and self.precision in ("bf16", "fp16"):
            model = copy.deepcopy(model).float()
        device = self.class_matrix.device
        images = images.to(device=device, dtype=get_input_dtype(precision) or torch.float32)
        with torch.autocast(device.type, enabled=precision == "amp"):
            features = model.encode_image(images)
        return F.normalize(features.float(), dim=-1)

    def text(self) -> ClipText:
        """Return the text side, with bare cosines unless ``scaled_logits`` is set."""
        one, zero = torch.ones_like(self.logit_scale), torch.zeros_like(self.logit_bias)
        scaled = self.scaled_logits
        return ClipText(
            self.class_matrix, self.logit_scale if scaled else one,
            self.logit_bias if scaled else zero,
        )  # fmt: skip

    @torch.no_grad()
    def logits_from_features(
        self, features: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Compute logits, fp32, from stored image features of any floating type."""
        return self.text().logits(features)

    def logits(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Compute zero-shot logits, fp32, of a preprocessed batch of images."""
        return self.logits_from_features(self.features(images))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """See :meth:`logits`."""
        return self.logits(images)

    def fingerprint(self) -> dict[str, Any]:
        """Describe all that image features depend on; weights count by content, not by path."""
        import open_clip

        return {
            "model": open_clip.get_model_config(self._weights.name),
            "quick_gelu": self._weights.quick_gelu,
            "weights": self._weights_hash,
            "revision": self._revision,
            "precision": self.precision,
            # The transform's text may hold the address of a function, new in every process.
            "preprocess": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.preprocess)),
            "open_clip": open_clip.__version__,
        }


def load_zero_shot(
    clip: str | ZeroShot,
    class_names: Sequence[str],
    *,
    prompts: str | Sequence[str] = "a photo of a {}",
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    scaled_logits: bool = True,
    revision: str | None = None,
) -> ZeroShot:
    """Load a CLIP model by name, or return an object with ``logits(images)`` as it is.

    The other arguments are for a model by name: see :class:`OpenClipZeroShot`.

    Raises:
        TypeError: clip is neither text nor has a method ``logits``.
    """
    if isinstance(clip, str):
        return OpenClipZeroShot(
            clip,
            class_names,
            prompts=prompts,
            precision=precision,
            device=device,
            scaled_logits=scaled_logits,
            revision=revision,
        )
    if not callable(getattr(clip, "logits", None)):
        raise TypeError(
            f"clip must be an open_clip name such as 'ViT-B-32/laion2b_s34b_b79k' or an object "
            f"with logits(images) -> [B, C], got {type(clip).__name__}"
        )
    return clip
