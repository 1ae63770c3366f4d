"""Storing the results of a pass on disk: in units, written atomically, under one fingerprint.

A store is a folder. Its ``manifest.json`` holds the fingerprint of the data and settings that the
results belong to. Each unit (a fixed range of rows) is a file ``NNNNN.safetensors``, sealed by a
hash over its content, its number, its pass and the fingerprint: a file that was damaged or comes
from elsewhere doesn't open, and is made again. A file per unit, and no common list, lets any number
of processes write without locks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from safetensors.torch import load_file
from torch import Tensor

from cgd_wrap.errors import CacheMismatchError, ScanIncompleteError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.files import (
    CACHE_ADVICE,
    FORMAT,
    agreed,
    check_fingerprint,
    check_folder,
    clear_leftovers,
    content_hash,
    differing_fields,
    read_json,
)
from cgd_wrap.sealed import SEAL, read_sealed, read_sealed_json, write_sealed, write_sealed_json

logger = escaped_logger(__name__)

BadRows = dict[int, list[str | None]]  # reason, message and path by index

UNIT_SIZE = 1024  # rows, at least; a unit is what an interrupted process loses at most
MOST_UNITS = 4096


@dataclass(frozen=True)
class UnitStore:
    """The results of one pass over ``rows`` rows, unit by unit.

    Attributes:
        folder: folder of the store.
        rows: number of rows in all.
        made_for: hash of the fingerprint; units with another hash don't count.
        unit_size: rows of a unit; the last may have fewer.
        checked: units that this process has found whole, with their bad samples; what they hold is
            checked again when it is read.
    """

    folder: Path
    rows: int
    made_for: str
    unit_size: int = UNIT_SIZE
    checked: dict[int, BadRows] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        rows: int,
        fingerprint: Mapping[str, Any],
        *,
        derived: Sequence[str] = (),
        overwrite: bool = False,
    ) -> UnitStore:
        """Open or create a store; a complete store may be read-only.

        A damaged manifest is written anew: each unit knows by itself what it was made for.

        Args:
            folder: folder of the store; made if it is missing.
            rows: length of the dataset.
            fingerprint: JSON values by field name, of everything that the results depend on.
            derived: fields that follow from the others, such as weights that were trained here. If
                only these differ, the results are made again without asking.
            overwrite: start afresh if the stored fingerprint differs.

        Raises:
            CacheMismatchError: the folder was made for other data or settings, or by another
                version of this library.
            StoredFileError: the folder is a file, or a link that leads out of its parent.
        """
        check_store(folder, overwrite=overwrite)
        clear_leftovers(folder)
        manifest = read_sealed_json(*_manifest(folder))
        found = {} if manifest is None else manifest["fingerprint"]
        # Units of a store that is there keep their size, whatever a new one would have.
        size = found["unit_size"] if found.get("rows") == rows else unit_size_for(rows)
        wanted = json.loads(json.dumps({**fingerprint, "rows": rows, "unit_size": size}))
        if manifest is not None:
            asked = agreed(found, wanted)
            if not overwrite:
                follows = {name: found.get(name) for name in derived}
                check_fingerprint(folder, found, asked | follows)
            if not differing_fields(found, asked):
                return cls(folder, rows, _hash_of(found), size)
            logger.warning("Replacing %s, which was made for something else.", folder)
        elif _manifest(folder)[0].exists():
            logger.warning("The manifest of %s is damaged or old, and is written anew.", folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Units of the old fingerprint aren't deleted, since another process may already have
        # written new units.
        path, place = _manifest(folder)
        write_sealed_json(path, {"format": FORMAT, "fingerprint": wanted}, place)
        return cls(folder, rows, _hash_of(wanted), size)

    def __len__(self) -> int:
        return -(-self.rows // self.unit_size)

    def rows_of(self, unit: int) -> range:
        """The rows of a unit."""
        return range(unit * self.unit_size, min((unit + 1) * self.unit_size, self.rows))

    def owned_by(self, process_index: int, num_processes: int) -> list[int]:
        """Numbers of the units that a process computes, including units already stored."""
        return list(range(process_index, len(self), num_processes))

    def write(
        self,
        unit: int,
        tensors: Mapping[str, Shaped[Tensor, "rows ..."]],
        bad: Mapping[int, Sequence[str | None]],
    ) -> None:
        """Store a unit: its tensors, and the samples that are bad with their reasons."""
        notes = {"bad": {str(i): list(bad[i]) for i in sorted(bad)}}
        self.checked.pop(unit, None)
        write_sealed(self._file(unit), tensors, self._place(unit), notes)

    def read(self, unit: int) -> tuple[dict[str, Tensor], BadRows] | None:
        """Read a unit's tensors and bad samples; None if it is missing, damaged or another's."""
        found = read_sealed(self._file(unit), self._place(unit))
        if found is None:
            self.checked.pop(unit, None)
            return None
        tensors, notes = found
        bad = {int(index): reason for index, reason in notes["bad"].items()}
        self.checked[unit] = bad
        return tensors, bad

    def bad(self) -> BadRows:
        """Read the bad samples of all units.

        Raises:
            ScanIncompleteError: a unit is missing or damaged.
        """
        found: BadRows = {}
        for unit in range(len(self)):
            if unit not in self.checked and self.read(unit) is None:
                raise self._incomplete(unit)
            found |= self.checked[unit]
        return found

    def mapped(self, unit: int) -> dict[str, Tensor]:
        """Map a unit's tensors into memory: what isn't looked at isn't read.

        Raises:
            ScanIncompleteError: the unit is missing or damaged.
        """
        if self.read(unit) is None:
            raise self._incomplete(unit)
        return load_file(self._file(unit))

    def missing(self, units: Sequence[int]) -> list[int]:
        """List which of some units are missing or damaged; those checked before aren't read."""
        unknown = [unit for unit in units if unit not in self.checked]
        missing = [unit for unit in unknown if self.read(unit) is None]
        unfit = [unit for unit in missing if self._file(unit).exists()]
        if unfit:
            logger.warning(
                "%s: units %s are damaged or of another scan, and are done again.",
                self.folder, unfit[:20],
            )  # fmt: skip
        return missing

    def is_complete(self) -> bool:
        """Whether every unit is stored and undamaged."""
        return not self.missing(range(len(self)))

    def wait(self, timeout: float, *, poll: float = 0.05) -> None:
        """Wait until other processes have stored their units.

        Raises:
            ScanIncompleteError: no new unit was stored for ``timeout`` seconds.
        """
        missing = [
            unit for unit in range(len(self))
            if unit not in self.checked and self.read(unit) is None
        ]  # fmt: skip
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

    def units(self) -> Iterator[tuple[range, dict[str, Tensor], BadRows]]:
        """Yield all units in order: (rows, tensors, bad samples).

        Raises:
            ScanIncompleteError: a unit is missing or damaged.
        """
        for unit in range(len(self)):
            found = self.read(unit)
            if found is None:
                raise self._incomplete(unit)
            yield self.rows_of(unit), *found

    def _incomplete(self, unit: int) -> ScanIncompleteError:
        text = f"{self.folder}: unit {unit} is missing or damaged; scan again"
        return ScanIncompleteError(text, [unit])

    def _file(self, unit: int) -> Path:
        return self.folder / f"{unit:05d}.safetensors"

    def _place(self, unit: int) -> dict[str, Any]:
        return {
            "kind": "unit", "pass": self.folder.name, "unit": unit, "made_for": self.made_for,
        }  # fmt: skip


