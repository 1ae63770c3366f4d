"""Building a CLIP model from its trained weights, without side effects on the user's process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor, nn

from cgd_wrap.clip.hub_text import checked_text_tower, hub_tokenizer
from cgd_wrap.clip.weights import DIR, OFFLINE, ClipWeights
from cgd_wrap.data.pixels import to_rgb
from cgd_wrap.errors import ClipLoadError
from cgd_wrap.escaping import brief
from cgd_wrap.models.safe_loading import no_pickled_code, refuse_compressed, why_not_loaded


@dataclass(frozen=True)
class RGBFirst:
    """Converts an image to RGB, then applies a CLIP model's evaluation transform.

    open_clip itself resizes first, which blends palette numbers instead of colours.
    """

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Shaped[Tensor, "channels height width"]:
        """Turn one PIL image of any mode into the tensor that the model reads."""
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"CLIP's preprocessing reads PIL images, got {type(image).__name__}: pass "
                "clip_dataset= with the raw images"
            )
        return self.transform(to_rgb(image))


def load_model(weights: ClipWeights, precision: str, device: torch.device) -> tuple[nn.Module, Any]:
    """Build a CLIP model, frozen and in eval mode, and its evaluation transform.

    Raises:
        ClipLoadError: the file doesn't hold this architecture's weights, or would need code of its
            own to be read.
    """
    import open_clip

    try:
        for file in weights.pickled:
            refuse_compressed(file)
        with _undisturbed(), checked_text_tower(weights.hub_text) as text:
            model, transform = open_clip.create_model_from_pretrained(
                weights.name,
                pretrained=weights.checkpoint,
                precision=precision,
                device=device,
                force_quick_gelu=weights.quick_gelu,
                weights_only=True,
                **weights.image_options,
                **text,
            )
    except ClipLoadError:
        raise
    except Exception as error:
        where = weights.checkpoint or weights.name
        raise ClipLoadError(
            f"CLIP weights from {where!r} cannot be loaded as {weights.name!r}: "
            f"{why_not_loaded(error)}. "
            "Expected trained weights of exactly this architecture, as safetensors or as a state "
            "dict that torch.load(weights_only=True) reads"
        ) from error
    return model.requires_grad_(False).eval(), transform


def load_tokenizer(weights: ClipWeights) -> Any:
    """Load the tokenizer of a CLIP model's text tower.

    Raises:
        ClipLoadError: the tokenizer's files are neither on this machine nor reachable, or would
            need code of their own.
    """
    import open_clip

    try:
        with _undisturbed():
            if weights.hub_tokenizer is None:
                return open_clip.get_tokenizer(weights.tokenizer)
            # Not by get_tokenizer, which would read a repository's configuration again, unchecked.
            return hub_tokenizer(weights.hub_tokenizer)
    except ClipLoadError:
        raise
    except Exception as error:
        raise ClipLoadError(
            f"the tokenizer of CLIP model {weights.tokenizer!r} cannot be loaded: "
            f"{brief(error)}. Models with a Hugging Face tokenizer need its files: "
            + OFFLINE.format(repo="<repository>", instead=f"'{DIR}clip'")
        ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    # open_clip initialises the towers from the global RNG before it loads the weights, and its
    # logging.info installs a root handler, which would turn the user's basicConfig into a no-op.
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        with torch.random.fork_rng(devices=[]), no_pickled_code():
            yield
    finally:
        root.removeHandler(silent)
