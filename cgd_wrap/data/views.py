"""Views of the user's dataset: raw images for CLIP, small ones, and the model's own inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data.drafts import draft, drafted
from cgd_wrap.data.failures import bad_sample
from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.pixels import (
    RESIZED_TO,
    as_rgb,
    check_finite,
    check_size,
    describe,
    is_image,
    open_encoded,
)
from cgd_wrap.data.probes import spread
from cgd_wrap.data.raw_source import raw_source
from cgd_wrap.data.reading import read_values
from cgd_wrap.data.samples import Samples
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.errors import BadSampleError, DatasetError, NoImageError
from cgd_wrap.randomness import kept_rng


@runtime_checkable
class RawView(Protocol):
    """A view that gives raw images by index."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Image.Image:
        """Return the image of sample ``index`` as RGB."""
        ...


class RawImages(Dataset[Image.Image]):
    """The images of a dataset before any transform, as RGB.

    The user's dataset is left alone: transforms are left out on copies of the dataset and of the
    datasets that it wraps.

    Args:
        dataset: any map-style dataset.
        layout: where an item holds its image.
        resized_to: shorter edge, in pixels, that the images will be resized to; images that
            would become too large then are refused.
        fatal: samples that must not be read to find out what the images are like.

    Raises:
        NoImageError: (on access) an item holds no image.
        DatasetError: the images are normalised, and the normalisation cannot be left out.
        BadSampleError: (on access) the sample cannot be read, or its values are out of range.
    """

    def __init__(
        self,
        dataset: Any,
        layout: SampleLayout,
        *,
        resized_to: int = RESIZED_TO,
        fatal: Collection[int] = (),
    ) -> None:
        self.dataset, self.layout, self.resized_to = dataset, layout, resized_to
        self.edge: int | None = None
        with kept_rng():
            self.source, self.scales = raw_source(dataset, layout, fatal)
        self.samples = Samples(dataset, self.source)

    def drafted(self, edge: int | None) -> RawImages:
        """The same images, of which large JPEG files are decoded at a reduced scale.

        Args:
            edge: as for :func:`~cgd_wrap.data.drafts.drafted`; None for the images as they are.
        """
        if edge is None:
            return self
        view = copy.copy(self)
        view.edge, view.source = edge, drafted(self.source, edge)
        view.samples = Samples(self.dataset, view.source)
        return view

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        index = _checked(index, len(self))
        image = _image_in(self.samples, self.layout, index)
        if not is_image(image):
            raise NoImageError(
                f"sample {index}: expected an image at {self.layout.image!r}, got {describe(image)}"
            )
        try:
            if isinstance(image, Image.Image):
                check_size(*image.size, self.resized_to)
            rgb = self._rgb(image)
            check_size(*rgb.size, self.resized_to)
        except Exception as error:
            raise bad_sample(error, index, self.dataset) from error
        return rgb

    def _rgb(self, image: Any) -> Image.Image:
        if self.edge is None or not isinstance(image, (bytes, Mapping)):
            return as_rgb(image, self.scales)
        with open_encoded(image) as opened:
            return as_rgb(draft(opened, self.edge), self.scales)


class FromRaw(Dataset[tuple[Tensor, ...]]):
    """What several functions make of each raw image, which is read once.

    Args:
        raw: gives RGB images by index.
        functions: RGB image -> tensor. A function whose tensors may differ in shape has a method
            ``alike``, tensor -> tensor of the one shape: it is used where a batch's differ.

    Attributes:
        alike: this method of each function, or None.
    """

    def __init__(self, raw: RawView, functions: Sequence[Callable[[Any], Tensor]]) -> None:
        self.raw, self.functions = raw, functions
        self.alike = [getattr(function, "alike", None) for function in functions]

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image = self.raw[index]
        return tuple(function(image) for function in self.functions)


def in_bytes(image: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """Copy the values of an image of 8 bits a channel into a tensor."""
    values = np.array(image, dtype=np.uint8)
    return torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1).contiguous()