def unit_size_for(rows: int) -> int:
    """Rows of a unit: of large data sets more, so that no pass has more than 4,096 files."""
    size = UNIT_SIZE
    while size * MOST_UNITS < rows:
        size *= 2
    return size


def check_store(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a store that can't be used, before anything is computed or written.

    Args:
        folder: folder of the store; it may be missing.
        overwrite: a store of an older version may be replaced.

    Raises:
        CacheMismatchError: the store was written by another version of this library.
        StoredFileError: the folder is a file, or a link that leads out of its parent.
    """
    check_folder(folder)
    path, _ = _manifest(folder)
    manifest = read_json(path) or {}
    version = manifest.get("format")
    if type(version) is not int:  # not a bool either
        return
    if version > FORMAT:
        raise CacheMismatchError(
            f"{folder} was written by a newer version of cgd-wrap (format {version}, this one reads"
            f" {FORMAT}), or {path.name} is damaged; it is left as it is. Update cgd-wrap, choose "
            "another folder, or remove that file if you know that the version is the same.",
            {"format": (version, FORMAT)},
        )
    # A damaged number may look like an older version's; older manifests have no seal.
    if 1 <= version < FORMAT and SEAL not in manifest and not overwrite:
        raise CacheMismatchError(
            f"{folder} was written by an older version of cgd-wrap (format {version}, this one "
            f"reads {FORMAT}), whose files can't be checked for damage. {CACHE_ADVICE}",
            {"format": (version, FORMAT)},
        )


def _hash_of(fingerprint: Mapping[str, Any]) -> str:
    return content_hash(json.dumps(fingerprint, sort_keys=True).encode())


def _manifest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Path and place of a store's manifest."""
    return folder / "manifest.json", {"kind": "manifest", "pass": folder.name}
