from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cgd_wrap.attacks import BadNets
from cgd_wrap.attacks.fitting import FittedAttack
from cgd_wrap.attacks.raw import pixels
from cgd_wrap.attacks.surrogate import Material, train_surrogate
from cgd_wrap.errors import CGDError, DatasetError
from cgd_wrap.models.small_resnet import small_resnet

Make = Callable[..., Any]
Draw = Callable[..., Image.Image]


@dataclass(frozen=True)
class MeanColour(FittedAttack):
    """Paints images in a colour that was learned: the mean of the data, plus one number."""

    shade: int = 7
    log: list[str] = dataclasses.field(default_factory=list, compare=False)

    def learn(self, material: Material) -> dict[str, Tensor]:
        self.log.append("learned")
        colour = material.read(material.chosen().tolist()).float().mean(dim=(0, 2, 3))
        return {"colour": colour.round() + self.shade, "drawn": torch.rand(3)}

    def trigger(self, image: Image.Image) -> Image.Image:
        colour = tuple(self.tensors["colour"].int().tolist())
        return Image.new("RGB", image.size, colour)


@dataclass(frozen=True)
class Remembering(MeanColour):
    """Derives its colour from the tensors once, as attacks with networks do."""

    @cached_property
    def colour(self) -> tuple[int, ...]:
        return tuple(self.tensors["colour"].int().tolist())

    def trigger(self, image: Image.Image) -> Image.Image:
        return Image.new("RGB", image.size, self.colour)


def tiny(num_classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return small_resnet(num_classes, (4, 4, 8, 8))


# --- fit ----------------------------------------------------------------------------------------


def test_an_unfitted_attack_says_what_to_do(pictures: Make) -> None:
    attack = MeanColour()
    assert not attack.fitted
    uses = [attack.poison, attack.triggered, lambda base: attack.trigger(base.images[0])]
    for use in uses:
        with pytest.raises(CGDError, match=r"MeanColour is not fitted.* MeanColour\(...\)\.fit\("):
            use(pictures())


def test_fit_gives_a_fitted_copy(pictures: Make) -> None:
    base, attack = pictures(), MeanColour(target=1, shade=3)
    fitted = attack.fit(base)
    assert (fitted.fitted, attack.fitted) == (True, False)
    assert type(fitted) is MeanColour
    assert fitted == attack  # what was learned follows from the parameters and the data
    assert hash(fitted) == hash(attack)
    colour = np.mean([np.asarray(image) for image in base.images], axis=(0, 1, 2)).round() + 3
    poisoned = fitted.poison(base)
    image, label = poisoned[int(poisoned.poisoned[0])]
    assert label == 1
    assert (np.asarray(image) == colour).all()
    assert (np.asarray(fitted.triggered(base)[0][0]) == colour).all()


def test_a_second_fit_forgets_the_first(pictures: Make) -> None:
    base, darker = pictures(), pictures()
    darker.images = [image.point(lambda level: level // 2) for image in darker.images]
    first = Remembering().ranked_by(torch.arange(60.0)).fit(base)
    first.trigger(base.images[0])  # remembers
    second, fresh = first.fit(darker), Remembering().fit(darker)
    marks = [attack.trigger(base.images[0]).tobytes() for attack in (first, second, fresh)]
    assert marks[1] == marks[2] != marks[0]
    assert 59 in second.poison(darker).poisoned  # the ranking is no part of the fit


def test_another_parameter_asks_for_another_fit(pictures: Make) -> None:
    assert not dataclasses.replace(MeanColour().fit(pictures()), shade=4).fitted


def test_pickling(pictures: Make) -> None:
    fitted = MeanColour().fit(pictures())
    twin = pickle.loads(pickle.dumps(fitted))
    assert twin == fitted
    assert all(torch.equal(twin.tensors[name], fitted.tensors[name]) for name in fitted.tensors)


def test_the_global_random_streams_are_untouched_and_not_read(pictures: Make) -> None:
    drawn = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        np.random.seed(seed)
        expected = torch.rand(2).tolist(), np.random.rand(2).tolist()
        torch.manual_seed(seed)
        np.random.seed(seed)
        drawn.append(MeanColour().fit(pictures()).tensors["drawn"])
        assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == expected
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], MeanColour(seed=1).fit(pictures()).tensors["drawn"])


def test_refusals(pictures: Make) -> None:
    with pytest.raises(DatasetError, match="class 4 does not exist"):
        MeanColour(target=4).fit(pictures())
    with pytest.raises(DatasetError, match="belongs on the raw image"):
        MeanColour().fit(BadNets().poison(pictures(), transform=pixels))
    with pytest.raises(DatasetError, match="learns from several images, and the dataset has 1"):
        MeanColour().fit(pictures(1, 1))
    with pytest.raises(ValueError, match="surrogate_epochs must be at least 1, got 0"):
        MeanColour(surrogate_epochs=0)
    with pytest.raises(ValueError, match="surrogate_samples must be at least 2, got 1"):
        MeanColour(surrogate_samples=1)


# --- cache --------------------------------------------------------------------------------------


def test_a_second_fit_reads_the_first(pictures: Make, tmp_path: Path) -> None:
    first = MeanColour().fit(pictures(), cache_dir=tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()
    assert file.suffix == ".safetensors"
    second = MeanColour().fit(pictures(), cache_dir=tmp_path / "new")
    assert (first.log, second.log) == (["learned"], [])
    assert all(torch.equal(second.tensors[name], first.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize("share", ["rate", "seed", "shade", "surrogate_epochs"])
def test_what_a_fit_depends_on(share: str, pictures: Make, tmp_path: Path) -> None:
    MeanColour().fit(pictures(), cache_dir=tmp_path)
    changed = MeanColour(**{share: 0.3 if share == "rate" else 5})
    learned = changed.fit(pictures(), cache_dir=tmp_path).log
    assert learned == ([] if share == "rate" else ["learned"])


def test_other_data_networks_and_transforms_are_other_fits(pictures: Make, tmp_path: Path) -> None:
    def fit(base: Any, **given: Any) -> list[str]:
        return MeanColour().fit(base, cache_dir=tmp_path, **given).log

    fit(pictures())
    assert fit(pictures(61)) == ["learned"]
    relabelled = pictures()
    relabelled.targets = [(label + 1) % 4 for label in relabelled.targets]
    assert fit(relabelled) == ["learned"]
    repainted = pictures()
    repainted.images[0] = Image.new("RGB", (32, 32))
    assert fit(repainted) == ["learned"]
    network = tiny()
    assert fit(pictures(), network=network) == ["learned"]
    assert fit(pictures(), network=network) == []
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert fit(pictures(), network=network) == ["learned"]
    assert fit(pictures(), transform=lambda images: images) == ["learned"]
    assert fit(pictures()) == []


def test_a_damaged_file_is_made_anew(
    pictures: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MeanColour().fit(pictures(), cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with caplog.at_level(logging.WARNING):
        again = MeanColour().fit(pictures(), cache_dir=tmp_path)
    assert again.log == ["learned"]
    assert "is damaged" in caplog.text
    assert file.read_bytes() == whole


def test_the_given_network_is_left_as_it_is(pictures: Make) -> None:
    @dataclass(frozen=True)
    class Trains(MeanColour):
        def learn(self, material: Material) -> dict[str, Tensor]:
            return dict(train_surrogate(material, 1).state_dict())

    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, again = (Trains().fit(pictures(), network=network).tensors for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in first)
