"""Reading the logits of a finished pass from disk, unit by unit; several CLIPs read like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cgd_wrap.clip.several import mean_log_softmax
from cgd_wrap.errors import BadSampleError
from cgd_wrap.scan.store import BadRows, UnitStore


@dataclass(frozen=True)
class StoredLogits:
    """The logits of a finished pass, read unit by unit, since all may not fit in memory.

    Attributes:
        store: the store of the pass.
        to_logits: a unit's tensors -> logits [rows, C].
        within: rows of the store that count, numbered from 0 on. None: all of them.
    """

    store: UnitStore
    to_logits: Callable[[Mapping[str, Tensor]], Tensor]
    within: range | None = None

    def units(self) -> Iterator[tuple[range, Float[Tensor, "rows classes"], BadRows]]:
        """Yield (rows, logits, bad samples) of each unit, in order."""
        for rows, tensors, bad in self._tensors():
            yield rows, self.to_logits(tensors), bad

    def _tensors(self) -> Iterator[tuple[range, dict[str, Tensor], BadRows]]:
        """Yield (rows, tensors, bad samples) of each unit, as far as they count."""
        counting = self.within or range(self.store.rows)
        for rows, tensors, bad in self.store.units():
            kept = range(max(rows.start, counting.start), min(rows.stop, counting.stop))
            if kept == rows and not counting.start:
                yield rows, tensors, bad
            elif len(kept):
                part = slice(kept.start - rows.start, kept.stop - rows.start)
                first = kept.start - counting.start
                yield (
                    range(first, first + len(kept)),
                    {name: tensor[part] for name, tensor in tensors.items()},
                    {i - counting.start: why for i, why in bad.items() if i in kept},
                )

    def rows(self, wanted: Int[Tensor, "k"]) -> Float[Tensor, "k classes"]:
        """Read the logits of some samples, given in ascending order."""
        parts = []
        for rows, logits, _ in self.units():
            parts.append(logits[_within(rows, wanted)])
        return torch.cat(parts)

    def features(self, wanted: Int[Tensor, "k"]) -> Float[Tensor, "k dim"] | None:
        """Read image features of some samples, in ascending order; None where none are stored."""
        parts = []
        for rows, tensors, _ in self._tensors():
            if "features" not in tensors:
                return None
            parts.append(tensors["features"][_within(rows, wanted)].float())
        return torch.cat(parts)


def _within(rows: range, wanted: Int[Tensor, "k"]) -> Int[Tensor, "m"]:
    """Positions within a unit of the wanted samples that the unit holds."""
    return wanted[(wanted >= rows.start) & (wanted < rows.stop)] - rows.start


def stored_logits(tensors: Mapping[str, Tensor]) -> Tensor:
    """Take the logits from the tensors of a unit that stores logits, not features."""
    return tensors["logits"]


@dataclass(frozen=True)
class CombinedLogits(StoredLogits):
    """The logits of several CLIPs, averaged unit by unit.

    See :func:`~cgd_wrap.clip.several.mean_log_softmax`.

    Attributes:
        members: logits of each CLIP, for the same rows.
    """

    members: tuple[StoredLogits, ...] = ()

    @classmethod
    def of(cls, members: Sequence[StoredLogits]) -> StoredLogits:
        """Combine the passes of several CLIPs; a single pass stays as it is."""
        first = members[0]
        if len(members) == 1:
            return first
        return cls(first.store, first.to_logits, members=tuple(members))

    def units(self) -> Iterator[tuple[range, Float[Tensor, "rows classes"], BadRows]]:
        """Yield (rows, averaged logits, samples that are bad for any CLIP) of each unit."""
        for parts in zip(*(member.units() for member in self.members), strict=True):
            bad: BadRows = {}
            for _, _, bad_here in reversed(parts):  # the first CLIP's reason stands
                bad |= bad_here
            yield parts[0][0], mean_log_softmax([values for _, values, _ in parts]), bad


def members_of(logits: StoredLogits) -> tuple[StoredLogits, ...]:
    """The passes of single CLIPs from which logits are combined, or the one pass itself."""
    return logits.members if isinstance(logits, CombinedLogits) else (logits,)


def bad_samples(logits: StoredLogits) -> dict[int, BadSampleError]:
    """Find the samples that a pass couldn't use, by index, without computing any logits."""
    found: BadRows = {}
    for one in reversed(members_of(logits)):  # the first CLIP's reason stands
        found |= one.store.bad()
    return {
        index: BadSampleError(index, str(reason), str(message), path)
        for index, (reason, message, path) in sorted(found.items())
    }
