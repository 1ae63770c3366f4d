"""Reading and checking an attack result of BackdoorBench: ``record/<name>/attack_result.pt``."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from cgd_wrap.backdoorbench.errors import AttackResultError
from cgd_wrap.backdoorbench.safe_reading import load_result_file
from cgd_wrap.backdoorbench.stored import StoredSamples, read_stored

FILE_NAME = "attack_result.pt"
WRITTEN_AS: dict[str, tuple[Any, str]] = {
    "model_name": (str, "a text"),
    "num_classes": (int, "a number"),
    "model": (dict, "a state dict"),
    "data_path": (str, "a text"),
    "img_size": ((tuple, list), "(height, width, channels)"),
    "clean_data": (str, "a text"),
    "bd_train": (dict, "a dict"),
    "bd_test": (dict, "a dict"),
}


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The model and the data that an attack of BackdoorBench stored.

    Attributes:
        folder: the result folder, ``record/<name>``.
        model_name: BackdoorBench's name of the model, such as ``"preactresnet18"``.
        num_classes: number of classes.
        weights: state dict of the backdoored model, on the CPU, without the prefix ``module.``.
        data_set: name of the clean data set, such as ``"cifar10"``.
        data_path: folder of the clean data set, as the attack wrote it down.
        image_size: height and width in pixels.
        train: the poisoned training set.
        test: the triggered test set.
    """

    folder: Path
    model_name: str
    num_classes: int
    weights: dict[str, Tensor]
    data_set: str
    data_path: str
    image_size: tuple[int, int]
    train: StoredSamples
    test: StoredSamples

    def data_folder(self, given: str | Path | None = None) -> Path:
        """Find the folder of the clean data set.

        Args:
            given: the folder, or its parent. Default: where the attack found it, but only inside
                the BackdoorBench tree that the result lies in.

        Raises:
            FileNotFoundError: the folder doesn't exist.
        """
        if given is not None:
            given = Path(given)
            return given / self.data_set if (given / self.data_set).is_dir() else given
        root = self._root().resolve()
        parts = PurePosixPath(self.data_path.replace("\\", "/")).parts
        for start in (i for i, part in enumerate(parts) if "data" in part):
            found = root.joinpath(*parts[start:]).resolve()
            if found.is_dir() and found.is_relative_to(root):
                return found
        raise FileNotFoundError(
            f"the clean data of this result is not at {self.data_path!r} below "
            f"{str(root)!r}: pass the folder that holds {self.data_set!r}"
        )

    def _root(self) -> Path:
        """Root of the BackdoorBench tree: the folder that holds ``record``."""
        absolute = self.folder.absolute()
        above = [parent for parent in absolute.parents if parent.name == "record"]
        return above[0].parent if above else absolute.parent.parent


def read_attack_result(path: str | Path) -> AttackResult:
    """Read ``attack_result.pt`` without running anything that is pickled in it.

    Args:
        path: the result folder, or the file itself.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError: the file needs code to be read, such as BackdoorBench v1's pickled images.
        AttackResultError: the result isn't complete, or names images outside its folder.
    """
    path = Path(path)
    file = path if path.suffix == ".pt" else path / FILE_NAME
    raw = load_result_file(file)
    _check_layout(file, raw)
    try:
        return _attack_result(file, raw)
    except AttackResultError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise AttackResultError(
            f"{file} can't be used: what it holds is not laid out as BackdoorBench writes it "
            f"({type(error).__name__}: {error})"
        ) from error


def _attack_result(file: Path, raw: Mapping[str, Any]) -> AttackResult:
    faults: list[str] = []
    weights = _weights(raw["model"], faults)
    size = [int(n) for n in raw["img_size"] if isinstance(n, (int, np.integer))]
    if len(size) < 2 or min(size) < 1:
        got = reprlib.repr(raw["img_size"])
        faults.append(f"img_size: expected (height, width, channels), got {got}")
    sets: dict[str, StoredSamples | None] = {}
    for name in ("bd_train", "bd_test"):
        sets[name] = read_stored(raw[name], name, file.parent, raw["num_classes"], faults)
    train, test = sets["bd_train"], sets["bd_test"]
    if faults or train is None or test is None:
        raise AttackResultError(f"{file} can't be used: " + "; ".join(faults))
    return AttackResult(
        folder=file.parent,
        model_name=raw["model_name"],
        num_classes=raw["num_classes"],
        weights=weights,
        data_set=raw["clean_data"],
        data_path=raw["data_path"],
        image_size=(size[0], size[1]),
        train=train,
        test=test,
    )


def _check_layout(file: Path, raw: Mapping[str, Any]) -> None:
    """Refuse files that are no attack result, hold no training set, or are older than 2024."""
    missing = sorted(set(WRITTEN_AS) - set(raw))
    if missing:
        raise AttackResultError(f"{file} is no attack_result.pt: it lacks {missing}")
    if raw["bd_train"] is None:
        raise AttackResultError(
            f"{file} holds no poisoned training set (bd_train is None), as LIRA and Blind leave "
            "it: they change the training itself, so there is no data to split"
        )
    wrong = [
        f"{name}: expected {expected}, got a {type(raw[name]).__name__}"
        for name, (kind, expected) in WRITTEN_AS.items()
        if not isinstance(raw[name], kind)
    ]
    if wrong:
        raise AttackResultError(f"{file} can't be used: " + "; ".join(wrong))
    if "bd_data_container" not in raw["bd_train"]:
        raise AttackResultError(
            f"{file} has the layout of BackdoorBench v1 (2023): its bd_train holds "
            f"{sorted(map(str, raw['bd_train']))} in place of a bd_data_container. Run the attack "
            "again with the current BackdoorBench"
        )


def _weights(state: Mapping[str, Any], faults: list[str]) -> dict[str, Tensor]:
    """Take DataParallel's prefix off a state dict; values that are no tensors become a fault."""
    wrong = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        faults.append(f"model: expected tensors by name, these are none: {wrong[:5]}")
        return {}
    return {name.removeprefix("module."): value for name, value in state.items()}


def truth(samples: StoredSamples) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"]]:
    """Tell which stored samples are poisoned, and which are noise.

    WaNet, Input-aware and BPP store, beside poisoned images, images with another pattern and their
    right label ("cross" samples, here called noise). BackdoorBench marks both alike, so they are
    told apart by their labels:

    - If the attack changes no label, it is a clean-label attack: all stored samples are poisoned.
    - Otherwise a stored sample with a changed label is poisoned.
    - A stored sample that keeps its label is noise. If the attack has a single target class,
      stored samples of this class are poisoned instead: their images carry the trigger, too.

    Returns:
        Two masks over all samples: poisoned, and noise.
    """
    changed = samples.stored & (samples.given != samples.original)
    kept = samples.stored & ~changed
    targets = samples.given[changed].unique()
    noise = kept & (samples.original != targets[0]) if len(targets) == 1 else kept
    if len(targets) == 0:
        noise = torch.zeros_like(kept)
    return samples.stored & ~noise, noise