class ModelInputs(Dataset[Tensor]):
    """Raw images as inputs of a freshly trained model: resized, scaled by mean 0.5 and std 0.5.

    Args:
        raw: gives RGB images by index.
        size: height and width in pixels.
        channels: 3, or 1 for grey.
    """

    def __init__(self, raw: RawView, size: tuple[int, int], channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {channels}")
        self.raw, self.size, self.channels = raw, size, channels

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Float[Tensor, "channels height width"]:
        image = self.raw[index]
        image = image if self.channels == 3 else image.convert("L")
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        # (x - 0.5) / 0.5: the inputs of the paper's suspicious model.
        return in_bytes(image).float() / 127.5 - 1.0


class EvaluatedImages(Dataset[Tensor]):
    """The image tensors that the user's dataset gives, as inputs of the user's model.

    Raises:
        NoImageError: (on access) the dataset gives no tensor.
        BadSampleError: (on access) the sample cannot be read, or its values aren't all finite.
    """

    def __init__(self, dataset: Any, layout: SampleLayout) -> None:
        self.dataset, self.layout = dataset, layout
        self.samples = Samples(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        index = _checked(index, len(self))
        image = _image_in(self.samples, self.layout, index)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
        if not isinstance(image, Tensor):
            raise NoImageError(
                f"sample {index}: expected a tensor that the model can take, got "
                f"{describe(image)}. Pass eval_dataset_view=, the same samples in the same order "
                "with the transform that the model is evaluated with"
            )
        try:
            if image.is_floating_point():
                check_finite(image)
        except DatasetError as error:
            raise bad_sample(error, index, self.dataset) from error
        return image


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """A view of images, with labels added: items are (image [C, H, W], label).

    Args:
        view: gives image tensors by index.
        labels: given labels, int64 [N].
    """

    def __init__(self, view: Any, labels: Int[Tensor, "n"]) -> None:
        self.view, self.labels = view, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.view[index], self.labels[index]


def check_deterministic(
    view: Any,
    argument: str = "eval_dataset_view",
    count: int = 32,
    *,
    workers: Workers = HERE,
    known: BadSamples | None = None,
) -> None:
    """Refuse a view that gives another image each time that a sample is read.

    Args:
        view: anything with length and items that are images or tensors.
        argument: argument of the guard by which the user can give another view.
        count: number of samples to read twice, evenly spaced.
        workers: the processes that read.
        known: samples that are known to be bad, and aren't read.

    Raises:
        DatasetError: some samples differ when they are read again.
    """
    probes = spread(len(view), count)
    with kept_rng():
        contents = read_values(_Contents(view), [*probes, *probes], workers, known)
    comparable = [one.reason if isinstance(one, BadSampleError) else one for one in contents]
    first, second = comparable[: len(probes)], comparable[len(probes) :]
    differing = [i for i, a, b in zip(probes, first, second, strict=True) if a != b]
    if differing:
        raise DatasetError(
            f"{len(differing)} of {len(probes)} samples differ when they are read twice "
            f"(samples {differing[:10]}): the dataset augments at random, and scores would "
            f"change from run to run. Pass {argument}=, the same samples in the same order "
            "without the augmentation"
        )


class _Contents(Dataset[Any]):
    """Describes each image of a view by its kind, its shape and a hash of its values."""

    def __init__(self, view: Any) -> None:
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> tuple[object, ...]:
        image = self.view[index]
        if isinstance(image, Image.Image):
            return image.mode, image.size, blake2b(image.tobytes()).digest()
        if isinstance(image, Tensor):
            flat = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return str(image.dtype), tuple(image.shape), blake2b(flat.numpy().tobytes()).digest()
        return (repr(image),)


def _checked(index: int, length: int) -> int:
    """Check an index, and convert it to a plain one in [0, length)."""
    if not -length <= index < length:
        raise IndexError(f"sample {index} of {length}")
    return int(index) % length


def _image_in(samples: Samples, layout: SampleLayout, index: int) -> Any:
    sample = samples[index]
    try:
        return layout.image_of(sample)
    except Exception as error:
        raise bad_sample(error, index, samples.dataset) from error
