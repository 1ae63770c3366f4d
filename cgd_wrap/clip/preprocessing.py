"""CLIP's inputs: what a worker makes of an image, and what is left for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from cgd_wrap.clip.loading import RGBFirst
from cgd_wrap.data.pixels import to_rgb
from cgd_wrap.data.resizing import (
    FILTERS,
    centre_of,
    enlarged_exactly,
    pillow_agrees,
    resized_quickly,
    size_by_shorter_edge,
)
from cgd_wrap.data.views import in_bytes

FAST = "bytes that are shrunk by torch"


@dataclass(frozen=True)
class Preprocessing:
    """A CLIP model's preprocessing in two steps.

    Attributes:
        in_worker: PIL image -> bytes [3, H, W], or floats where ``on_device`` does nothing.
        on_device: a batch of these -> floats, the model's inputs.
        edge: pixels that an image's shorter edge is scaled to; None where that isn't known.
        made_by: says how pixels are made that aren't the model's own, to the bit; else empty.
    """

    in_worker: Callable[[Any], Tensor]
    on_device: Callable[[Tensor], Tensor]
    edge: int | None = None
    made_by: dict[str, str] = field(default_factory=dict)


def in_two_steps(
    whole: RGBFirst, *, fast: bool = False, device: str | torch.device = "cpu"
) -> Preprocessing:
    """Take a model's own preprocessing apart, so that images travel as bytes to the device.

    Bytes are a quarter of the floats. Small images that a GPU scores are sent as they are, and
    enlarged there. Where the steps of the transform aren't known, it stays whole.

    Args:
        whole: the model's own.
        fast: shrink images by :func:`~cgd_wrap.data.resizing.resized_quickly`, which takes a
            quarter of the time of the model's own resize. Otherwise the two steps together give the
            bits that ``whole`` gives; for images that are enlarged, they do so in any case.
        device: where the second step is done.
    """
    from torchvision import transforms

    steps = list(getattr(whole.transform, "transforms", []))
    first, last = steps[:-2], steps[-2:]
    kinds = (transforms.ToTensor, transforms.Normalize)
    if len(last) < 2 or not all(map(isinstance, last, kinds)):
        return Preprocessing(whole, _unchanged)
    exact = RGBFirst(transforms.Compose([*first, transforms.PILToTensor()]))
    resize = _Resize.of(first)
    if resize is None:
        return Preprocessing(exact, _ToFloats(last[1]))
    late = torch.device(device).type == "cuda" and pillow_agrees(resize.kind)
    return Preprocessing(
        _ToBytes(exact, resize, fast, late), _ToFloats(last[1], resize), max(resize.size),
        {"pixels": FAST} if fast else {},
    )  # fmt: skip


def _unchanged(images: Tensor) -> Tensor:
    return images


@dataclass(frozen=True)
class _Resize:
    """Scales an image and crops its centre.

    Attributes:
        size: of the result: height and width.
        by_edge: scale the shorter edge to the size, and crop; otherwise scale both.
        kind: the filter's name.
    """

    size: tuple[int, int]
    by_edge: bool
    kind: str

    @classmethod
    def of(cls, steps: list[Any]) -> _Resize | None:
        """The first steps of a transform; None where they do something else."""
        from torchvision.transforms import CenterCrop, Resize

        steps = [step for step in steps if not _makes_rgb(step)]  # the image is RGB already
        if [type(step) for step in steps] not in ([Resize], [Resize, CenterCrop]):
            return None
        resize, crop = steps[0], [tuple(step.size) for step in steps[1:]]
        kind = getattr(resize.interpolation, "value", "")
        if kind not in FILTERS or resize.max_size is not None or not resize.antialias:
            return None
        if isinstance(resize.size, int):
            edge = (resize.size, resize.size)
            return cls(edge, True, kind) if crop == [edge] else None
        size = tuple(resize.size)
        return cls(size, False, kind) if len(size) == 2 and crop in ([], [size]) else None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image that is scaled and not yet cropped."""
        return size_by_shorter_edge(height, width, self.size[0]) if self.by_edge else self.size


def _makes_rgb(step: Any) -> bool:
    """Whether a step of a transform is open_clip's conversion to RGB, under its old or new name."""
    name = getattr(step, "__name__", type(step).__name__)
    return (
        getattr(step, "__module__", "") == "open_clip.transform"
        and name in ("MaybeConvertMode", "_convert_to_rgb")
        and getattr(step, "mode", "RGB") == "RGB"
    )


@dataclass(frozen=True)
class _ToBytes:
    """What a worker makes of an image.

    Attributes:
        exact: the model's own steps, up to bytes.
        resize: the steps as numbers.
        fast: shrink by torch.
        late: leave small images as they are, for the device to enlarge.
    """

    exact: RGBFirst
    resize: _Resize
    fast: bool
    late: bool

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        width, height = image.size
        scaled = self.resize.scaled(height, width)
        if height > scaled[0] or width > scaled[1]:
            return self._shrunk(image, scaled) if self.fast else self.exact(image)
        # Longer images would be enlarged beyond what is left of them when they are cropped.
        small = max(scaled) <= 2 * min(scaled) and 2 * height * width <= scaled[0] * scaled[1]
        return in_bytes(to_rgb(image)) if self.late and small else self.exact(image)

    def _shrunk(self, image: Image.Image, scaled: tuple[int, int]) -> Tensor:
        resized = resized_quickly(to_rgb(image), scaled, self.resize.kind)
        return centre_of(resized, self.resize.size).contiguous()

    def alike(self, values: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 height width"]:
        """Enlarge what was left to the device: in this batch, images differ in size."""
        if tuple(values.shape[1:]) == self.resize.size:
            return values
        return self.exact(Image.fromarray(values.permute(1, 2, 0).numpy()))


@dataclass(frozen=True)
class _ToFloats:
    """What is left for the device.

    Attributes:
        normalise: the model's own last step.
        resize: for images that a worker left small; None where none does.
    """

    normalise: Callable[[Tensor], Tensor]
    resize: _Resize | None = None

    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c height width"]:
        if self.resize is not None and tuple(images.shape[2:]) != self.resize.size:
            scaled = self.resize.scaled(*images.shape[2:])
            images = enlarged_exactly(images, scaled, self.resize.kind)
            images = centre_of(images, self.resize.size).contiguous()
        return self.normalise(images.float().div(255))
