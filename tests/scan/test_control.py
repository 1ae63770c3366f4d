"""The positive control: known triggers that ride along, and leave the user's data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import NAMES, Items, TintReader, as_tensor, pictures, quick_config, tiny_net

from cgd_wrap import BadSampleError, CGDGuard
from cgd_wrap.files import read_json
from cgd_wrap.scan.control import FAMILIES, FEWEST, SHARE, ControlImages, ControlPlan, Triggers

SIZE = 1200
SMALL = {"suspicious_network": "small", "suspicious_side": 16, "suspicious_epochs": 1}
LABELS = torch.arange(SIZE) % 3


class ByTint(TintReader):
    """Is known by its name, so that nothing is read to find out what it does."""

    def fingerprint(self) -> str:
        return "by tint"


class Pictures(Items):
    classes = NAMES


DATA = Pictures(pictures(SIZE))


def guard_of(cache: Path | None = None, data: Any = DATA, **changes: Any) -> CGDGuard:
    own = ("suspicious", "eval_dataset_view")
    options = {name: changes.pop(name) for name in own if name in changes}
    config = quick_config(**(SMALL | changes))
    return CGDGuard(
        tiny_net(), data, clip=ByTint(), config=config, cache_dir=cache, progress=False, **options
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "scan"


@pytest.fixture(scope="module")
def scanned(cache: Path) -> CGDGuard:
    return guard_of(cache).scan()


# --- the plan -----------------------------------------------------------------------------------


def test_the_plan_has_a_hundredth_of_the_samples_under_wrong_labels() -> None:
    plan = ControlPlan.of(LABELS, {}, 0)
    assert plan.family.bincount().tolist() == [round(SHARE * SIZE)] * len(FAMILIES)
    assert len(plan) <= 0.01 * SIZE
    assert len(plan.source.unique()) == len(plan)
    assert not (LABELS[plan.source] == plan.labels).any()
    for family in range(len(FAMILIES)):
        assert len(plan.labels[plan.family == family].unique()) == 1
    assert len(plan.labels.unique()) == 3  # each family has its own target, as far as there are


def test_the_plan_is_the_seeds() -> None:
    one, same, other = (ControlPlan.of(LABELS, {}, seed) for seed in (0, 0, 1))
    assert one.described() == same.described() != other.described()


@pytest.mark.parametrize(
    "labels", [LABELS[: FEWEST - 1], torch.zeros(SIZE, dtype=torch.int64)], ids=["few", "one class"]
)
def test_where_it_can_tell_nothing_there_is_none(labels: torch.Tensor) -> None:
    assert len(ControlPlan.of(labels, {}, 0)) == 0


def test_a_large_data_set_has_a_smaller_share() -> None:
    plan = ControlPlan.of(torch.arange(2_000_000) % 100, {}, 0)
    assert plan.family.bincount().tolist() == [400] * len(FAMILIES)


def test_samples_that_cannot_be_read_are_not_shown() -> None:
    usual = ControlPlan.of(LABELS, {}, 0)
    bad = {int(index): BadSampleError(int(index), "gone", "gone") for index in usual.source[:5]}
    assert not set(ControlPlan.of(LABELS, bad, 0).source.tolist()) & set(bad)


# --- the triggers -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (500, 375), (3, 40), (1, 1)])
@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=FAMILIES)
def test_each_family_changes_an_image_of_any_size(family: int, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    shown = Triggers(0).put(family, image)
    assert (shown.size, shown.mode) == (size, "RGB")
    assert np.array_equal(np.array(image), noise)
    if min(size) > 3:
        differs = (np.array(shown) != noise).any(axis=2).mean()
        assert (differs < 0.02) if FAMILIES[family] == "patch" else (differs > 0.5)
        again, other = (np.array(Triggers(seed).put(family, image)) for seed in (0, 1))
        assert np.array_equal(np.array(shown), again)
        assert not np.array_equal(np.array(shown), other)


def test_the_images_are_those_of_the_plan() -> None:
    raw = [image for image, _ in DATA.items]
    plan = ControlPlan.of(LABELS, {}, 3)
    shown = ControlImages(raw, plan)
    assert len(shown) == len(plan)
    for row in range(0, len(plan), 5):
        expected = Triggers(3).put(int(plan.family[row]), raw[int(plan.source[row])])
        assert np.array_equal(np.array(shown[row]), np.array(expected))


# --- in a scan ----------------------------------------------------------------------------------


def test_it_is_in_nothing_that_the_user_gets(scanned: CGDGuard) -> None:
    assert len(scanned.split) == len(scanned.entropy_map) == len(scanned.dataset) == SIZE
    for stored in scanned.logits:
        assert sum(len(values) for _, values, _ in stored.units()) == SIZE
        assert [rows.start for rows, _, _ in stored.units()] == [0, 1024]
    indices = scanned.epoch_indices()
    assert max(int(index) % SIZE for index in list(indices.shuffled(0))) < SIZE
    assert len(scanned.result.poison_probability) == SIZE


def test_it_says_where_the_triggers_landed(scanned: CGDGuard) -> None:
    power = scanned.result.power
    assert power is not None
    assert [place.name for place in power.control] == list(FAMILIES)
    assert all(0 <= place.suspicious_rank <= 1 for place in power.control)
    assert scanned.verdict.smallest_noticed == dict(zip(NAMES, power.smallest_noticed, strict=True))


def test_a_finished_scan_has_it_again_and_a_saved_one_too(
    scanned: CGDGuard, cache: Path, tmp_path: Path
) -> None:
    again = guard_of(cache).scan()
    assert again.result.power == scanned.result.power
    scanned.save(tmp_path)
    loaded = CGDGuard.load(tmp_path, tiny_net(), DATA, clip=ByTint())
    assert loaded.verdict == scanned.verdict


def test_the_identity_of_the_data_knows_nothing_of_it(
    scanned: CGDGuard, cache: Path, tmp_path: Path
) -> None:
    without = guard_of(tmp_path, control=False).scan()
    for store in ("clip", "small"):
        one, other = (read_json(folder / store / "manifest.json") for folder in (cache, tmp_path))
        assert one == other
    assert not (tmp_path / "control").exists()
    assert torch.equal(without.entropy_map.clip_rank, scanned.entropy_map.clip_rank)


def test_turned_off_the_verdict_says_so() -> None:
    guard = guard_of(control=False).scan()
    assert guard.result.power is None
    assert guard.verdict.smallest_noticed is None
    if guard.verdict.status == "nothing found":
        assert "was not measured" in guard.verdict.sentence


def test_a_copy_of_the_users_model_learns_it_too() -> None:
    guard = guard_of(suspicious_network="copy").scan()
    assert guard.result.power is not None
    assert len(guard.split) == SIZE


def test_a_given_model_has_not_learned_it() -> None:
    view = Items([(as_tensor(image), label) for image, label in DATA.items])
    guard = guard_of(suspicious=tiny_net(1), eval_dataset_view=view)
    assert guard.scan().result.power is None


def test_the_datas_own_tensors_cannot_be_given_a_trigger() -> None:
    data = Pictures([(as_tensor(image)[:2], label) for image, label in DATA.items])
    raw = Pictures(DATA.items)
    model = tiny_net()
    model[0] = torch.nn.Conv2d(2, 8, 3, padding=1)
    guard = CGDGuard(
        model, data, clip=ByTint(), config=quick_config(), clip_dataset=raw, progress=False
    ).scan()
    assert guard.result.power is None


def test_a_damaged_control_is_made_again(scanned: CGDGuard, cache: Path) -> None:
    unit = next((cache / "control" / "clip").glob("0*.safetensors"))
    unit.write_bytes(b"broken")
    assert guard_of(cache).scan().result.power == scanned.result.power
