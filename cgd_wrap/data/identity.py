"""The identity of a data set, for stored results: what it holds and does, and its files.

Reading changes some parts of a dataset: counters, caches, files that are opened late. Such parts
are found by reading, and left out.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cgd_wrap.data.fingerprint import parts
from cgd_wrap.data.image_files import describe_files, files_of
from cgd_wrap.data.probes import spread
from cgd_wrap.data.samples import fatal_probes
from cgd_wrap.data.sources import readable
from cgd_wrap.data.workers import HERE, BadSamples, Workers
from cgd_wrap.files import VOLATILE
from cgd_wrap.randomness import kept_rng

PROBES = 8


def dataset_identity(
    dataset: Any,
    name: str,
    *,
    workers: Workers = HERE,
    known: BadSamples | None = None,
) -> dict[str, Any]:
    """Describe a dataset by its parts and files, without what reading changes.

    Args:
        dataset: any map-style dataset.
        name: what the dataset is called.
        workers: processes that try the few samples first, which are then read in this process.
        known: samples that are known to be bad; they aren't read.

    Returns:
        JSON values by field. ``volatile`` names the parts that reading changes; ``files``, behind
        the name, stands for sizes and times of all files that are found.
    """
    honest = readable(dataset)
    # Other samples than all that were read before: some of these may lie in a cache already.
    before = set(spread(len(dataset), PROBES))
    others = [i for i in spread(len(dataset), 3 * PROBES) if i not in before][::2]
    fatal = fatal_probes(dataset, workers, known, others)

    def read() -> None:
        for index in others:
            with suppress(Exception):
                if index not in fatal:
                    honest[index]

    found: dict[str, Any] = settled_parts(lambda: parts(dataset, name), read)
    return found | {f"{name} files": describe_files(files_of(dataset))}


def settled_parts(describe: Callable[[], dict[str, str]], use: Callable[[], Any]) -> dict[str, Any]:
    """Describe an object before and after its use; leave out what the use changes.

    Args:
        describe: gives the parts of the object, by name.
        use: uses the object, in another way than it was used before.

    Returns:
        The parts that stay, and the names of the others under ``volatile``.
    """
    before = describe()
    with kept_rng():
        use()
    after = describe()
    names = before.keys() | after.keys()
    changed = sorted(name for name in names if before.get(name) != after.get(name))
    kept = {name: text for name, text in before.items() if name not in changed}
    return {**kept, VOLATILE: changed}


def merged(*identities: Mapping[str, Any]) -> dict[str, Any]:
    """Put identities together; what use changes is listed in common."""
    volatile = sorted({name for one in identities for name in one.get(VOLATILE, ())})
    whole = {name: value for one in identities for name, value in one.items()}
    return {**whole, VOLATILE: volatile}


def decoder_versions() -> dict[str, str]:
    """Versions of the packages that decode and resize images: other releases, other pixels.

    The pixels of some samples are hashed by themselves, but one format may be decoded otherwise,
    and the rest not. Releases that only repair something have the same first two numbers. Torch
    itself changes scores by roundings at most.
    """
    found = {}
    for package in ("pillow", "torchvision"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = ".".join(importlib.metadata.version(package).split(".")[:2])
    return found
