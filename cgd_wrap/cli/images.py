"""A folder of images with a subfolder per class, as a dataset; what isn't read is told."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import DatasetFolder

from cgd_wrap.data.pixels import to_rgb
from cgd_wrap.errors import DatasetError
from cgd_wrap.escaping import escaped_logger

logger = escaped_logger(__name__)

# Of these formats, Pillow reads the header only, or starts another program (Ghostscript, for EPS),
# which no foreign file may do.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# What systems and tools leave in folders, besides all that starts with a dot.
LEFTOVERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found",
             "Thumbs.db", "desktop.ini"}  # fmt: skip
SPLITS = {"train", "training", "trainset", "val", "valid", "validation", "valset", "dev", "eval",
          "evaluation", "test", "testing", "testset", "holdout"}  # fmt: skip
SHOWN = 10  # names in one message, at most


class ImageClasses(DatasetFolder):  # type: ignore[misc]
    """The images below the subfolders of a folder, which are the classes; items are (RGB, label).

    Files of every format that Pillow decodes are read, whatever the case of their suffix. Hidden
    files and folders are left out. Links are followed, also out of the folder, but a folder is
    read once for a class. The log says how many images there are, and what is left out.

    Classes are numbered as timm numbers them: by name, without regard to upper case, and with
    numbers by their value.

    Args:
        root: the folder.
        numbers: class numbers that other images have set, by name. Default: from the names.

    Raises:
        DatasetError: the folder holds splits in place of classes, fewer than 2 classes, a class
            without images, or a class that ``numbers`` doesn't know.
        OSError: a folder can't be read.
    """

    def __init__(self, root: Path, numbers: Mapping[str, int] | None = None) -> None:
        self._numbers = numbers
        super().__init__(str(root), read_image)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Find the class folders, and number them."""
        folders = [e for e in _entries(directory) if e.is_dir() and not _is_leftover(e.name)]
        names = sorted((e.name for e in folders), key=lambda name: (_by_value(name), name))
        splits = sorted(e.path for e in folders if _names_split(e.name) and _only_folders(e.path))
        if splits:
            named = [name for name in names if _names_split(name)]
            hint = f", such as {splits[0]!r} (if that is a class, put its images right into it)"
            raise _splits_error(directory, named, hint)
        _refuse_several_splits(directory, names)
        least = 2 if self._numbers is None else 1
        if len(names) < least:
            raise DatasetError(
                f"expected {least} or more folders of images in {directory!r}, one for each "
                f"class, got {names}"
            )
        if self._numbers is None:
            return names, {name: number for number, name in enumerate(names)}
        if unknown := [name for name in names if name not in self._numbers]:
            raise DatasetError(
                f"{directory!r} has classes that the training images don't have: {unknown[:SHOWN]}"
            )
        return [*self._numbers], dict(self._numbers)

    def make_dataset(
        self, directory: str, class_to_idx: Mapping[str, int], **_: Any
    ) -> list[tuple[str, int]]:
        """List all images with their labels, and log what is left out."""
        left_out, images = Counter[str](), dict[str, list[str]]()
        for entry in _entries(directory):
            if _is_leftover(entry.name):
                left_out[_kind(entry.name)] += 1
            elif entry.is_dir():
                images[entry.name] = sorted(_images_below(entry.path, left_out))
            else:
                left_out[f"{_kind(entry.name)} outside of the class folders"] += 1
        kinds = [f"{count} {kind}" for kind, count in left_out.most_common(SHOWN)]
        kinds += [f"{len(left_out) - SHOWN} other kinds"] if len(left_out) > SHOWN else []
        told = f"left out: {', '.join(kinds) or 'nothing'}"
        if empty := sorted(name for name, paths in images.items() if not paths):
            raise DatasetError(
                f"no images in these class folders of {directory!r}: {empty[:SHOWN]} ({told}). "
                "Fill or remove them"
            )
        samples = [(p, class_to_idx[name]) for name, paths in images.items() for p in paths]
        samples.sort(key=lambda sample: sample[1])
        logger.info("%s: %d images in %d classes; %s.", directory, len(samples), len(images), told)
        return samples


def read_image(path: str) -> Image.Image:
    """Decode an image file, as RGB with 8 bits a channel; of several frames, the first."""
    formats = sorted(set(formats_by_suffix().values()))
    with Image.open(path, formats=formats) as image:
        return to_rgb(image).copy()  # the image of the file itself would keep the closed file


@cache
def formats_by_suffix() -> dict[str, str]:
    """Formats that Pillow decodes on this machine, by the suffixes that mean them."""
    known = Image.registered_extensions()
    return {s: f for s, f in known.items() if f in Image.OPEN and f not in NOT_DECODED}


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _images_below(folder: str, left_out: Counter[str]) -> Iterator[str]:
    """Find all images below a class folder; count the other files by kind."""
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        place = waiting.pop()
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:  # a link back, which would never end
            continue
        seen.add((found.st_dev, found.st_ino))
        before = len(waiting)
        for entry in _entries(place):
            if _is_leftover(entry.name):
                left_out[_kind(entry.name)] += 1
            elif entry.is_dir():
                waiting.append(entry.path)
            elif not entry.is_file():  # to open a pipe would wait for ever
                left_out["broken links and special files"] += 1
            elif _suffix(entry.name) in formats_by_suffix():
                yield entry.path
            else:
                left_out[_kind(entry.name)] += 1
        _refuse_several_splits(place, [os.path.basename(path) for path in waiting[before:]])


def _refuse_several_splits(folder: str, names: Iterable[str]) -> None:
    splits = sorted(name for name in names if name.lower() in SPLITS)
    if len(splits) > 1:
        raise _splits_error(folder, splits)


def _splits_error(folder: str, splits: list[str], example: str = "") -> DatasetError:
    return DatasetError(
        f"{folder!r} holds the splits {splits}, of which one at a time can be read: give a folder "
        f"whose subfolders are the classes{example}"
    )


def _only_folders(path: str) -> bool:
    entries = [entry for entry in _entries(path) if not _is_leftover(entry.name)]
    files = (entry for entry in entries if _suffix(entry.name) in formats_by_suffix())
    return any(entry.is_dir() for entry in entries) and not any(e.is_file() for e in files)


def _names_split(name: str) -> bool:
    """Whether a folder's name says that it is a split: ``val``, ``train2017``, ``test_set``."""
    return not SPLITS.isdisjoint(re.split("[^a-z]+", name.lower()))


def _by_value(name: str) -> list[int | str]:
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in LEFTOVERS


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kind(name: str) -> str:
    """What files of this kind are called where they are counted."""
    if name.startswith("._"):
        return "._*"  # macOS writes such a file beside each other one
    return name if _is_leftover(name) else _suffix(name) or "without a suffix"
