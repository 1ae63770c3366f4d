"""Views of the user's dataset: raw images for CLIP, small ones, and the model's own inputs."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data.layout import SampleLayout
from cgd_wrap.data.paths import image_path
from cgd_wrap.data.pixels import as_rgb, check_size, classify_failure, describe, is_image
from cgd_wrap.data.probes import spread
from cgd_wrap.data.sources import passthrough, readable, untransformed
from cgd_wrap.errors import BadSampleError, DatasetError
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

    Raises:
        TypeError: an item holds no image.
        DatasetError: the images are normalised, and the normalisation cannot be left out.
        BadSampleError: (on access) the sample cannot be read.
    """

    def __init__(self, dataset: Any, layout: SampleLayout, *, resized_to: int = 224) -> None:
        self.dataset, self.layout, self.resized_to = dataset, layout, resized_to
        with kept_rng():
            self.source = _raw_source(dataset, layout)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        index = _checked(index, len(self))
        image = _read(self.source, self.layout, index, self.dataset)
        if not is_image(image):
            raise TypeError(
                f"sample {index}: expected an image at {self.layout.image!r}, got {describe(image)}"
            )
        try:
            if isinstance(image, Image.Image):
                check_size(*image.size, self.resized_to)
            rgb = as_rgb(image)
            check_size(*rgb.size, self.resized_to)
        except DatasetError as error:
            raise DatasetError(f"sample {index}: {error}") from error
        except Exception as error:
            raise _bad_sample(error, index, self.dataset) from error
        return rgb


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
        values = np.array(image, dtype=np.uint8).reshape(height, width, self.channels)
        # (x - 0.5) / 0.5: the inputs of the paper's suspicious model.
        return torch.from_numpy(values).permute(2, 0, 1).contiguous().float() / 127.5 - 1.0


class EvaluatedImages(Dataset[Tensor]):
    """The image tensors that the user's dataset gives, as inputs of the user's model.

    Raises:
        TypeError: (on access) the dataset gives no tensor, or tensors without three axes.
        BadSampleError: (on access) the sample cannot be read.
    """

    def __init__(self, dataset: Any, layout: SampleLayout) -> None:
        self.dataset, self.layout = dataset, layout
        self.source = readable(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        index = _checked(index, len(self))
        image = _read(self.source, self.layout, index, self.dataset)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
        if not isinstance(image, Tensor):
            raise TypeError(
                f"sample {index}: expected a tensor that the model can take, got "
                f"{describe(image)}. Pass eval_dataset_view=, the same samples in the same order "
                "with the transform that the model is evaluated with"
            )
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


def check_deterministic(view: Any, argument: str = "eval_dataset_view", count: int = 32) -> None:
    """Refuse a view that gives another image each time that a sample is read.

    Args:
        view: anything with length and items that are images or tensors.
        argument: argument of the guard by which the user can give another view.
        count: number of samples to read twice, evenly spaced.

    Raises:
        DatasetError: some samples differ when they are read again.
    """
    probes = spread(len(view), count)
    with kept_rng():
        first = [_content(view, index) for index in probes]
        second = [_content(view, index) for index in probes]
    differing = [i for i, a, b in zip(probes, first, second, strict=True) if a != b]
    if differing:
        raise DatasetError(
            f"{len(differing)} of {len(probes)} samples differ when they are read twice "
            f"(samples {differing[:10]}): the dataset augments at random, and scores would "
            f"change from run to run. Pass {argument}=, the same samples in the same order "
            "without the augmentation"
        )


def _content(view: Any, index: int) -> tuple[object, ...]:
    try:
        image = view[index]
    except BadSampleError as error:
        return (error.reason,)
    if isinstance(image, Image.Image):
        return image.mode, image.size, image.tobytes()
    if isinstance(image, Tensor):
        flat = image.detach().cpu().contiguous().reshape(-1)
        return str(image.dtype), tuple(image.shape), flat.view(torch.uint8).numpy().tobytes()
    return (repr(image),)


def _checked(index: int, length: int) -> int:
    """Check an index, and convert it to a plain one in [0, length)."""
    if not -length <= index < length:
        raise IndexError(f"sample {index} of {length}")
    return int(index) % length


def _read(source: Any, layout: SampleLayout, index: int, dataset: Any) -> Any:
    try:
        return layout.image_of(source[index])
    except Exception as error:
        raise _bad_sample(error, index, dataset) from error


def _bad_sample(error: Exception, index: int, dataset: Any) -> BadSampleError:
    path = image_path(dataset, index)
    message = f"{type(error).__name__}: {error}"
    return BadSampleError(index, classify_failure(error, path), message, path)


def _raw_source(dataset: Any, layout: SampleLayout) -> Any:
    """Copy the dataset without its transforms, in the first form that its code can work with."""
    candidates = [untransformed(dataset, layout.image, fill) for fill in (None, passthrough)]
    for candidate in (*candidates, readable(dataset)):
        images = _probe(candidate, layout)
        for index, image in images.items():
            _refuse_normalised(index, image)
        if images:
            return candidate
    return candidates[0]


def _probe(candidate: Any, layout: SampleLayout) -> dict[int, object]:
    """Read a few images, by index; none if the dataset's code needs its transform."""
    found: dict[int, object] = {}
    for index in spread(len(candidate), 8):
        try:
            image = layout.image_of(candidate[index])
        except (TypeError, AttributeError, KeyError):
            return {}
        except Exception:
            continue  # an unreadable file; the next sample may be readable
        if is_image(image):
            found[index] = image
    return found


def _refuse_normalised(index: int, image: object) -> None:
    if isinstance(image, (np.ndarray, Tensor)):
        try:
            as_rgb(image)
        except DatasetError as error:
            raise DatasetError(f"sample {index}: {error}") from error
