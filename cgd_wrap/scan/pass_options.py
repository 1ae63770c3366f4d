"""The cache, device and configuration that both passes of a scan share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cgd_wrap.config import CGDConfig
from cgd_wrap.data.identity import merged
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.processes import Runtime
from cgd_wrap.scan.scanner import Scanner
from cgd_wrap.scan.store import UnitStore, check_store, unit_size_for
from cgd_wrap.scan.unit_results import Output


@dataclass(frozen=True)
class PassOptions:
    """The settings that both passes of a scan share.

    Attributes:
        folder: folder of the cache.
        dataset: fingerprint of the user's dataset, JSON values by field.
        num_classes: number of classes.
        config: configuration of the guard.
        runtime: device and processes.
        workers: the processes that read images.
        progress: draw progress bars.
        is_kept: the folder outlives the guard.
        overwrite: replace stored results of other data or settings, instead of raising an error.
        unreadable: samples that are known to be bad, by index; they are not read again.
    """

    folder: Path
    dataset: Mapping[str, Any]
    num_classes: int
    config: CGDConfig
    runtime: Runtime
    workers: Workers = HERE
    progress: bool = True
    is_kept: bool = True
    overwrite: bool = False
    unreadable: BadSamples = field(default_factory=dict)

    def without(self, bad: BadSamples) -> PassOptions:
        """The same options, with further samples that are not read again."""
        return replace(self, unreadable={**bad, **self.unreadable})

    def check_stores(self, names: Sequence[str]) -> None:
        """Refuse a cache, before anything is computed, in which some pass can't be stored.

        Raises:
            CacheMismatchError: a store was written by another version of this library.
            StoredFileError: a folder is a file, or a link that leads out of the cache.
        """
        for name in names:
            check_store(self.folder / name, overwrite=self.overwrite)

    def open_store(
        self, name: str, rows: int, fingerprint: Mapping[str, Any], derived: Sequence[str] = ()
    ) -> UnitStore:
        """Open the store of a pass, under the fingerprints of the dataset and of the pass."""
        return UnitStore.open(
            self.folder / name, rows, merged(self.dataset, fingerprint),
            derived=derived, overwrite=self.overwrite,
        )  # fmt: skip

    def begins(self, name: str) -> bool:
        """Whether a pass has no store yet, or a store that may be replaced."""
        return self.overwrite or not (self.folder / name / "manifest.json").is_file()

    def seems_finished(self, name: str, rows: int) -> bool:
        """Whether a pass has all its files; nothing is opened."""
        units = len(list((self.folder / name).glob("[0-9]*.safetensors")))
        return not self.overwrite and units == -(-rows // unit_size_for(rows))

    def scan(
        self, view: Any, score: Any, store: UnitStore, *, title: str, features: int | None = None
    ) -> None:
        """Run a pass over the rows that its store lacks, and wait for the other processes.

        Args:
            view: ``[i] -> image tensor``.
            score: see :class:`~cgd_wrap.scan.scanner.Scorer`.
            store: store for the results: under ``logits``, or under ``features`` in fp16.
            title: title of the progress bar.
            features: number of features that are stored; None where logits are.
        """
        if store.is_complete():
            return
        self.scan_all(view, [self.output(store, score, features)], title=title)

    def output(self, store: UnitStore, score: Any, features: int | None = None) -> Output:
        """Say what a pass computes: logits, or so many features in fp16."""
        name, width = ("features", features) if features else ("logits", self.num_classes)
        return Output(store, name, (width,), torch.float16 if features else torch.float32, score)

    def scan_all(self, view: Any, outputs: Sequence[Output], *, title: str) -> None:
        """Run several passes that share the reading; see :meth:`scan`.

        Args:
            view: ``[i] -> image tensor``, or a tuple of one for each output.
            outputs: what is computed.
            title: title of the progress bar.
        """
        config = self.config
        Scanner(
            view, outputs,
            runtime=self.runtime,
            max_bad_fraction=config.max_bad_fraction if config.on_bad_sample == "record" else None,
            batch_size=config.scan_batch_size,
            workers=self.workers, known=self.unreadable, progress=self.progress,
        ).run(title)  # fmt: skip
        for output in outputs:
            output.store.wait(config.scan_timeout)
