"""Storing the results of a pass on disk: in units, written atomically, under one fingerprint.

A store is a folder. Its ``manifest.json`` holds the fingerprint of the data and settings that the
results belong to. Each unit (a fixed range of rows) has a file ``NNNNN.safetensors`` and, once this
file is safely written, an entry ``NNNNN.json`` with the file's hash. An entry per unit, in place of
one common list, lets any number of processes write without locks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cgd_wrap.errors import CacheMismatchError, ScanIncompleteError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.files import (
    FORMAT,
    check_fingerprint,
    content_hash,
    differing_fields,
    read_json,
    write_atomically,
    write_json,
)

logger = escaped_logger(__name__)

UNIT_SIZE = 1024  # rows; a unit is what an interrupted process loses at most


@dataclass(frozen=True)
class UnitStore:
    """The results of one pass over ``rows`` rows, unit by unit.

    Attributes:
        folder: folder of the store.
        rows: number of rows in all.
        made_for: hash of the fingerprint; units with another hash don't count.
    """

    folder: Path
    rows: int
    made_for: str

    @classmethod
    def open(
        cls, folder: Path, rows: int, fingerprint: Mapping[str, Any], *, overwrite: bool = False
    ) -> UnitStore:
        """Open or create a store; a complete store may be read-only.

        Args:
            folder: folder of the store; made if it is missing.
            rows: length of the dataset.
            fingerprint: JSON values by field name, of everything that the results depend on.
            overwrite: start afresh if the stored fingerprint differs.

        Raises:
            CacheMismatchError: the folder was made for other data or settings, or by a newer
                version of this library.
        """
        wanted = json.loads(json.dumps({**fingerprint, "rows": rows, "unit_size": UNIT_SIZE}))
        path = folder / "manifest.json"
        store = cls(folder, rows, content_hash(json.dumps(wanted, sort_keys=True).encode()))
        if path.exists():
            manifest = read_json(path) or {}
            if manifest.get("format", 0) > FORMAT:
                raise CacheMismatchError(
                    f"{folder} was written by a newer version of cgd-wrap (format "
                    f"{manifest['format']}, this one reads {FORMAT}); it is left as it is. "
                    "Update cgd-wrap, or choose another folder.",
                    {"format": (manifest["format"], FORMAT)},
                )
            found = manifest.get("fingerprint", {})
            if not overwrite:
                check_fingerprint(folder, found, wanted)
            if not differing_fields(found, wanted):
                return store
            logger.warning("Replacing %s, which was made for something else.", folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Units of the old fingerprint aren't deleted, since another process may already have
        # written new units.
        write_json(path, {"format": FORMAT, "fingerprint": wanted})
        return store

    def __len__(self) -> int:
        return -(-self.rows // UNIT_SIZE)

    def rows_of(self, unit: int) -> range:
        """The rows of a unit."""
        return range(unit * UNIT_SIZE, min((unit + 1) * UNIT_SIZE, self.rows))

    def owned_by(self, process_index: int, num_processes: int) -> list[int]:
        """Numbers of the units that a process computes, including units already stored."""
        return list(range(process_index, len(self), num_processes))

    def write(
        self,
        unit: int,
        tensors: Mapping[str, Shaped[Tensor, "rows ..."]],
        bad: Mapping[int, Sequence[str | None]],
    ) -> None:
        """Store a unit: first its payload, then the entry that makes it count."""
        payload = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_atomically(self._payload(unit), payload)
        write_json(
            self._entry(unit),
            {
                "made_for": self.made_for,
                "blake2b": content_hash(payload),
                "bad": {str(i): list(bad[i]) for i in sorted(bad)},
            },
        )

    def read(self, unit: int) -> tuple[dict[str, Tensor], dict[int, list[str | None]]] | None:
        """Read a unit's tensors and bad samples; None if the unit is missing, torn or damaged."""
        entry = self._entered(unit)
        if entry is None:
            return None
        try:
            payload = self._payload(unit).read_bytes()
            if content_hash(payload) != entry["blake2b"]:
                raise ValueError("its hash differs")
            tensors = load_tensors(payload)
            if any(len(tensor) != len(self.rows_of(unit)) for tensor in tensors.values()):
                raise ValueError("it has another number of rows")
            bad = {int(index): reason for index, reason in entry["bad"].items()}
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            logger.debug("%s is damaged: %s", self._payload(unit), error)
            return None
        return tensors, bad

    def missing(self, units: Sequence[int]) -> list[int]:
        """List which of some units are missing or damaged."""
        missing = [unit for unit in units if self.read(unit) is None]
        damaged = [unit for unit in missing if self._entered(unit)]
        if damaged:
            logger.warning("%s: units %s are damaged and done again.", self.folder, damaged[:20])
        return missing

    def is_complete(self) -> bool:
        """Whether every unit is stored and undamaged."""
        return not self.missing(range(len(self)))

    def wait(self, timeout: float, *, poll: float = 0.05) -> None:
        """Wait until other processes have stored their units.

        Raises:
            ScanIncompleteError: no new unit was stored for ``timeout`` seconds.
        """
        missing = [unit for unit in range(len(self)) if self.read(unit) is None]
        deadline = time.monotonic() + timeout
        while missing:
            if time.monotonic() > deadline:
                raise ScanIncompleteError(
                    f"{self.folder}: no progress in {timeout:.0f} s, units {missing[:20]} of "
                    f"{len(self)} are missing. The process that owned them has failed: see its "
                    "log, then start again. What is done is kept.",
                    missing,
                )
            time.sleep(poll)
            now = [unit for unit in missing if self.read(unit) is None]
            if len(now) < len(missing):
                deadline = time.monotonic() + timeout
            missing = now

    def units(self) -> Iterator[tuple[range, dict[str, Tensor], dict[int, list[str | None]]]]:
        """Yield all units in order: (rows, tensors, bad samples).

        Raises:
            ScanIncompleteError: a unit is missing or damaged.
        """
        for unit in range(len(self)):
            found = self.read(unit)
            if found is None:
                message = f"{self.folder}: unit {unit} is missing or damaged; scan again"
                raise ScanIncompleteError(message, [unit])
            yield self.rows_of(unit), *found

    def _entered(self, unit: int) -> dict[str, Any] | None:
        entry = read_json(self._entry(unit))
        return entry if entry and entry.get("made_for") == self.made_for else None

    def _payload(self, unit: int) -> Path:
        return self.folder / f"{unit:05d}.safetensors"

    def _entry(self, unit: int) -> Path:
        return self.folder / f"{unit:05d}.json"
