"""What the two passes of a scan share: options in, logits on disk out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cgd_wrap.cache import UnitStore
from cgd_wrap.config import CGDConfig
from cgd_wrap.runtime import Runtime
from cgd_wrap.scanning import Scan

logger = logging.getLogger(__name__)

BadRows = dict[int, list[str | None]]


@dataclass(frozen=True)
class StoredLogits:
    """The logits of a finished pass, read unit by unit: all of them may not fit in memory.

    Attributes:
        store: the pass' results.
        to_logits: a unit's tensors -> logits [rows, C].
    """

    store: UnitStore
    to_logits: Callable[[Mapping[str, Tensor]], Tensor]

    def units(self) -> Iterator[tuple[range, Float[Tensor, "rows classes"], BadRows]]:
        """(rows, logits, bad samples) of each unit, in order."""
        for rows, tensors, bad in self.store.units():
            yield rows, self.to_logits(tensors), bad

    def rows(self, wanted: Int[Tensor, "k"]) -> Float[Tensor, "k classes"]:
        """The logits of some samples, given in ascending order."""
        parts = []
        for rows, logits, _ in self.units():
            parts.append(logits[_within(rows, wanted)])
        return torch.cat(parts)

    def features(self, wanted: Int[Tensor, "k"]) -> Float[Tensor, "k dim"] | None:
        """Image features of some samples, given in ascending order; None where none are stored."""
        parts = []
        for rows, tensors, _ in self.store.units():
            if "features" not in tensors:
                return None
            parts.append(tensors["features"][_within(rows, wanted)].float())
        return torch.cat(parts)


@dataclass(frozen=True)
class PassOptions:
    """What both passes share.

    Attributes:
        folder: of the cache.
        dataset: fingerprint of the user's dataset, JSON values by field.
        num_classes: C.
        config: of the guard.
        runtime: device and processes.
        num_workers: of the loaders.
        progress: draw bars.
        overwrite: replace stored results of something else, in place of refusing.
    """

    folder: Path
    dataset: Mapping[str, Any]
    num_classes: int
    config: CGDConfig
    runtime: Runtime
    num_workers: int = 0
    progress: bool = True
    overwrite: bool = False

    def open_store(self, name: str, rows: int, fingerprint: Mapping[str, Any]) -> UnitStore:
        """The store of a pass, under the dataset's and its own fingerprint."""
        whole = {**self.dataset, **fingerprint}
        return UnitStore.open(self.folder / name, rows, whole, overwrite=self.overwrite)

    def begins(self, name: str) -> bool:
        """Whether the store of a pass may have to be made, or made anew."""
        return self.overwrite or not (self.folder / name / "manifest.json").is_file()

    def scan(
        self, view: Any, score: Any, store: UnitStore, *, title: str, features: int | None = None
    ) -> None:
        """Run the pass over what is missing, and wait for the other processes.

        Args:
            view: ``[i] -> image tensor``.
            score: what to compute.
            store: where results go: under ``logits``, or under ``features`` in fp16.
            title: of the progress bar.
            features: number of features that are stored; None where logits are.
        """
        if store.is_complete():
            return
        Scan(
            view, score, store,
            name="features" if features else "logits",
            width=features or self.num_classes,
            dtype=torch.float16 if features else torch.float32,
            runtime=self.runtime,
            record_bad=self.config.on_bad_sample == "record",
            max_bad_fraction=self.config.max_bad_fraction,
            batch_size=self.config.scan_batch_size,
            num_workers=self.num_workers, progress=self.progress,
        ).run(title)  # fmt: skip
        store.wait(self.config.scan_timeout)


def _within(rows: range, wanted: Int[Tensor, "k"]) -> Int[Tensor, "m"]:
    """The places in a unit of those samples that it holds."""
    return wanted[(wanted >= rows.start) & (wanted < rows.stop)] - rows.start


def stored_logits(tensors: Mapping[str, Tensor]) -> Tensor:
    """The logits of a unit that stores them as they are."""
    return tensors["logits"]
