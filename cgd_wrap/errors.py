"""The exceptions that users may want to catch, all derived from :class:`CGDError`."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cgd_wrap.escaping import printable


class CGDError(Exception):
    """Base class of all errors that this library raises on purpose.

    The message is escaped by :func:`cgd_wrap.escaping.printable`, since it may quote foreign text.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(a) if isinstance(a, str) else a for a in args))

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by way of __init__, which takes other arguments in some of the classes below.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class DatasetError(CGDError, ValueError):
    """The dataset cannot be guarded as it is: labels, class names or images are unusable."""


class BadSampleError(DatasetError):
    """One sample cannot be read.

    Attributes:
        index: position of the sample in the user's dataset.
        path: file of the sample, or None where the dataset doesn't know the file.
        reason: short code, such as ``"truncated"`` or ``"not_image"``.
    """

    def __init__(self, index: int, reason: str, message: str, path: str | None = None) -> None:
        where = f"sample {index}" + (f" ({path!r})" if path else "")
        super().__init__(
            f"{where} is unusable [{reason}]: {message}. Repair or remove it, or pass "
            'config=CGDConfig(on_bad_sample="record") to leave such samples out of training.'
        )
        self.index, self.reason, self.message, self.path = index, reason, message, path


class NoImageError(CGDError, TypeError):
    """A sample holds something else where its image should be; the message says what."""


class CacheMismatchError(CGDError, RuntimeError):
    """A cache folder was written for other data or settings, or by another version.

    Attributes:
        fields: name of each field that differs -> (value in the cache, value now).
    """

    def __init__(self, message: str, fields: Mapping[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.fields = dict(fields)


class StoredFileError(CGDError, RuntimeError):
    """A stored file is damaged and isn't made again by itself, or its folder can't be used."""


class ScanIncompleteError(CGDError, RuntimeError):
    """Some units of a scan were not delivered by the process that owns them.

    Attributes:
        missing: numbers of the missing units.
    """

    def __init__(self, message: str, missing: Sequence[int]) -> None:
        super().__init__(message)
        self.missing = list(missing)


class TrainingDivergedError(CGDError, RuntimeError):
    """A loss, gradient or weight of a training stopped being a usable number.

    Attributes:
        step: number of the first such step of the training, from 1.
        epoch: number of the epoch that the step belongs to, from 1.
    """

    def __init__(self, message: str, *, step: int, epoch: int) -> None:
        super().__init__(message)
        self.step, self.epoch = step, epoch

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), step=self.step, epoch=self.epoch), self.args


class ClipLoadError(CGDError, RuntimeError):
    """A CLIP model cannot be loaded with its trained weights."""


class MissingExtraError(CGDError, ImportError):
    """An optional dependency is not installed; the message holds the install command."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"{package} is needed for this and not installed. "
            f"Install it with: pip install 'cgd-wrap[{extra}]'"
        )
        self.extra, self.package = extra, package
