"""Making small pictures of samples, to be put inside a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cgd_wrap.data.pixels import to_rgb
from cgd_wrap.escaping import escaped_logger

logger = escaped_logger(__name__)


def thumbnail(images: Any, index: int, side: int = 96) -> str | None:
    """Make a small picture of a sample, as a PNG ``data:`` address; None for unreadable samples.

    Args:
        images: ``images[index]`` is a PIL image or a float tensor [C, H, W] in [0, 1].
        index: position of the sample.
        side: longest side in pixels. Smaller images keep their size.
    """
    try:
        image = images[index]
        picture = _from_tensor(image) if isinstance(image, Tensor) else to_rgb(image)
        picture.thumbnail((side, side))
    except Exception as error:
        # People read the report to find out what is wrong with the data, so it survives all faults.
        logger.warning("no thumbnail of sample %d: %s", index, error)
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_tensor(image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise TypeError(
            f"expected a float tensor [C, H, W] with 1 or 3 channels, got "
            f"{image.dtype} {tuple(image.shape)}"
        )
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
