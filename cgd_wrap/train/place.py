"""The place that a sampler has come to in a training: what stateful loaders save and restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from cgd_wrap.files import check_fingerprint

ADVICE = "Load it into a loader of the data, the scan and the settings that it was saved with."


class Place:
    """Epoch and position of a sampler: of the pass at work, and of the pass that comes next.

    Args:
        replaced: the user's sampler, in whose place the guard's stands. If it counts epochs, they
            are followed, as the user's script may go on setting the epoch there.

    Attributes:
        epoch: the epoch of the next pass, from 0.
        position: where the next pass starts; above 0 in the rest of a restored epoch.
    """

    def __init__(self, replaced: Any = None) -> None:
        self.epoch = getattr(replaced, "epoch", 0)
        self.position = 0
        self._replaced, self._followed = replaced, self.epoch
        self._pass: tuple[int, int] | None = None  # epoch and position of the pass at work
        self._told: int | None = None  # the epoch that the host has set for the pass that comes
        self._ahead = 0  # our epoch, less the host's, who may count from its own restart
        self._restored = False  # a state was loaded, and the host has set no epoch since
        self._begun = False  # a pass has begun since the state was loaded

    def tell(self, epoch: int) -> None:
        """Take the next pass' epoch from the host; a restored position is kept in its own epoch."""
        if self._restored and not self._begun:
            self._ahead = 0
            self.position = self.position if epoch == self.epoch else 0
        self._told, self.epoch, self._restored = epoch, epoch + self._ahead, False
        if self._pass and self._pass[0] != self.epoch:
            self._pass = None

    def begin(self) -> tuple[int, int]:
        """Begin the next pass; returns its epoch and position."""
        self._follow()
        epoch, position = self.epoch, self.position
        self.enter(epoch, position)
        return epoch, position

    def enter(self, epoch: int, position: int) -> None:
        """Say which pass is at work."""
        if not self._restored:
            self._told = None
        elif self._told is not None:
            # The host has set its own number, and then restored ours: it counts from its restart,
            # as Accelerate does.
            self._ahead = epoch - self._told
        self._pass, self._begun = (epoch, position), True
        self.epoch, self.position = epoch + 1, 0

    def move(self, epoch: int, position: int) -> None:
        """Say how far the pass of an epoch has come."""
        self._pass = (epoch, position)

    def end(self) -> None:
        """Say that a pass has come to its end: what follows is the next epoch."""
        self._pass = None

    def now(self) -> tuple[int, int]:
        """Epoch and position of the pass at work, or of the next one if none is."""
        if self._pass is None:
            self._follow()
        return self._pass or (self.epoch, self.position)

    def restore(self, epoch: int, position: int) -> None:
        """Go on at a saved place with the next pass."""
        self.epoch, self.position, self._ahead = epoch, position, 0
        self._pass, self._restored, self._begun = None, True, False

    def _follow(self) -> None:
        given = getattr(self._replaced, "epoch", self._followed)
        if given != self._followed:
            self._followed = given
            self.tell(given)


def content_hash(value: Any) -> str:
    """Hash tensors by their bytes, dataclasses and sequences by their parts; 16 hex digits."""
    total = blake2b(digest_size=8)
    _hash_into(total, value)
    return total.hexdigest()


def _hash_into(total: blake2b, value: Any) -> None:
    if isinstance(value, Tensor):
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for part in value:
            _hash_into(total, part)
    elif is_dataclass(value):
        for field in fields(value):
            total.update(field.name.encode())
            _hash_into(total, getattr(value, field.name))
    else:
        total.update(repr(value).encode())


def check_state(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a state that was saved for other samples.

    Raises:
        CacheMismatchError: the state lacks some of the wanted values; what differs is named.
    """
    found = {name: state.get(name) for name in wanted}
    check_fingerprint("the state of the guard's samples", found, wanted, advice=ADVICE)
