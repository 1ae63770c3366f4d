"""The exceptions that users may want to catch, all derived from :class:`CGDError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class CGDError(Exception):
    """Base class of all errors that this library raises on purpose."""


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

    def __reduce__(self) -> tuple[type[BadSampleError], tuple[int, str, str, str | None]]:
        return type(self), (self.index, self.reason, self.message, self.path)


class NoImageError(CGDError, TypeError):
    """A sample holds something else where its image should be; the message says what."""


class CacheMismatchError(CGDError, RuntimeError):
    """A cache folder was written for other data or settings.

    Attributes:
        fields: name of each field that differs -> (value in the cache, value now).
    """

    def __init__(self, message: str, fields: Mapping[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.fields = dict(fields)


class ScanIncompleteError(CGDError, RuntimeError):
    """Some units of a scan were not delivered by the process that owns them.

    Attributes:
        missing: numbers of the missing units.
    """

    def __init__(self, message: str, missing: Sequence[int]) -> None:
        super().__init__(message)
        self.missing = list(missing)


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
