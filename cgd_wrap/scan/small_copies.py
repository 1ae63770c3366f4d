"""Small copies of all images, which the pass of CLIP leaves: the suspicious model reads them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cgd_wrap.data import RawView
from cgd_wrap.data.probes import spread
from cgd_wrap.data.reading import read_values
from cgd_wrap.data.views import FromRaw, in_bytes
from cgd_wrap.errors import BadSampleError
from cgd_wrap.models.suspicious_network import side_for
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.unit_results import Output

NAME = "small"
LOOKED_AT = 8  # images, to learn their size


class SmallCopies(Dataset[Tensor]):
    """Small copies of raw images, in a store of the cache; mapped into memory when they are read.

    Args:
        raw: gives the raw images, by index.
        options: cache and configuration.
        side: height and width of the copies, in pixels. Default: by the size of a few images.
    """

    def __init__(self, raw: RawView, options: PassOptions, side: int | None = None) -> None:
        self.raw, self.options, self._side = raw, options, side

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def side(self) -> int:
        """Height and width of the copies, in pixels."""
        if self._side is not None:
            return self._side
        some = spread(len(self.raw), LOOKED_AT)
        options = self.options
        found = read_values(
            FromRaw(self.raw, [_shorter_side]), some, options.workers, options.unreadable
        )
        sizes = [int(one) for one in found if not isinstance(one, BadSampleError)]
        most = options.config.suspicious_side
        return side_for(int(np.median(sizes)) if sizes else most, most)

    @cached_property
    def store(self) -> UnitStore:
        """The store of the copies, which may lack some."""
        return self.options.open_store(NAME, len(self.raw), {"side": self.side})

    def output(self) -> Output:
        """What a scan stores of each :meth:`copy_of` an image."""
        return Output(self.store, NAME, (3, self.side, self.side), torch.uint8, None)

    def copy_of(self, image: Image.Image) -> UInt8[Tensor, "3 side side"]:
        """Scale an RGB image to a square, whatever its form: a trigger may lie in any corner."""
        size = (self.side, self.side)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        return in_bytes(image)

    def fill(self, options: PassOptions) -> None:
        """Make the copies that are missing, which takes a read of their images."""
        if not self.store.is_complete():
            view = FromRaw(self.raw, [self.copy_of])
            options.scan_all(view, [self.output()], title="small copies")

    @cached_property
    def _units(self) -> list[Tensor]:
        return [self.store.mapped(unit)[NAME] for unit in range(len(self.store))]

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        unit, row = divmod(index, self.store.unit_size)
        return self._units[unit][row]


def _shorter_side(image: Image.Image) -> Tensor:
    return torch.tensor(min(image.size))
