"""Attacks that are fitted to the data set before they can poison it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack, PoisonedDataset, TriggeredDataset
from cgd_wrap.attacks.raw import RawSequence, check_raw, check_target, raw_labels
from cgd_wrap.attacks.surrogate import Material, centred, common_side
from cgd_wrap.data.class_names import find_class_names
from cgd_wrap.data.fingerprint import dataset_fingerprint
from cgd_wrap.data.layout import find_layout
from cgd_wrap.data.pixel_hashes import sample_fingerprint
from cgd_wrap.data.sources import readable
from cgd_wrap.errors import CGDError, DatasetError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.models.small_resnet import small_resnet
from cgd_wrap.models.weights import copy_of, hash_weights
from cgd_wrap.randomness import kept_rng, seeded
from cgd_wrap.sealed import read_sealed, write_sealed

logger = escaped_logger(__name__)

_VERSION = 1  # raised when a change of the library gives other tensors for the same parameters
Transform = Callable[[Any], Any]
FittedAttackT = TypeVar("FittedAttackT", bound="FittedAttack")


@dataclass(frozen=True)
class FittedAttack(Attack):
    """An attack that is trained on the data set: call :meth:`fit` before :meth:`poison`.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of samples that is poisoned, in (0, 1].
        seed: decides every random choice.
        surrogate_epochs: passes in the training of the attacker's own network, at least 1.
        surrogate_samples: largest number of images that the network is trained on, at least 2.
    """

    surrogate_epochs: int = 10
    surrogate_samples: int = 20_000
    # Not an argument, so that replace() gives an attack that has to be fitted anew.
    _tensors: dict[str, Tensor] | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("surrogate_epochs", 1), ("surrogate_samples", 2)):
            value = getattr(self, name)
            require(value >= least, name, f"at least {least}", value)

    @abstractmethod
    def learn(self, material: Material) -> dict[str, Tensor]:
        """Train the networks that the trigger comes from; returns tensors by name, to be stored."""

    def depends_on(self) -> dict[str, Any]:
        """Parameters that :meth:`learn` uses, by name: all but ``rate`` and ``cover_ratio``."""
        compared = {part.name: getattr(self, part.name) for part in fields(self) if part.compare}
        return {name: v for name, v in compared.items() if name not in ("rate", "cover_ratio")}

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` made this attack."""
        return self._tensors is not None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors that :meth:`learn` returned, by name, on the CPU.

        Raises:
            CGDError: the attack is not fitted.
        """
        self.check_fitted()
        assert self._tensors is not None
        return self._tensors

    def check_fitted(self) -> None:
        """Raise an error unless :meth:`fit` made this attack.

        Raises:
            CGDError: the attack is not fitted.
        """
        if not self.fitted:
            name = type(self).__name__
            raise CGDError(
                f"{name} is not fitted: it needs something trained on the data set first. Call "
                f"attack = {name}(...).fit(dataset, cache_dir=...) and use what it returns."
            )

    def fit(
        self: FittedAttackT,
        dataset: Any,
        *,
        cache_dir: str | Path | None = None,
        network: nn.Module | None = None,
        transform: Transform | None = None,
        progress: bool = True,
    ) -> FittedAttackT:
        """Train the attack's networks on a training set, or read them from a cache.

        Args:
            dataset: the data set to be poisoned: raw PIL images and integer labels, no transform.
            cache_dir: folder of the result, one safetensors file, which a later call reads.
            network: the surrogate, untrained, on the device to compute on; a copy is trained. By
                default :func:`~cgd_wrap.models.small_resnet.small_resnet`, on a GPU if there is
                one.
            transform: makes the network's input from a batch [B, 3, S, S] of pixels in [0, 1],
                differentiable; by default ``2 x - 1``. S is the images' usual side, 16 to 64.
            progress: draw progress bars.

        Returns:
            A fitted copy of the attack.

        Raises:
            DatasetError: the dataset cannot be attacked; see :class:`PoisonedDataset`.
        """
        check_raw(dataset)
        with kept_rng(), seeded(self.seed):
            material = self._material(dataset, network, transform or centred, progress)
            path = None
            if cache_dir is not None:
                path = Path(cache_dir) / self._file_name(dataset, material)
            tensors = None if path is None else _stored(path)
            if tensors is None:
                tensors = {k: v.detach().cpu() for k, v in self.learn(material).items()}
                if path is not None:
                    _store(path, tensors)
        # A fresh object, without the cached properties that an earlier fit's tensors gave.
        fitted = replace(self)
        object.__setattr__(fitted, "_tensors", tensors)
        object.__setattr__(fitted, "_scores", self._scores)
        return fitted

    def poison(self, dataset: Any, transform: Transform | None = None) -> PoisonedDataset:
        """Poison a training set; see :class:`PoisonedDataset`.

        Raises:
            CGDError: the attack is not fitted.
        """
        self.check_fitted()
        return super().poison(dataset, transform)

    def triggered(self, dataset: Any, transform: Transform | None = None) -> TriggeredDataset:
        """Put the trigger on a test set; see :class:`TriggeredDataset`.

        Raises:
            CGDError: the attack is not fitted.
        """
        self.check_fitted()
        return super().triggered(dataset, transform)

    def _material(
        self, dataset: Any, network: nn.Module | None, normalise: Transform, progress: bool
    ) -> Material:
        layout = find_layout(dataset)
        labels: Int64[Tensor, "n"] = raw_labels(dataset, layout)
        if len(labels) < 2:
            raise DatasetError(
                f"{type(self).__name__} learns from several images, and the dataset has "
                f"{len(labels)}; pass the whole training set."
            )
        names = find_class_names(dataset, layout)
        check_target(self.target, labels, names)
        num_classes = len(names) if names else int(labels.max()) + 1
        if network is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            network = small_resnet(num_classes).to(device)
        raw = RawSequence(readable(dataset), layout)
        return Material(
            raw=raw, labels=labels, num_classes=num_classes, side=common_side(raw),
            network=copy_of(network), normalise=normalise, seed=self.seed,
            limit=self.surrogate_samples, progress=progress,
        )  # fmt: skip

    def _file_name(self, dataset: Any, material: Material) -> str:
        """Name of the file of tensors: the attack, and a hash of all that the tensors depend on."""
        name = type(self).__name__.lower()
        parts = [
            *(_VERSION, name, self.depends_on(), dataset_fingerprint(dataset)),
            *(sample_fingerprint(material.raw), material.labels),
            *(type(material.network), hash_weights(material.network), material.normalise),
        ]
        return f"{name}-{dataset_fingerprint(parts)}.safetensors"


def _place(path: Path) -> dict[str, str]:
    return {"kind": "fitted attack", "name": path.name}


def _store(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, tensors, _place(path))


def _stored(path: Path) -> dict[str, Tensor] | None:
    """Read the tensors that an earlier fit stored; None where no readable file is."""
    found = read_sealed(path, _place(path))
    if found is None and path.exists():
        logger.warning("%s is damaged and is made anew", path)
    return None if found is None else found[0]
