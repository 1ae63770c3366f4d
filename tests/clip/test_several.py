"""A list of CLIPs: passes, scores, teacher, figures and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_data import NAMES, SIZE, TintReader, as_tensor, pictures, quick_config, tensors, tiny_net
from torch import Tensor, nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.clip.several import names_of
from cgd_wrap.demo.run import CLIP
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.functional import label_log_odds_against, normalised_rank
from cgd_wrap.scan.stored_logits import (
    members_of,
)

MANY = 1500


class Backdoored(TintReader):
    """Calls whatever has a white corner red."""

    def logits(self, images: Tensor) -> Tensor:
        seen = super().logits(images)
        seen[:, 0] += 100 * (images[:, :, :3, :3] > 0.99).all(dim=(1, 2, 3))
        return seen


class Victim(nn.Module):
    """Has learned the white corner better than the tint."""

    def forward(self, images: Tensor) -> Tensor:
        return Backdoored().logits(images)


class Sharp(TintReader):
    """The same opinions on another scale."""

    def logits(self, images: Tensor) -> Tensor:
        return 7 * super().logits(images)


def guard_of(clip, data=None, **options) -> CGDGuard:
    options.setdefault("config", quick_config())
    return CGDGuard(tiny_net(), data or tensors(), NAMES, clip=clip, progress=False, **options)


def many() -> list[tuple[Tensor, int]]:
    return [(as_tensor(image), label) for image, label in pictures(MANY)]


# --- in a guard ---------------------------------------------------------------------------------


def test_a_list_of_one_is_that_one():
    alone, listed = guard_of(TintReader()).scan(), guard_of([TintReader()]).scan()
    for name, column in vars(alone.entropy_map).items():
        assert torch.equal(column, getattr(listed.entropy_map, name))
    assert torch.equal(alone.result.teacher, listed.result.teacher)
    assert listed.result.teachers == alone.result.teachers
    assert listed.result.teachers.names == ("CLIP",)
    assert listed.result.teachers.consensus is None


def test_each_clip_has_a_pass_and_the_one_that_contradicts_most_scores(tmp_path):
    guard = guard_of((Backdoored(), Sharp()), cache_dir=tmp_path).scan()
    folders = {path.name for path in tmp_path.iterdir()}
    assert {"clip", "clip-2"} <= folders
    assert "clip-3" not in folders
    images = torch.stack([image for image, _ in tensors()])
    each = [clip.logits(images) for clip in (Backdoored(), Sharp())]
    odds = torch.stack([label_log_odds_against(logits, guard.targets) for logits in each])
    torch.testing.assert_close(
        guard.entropy_map.clip_rank, normalised_rank(odds.amax(dim=0).round(decimals=6)),
        rtol=0, atol=3 / SIZE,  # convolutions may differ in the last bits
    )  # fmt: skip
    clip, _ = guard.logits
    combined = torch.cat([values for _, values, _ in clip.units()])
    expected = torch.stack([logits.log_softmax(1) for logits in each]).mean(0)
    torch.testing.assert_close(combined, expected)
    doubting = torch.stack([logits.log_softmax(1) for logits in each])[odds.argmax(0), range(SIZE)]
    torch.testing.assert_close(guard.result.teacher, doubting[guard.split.triggered])
    assert guard.export(tmp_path / "export")["logits"].is_file()


def test_the_cache_of_a_single_clip_serves_as_the_first_of_a_list(tmp_path):
    class Spent(TintReader):
        def logits(self, images: Tensor) -> Tensor:
            raise AssertionError("a finished pass asked the model")

        def fingerprint(self) -> str:
            return "tint"

    class Tint(TintReader):
        def fingerprint(self) -> str:
            return "tint"

    guard_of(Tint(), cache_dir=tmp_path).scan()
    guard = guard_of([Spent(), Sharp()], cache_dir=tmp_path).scan()
    assert members_of(guard.logits[0])[0].store.folder == tmp_path / "clip"
    guard_of(Spent(), cache_dir=tmp_path).scan()


def test_the_same_clip_twice_is_that_clip_and_prompts_need_no_second_image_pass(tmp_path):
    data = ShapesDataset(100, 5, transform=as_tensor)

    def scanned(clip, folder, **changes) -> CGDGuard:
        config = quick_config(allow_missing_classes=True, suspicious_epochs=1, **changes)
        return CGDGuard(
            tiny_net(classes=10), data, clip=clip, cache_dir=folder, config=config, progress=False
        ).scan()

    alone, twice = scanned(CLIP, tmp_path / "1"), scanned([CLIP, CLIP], tmp_path / "2")
    assert torch.equal(alone.entropy_map.clip_rank, twice.entropy_map.clip_rank)
    torch.testing.assert_close(alone.result.teacher.softmax(1), twice.result.teacher.softmax(1))
    assert (twice.result.teachers.consensus, twice.result.warnings) == (1.0, [])
    units = [tmp_path / "2" / name / "00000.safetensors" for name in ("clip", "clip-2")]
    written = [unit.stat().st_mtime_ns for unit in units]
    reworded = scanned([CLIP, CLIP], tmp_path / "2", prompts="a picture of a {}")
    assert [unit.stat().st_mtime_ns for unit in units] == written
    assert not torch.equal(reworded.entropy_map.clip_nll, twice.entropy_map.clip_nll)


def test_names_and_objects_mix():
    data = ShapesDataset(200, 5, transform=as_tensor)

    class Blind:
        def logits(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3)).repeat(1, 4)[:, :10]

    guard = CGDGuard(
        tiny_net(classes=10), data, clip=[CLIP, Blind()], progress=False,
        config=quick_config(allow_missing_classes=True),
    ).scan()  # fmt: skip
    assert guard.result.teachers.names == (f"CLIP 1 ({CLIP})", "CLIP 2 (test_names_and_objects_mix"
                                           ".<locals>.Blind)")  # fmt: skip
    first, second = guard.result.teachers.agreement
    assert first > 0.8
    assert second < 0.3
    assert guard.result.agreement == second
    assert any(text.startswith("CLIP 2 (") for text in guard.result.warnings)
    assert not any(
        text.startswith("CLIP 1 (") and "hardly" in text for text in guard.result.warnings
    )


@pytest.fixture(scope="module")
def exposed() -> CGDGuard:
    """A poisoned set under a backdoored CLIP and an honest one."""
    return guard_of([Backdoored(), TintReader()], many(), suspicious=Victim()).scan()


def test_a_backdoored_clip_alone_vouches_for_the_poison_and_a_second_one_exposes_it(exposed):
    poison = (torch.arange(MANY) % 10 == 0) & (torch.arange(MANY) % 3 > 0)
    alone = guard_of(Backdoored(), many(), suspicious=Victim()).scan()
    assert alone.split.clean[poison].all()
    assert alone.result.warnings == []
    assert exposed.split.triggered[poison].all()
    [warning] = [text for text in exposed.result.warnings if "itself be backdoored" in text]
    assert warning.startswith("CLIP 1 (Backdoored) takes 100% of the")
    assert "labelled 'red' that look poisoned for just that, CLIP 2 (TintReader) 2" in warning


def test_figures_of_several_clips_count_where_all_agree():
    guard = guard_of([Backdoored(), TintReader()]).scan()
    images = torch.stack([image for image, _ in tensors()])
    choices = [clip.logits(images).argmax(1) for clip in (Backdoored(), TintReader())]
    same, found = (choices[0] == choices[1]).double(), guard.result.teachers
    assert found.consensus == pytest.approx(float(same.mean()))
    assert found.lowest_class == 0
    assert found.lowest_consensus == pytest.approx(float(same[guard.targets == 0].mean()))
    assert found.agreement == pytest.approx(
        [float((choice == guard.targets).double().mean()) for choice in choices]
    )
    assert guard.result.agreement == min(found.agreement)


def test_samples_that_one_clip_cannot_score_are_left_out():
    class Overflows(TintReader):
        def logits(self, images: Tensor) -> Tensor:
            seen = super().logits(images)
            return seen.masked_fill((images == image_7).all(dim=(1, 2, 3))[:, None], float("nan"))

    image_7 = tensors()[7][0]
    config = quick_config(on_bad_sample="record", max_bad_fraction=0.1)
    guard = guard_of([TintReader(), Overflows()], config=config).scan()
    assert list(guard.result.bad) == [7]
    assert guard.split.names()[7] == "unreadable"
    assert guard.entropy_map.clip_rank.isnan().nonzero().tolist() == [[7]]


# --- kept ---------------------------------------------------------------------------------------


def test_figures_and_warnings_are_saved_and_reported(exposed, tmp_path):
    guard = exposed
    assert guard.result.warnings
    guard.save(tmp_path / "guard")
    loaded = CGDGuard.load(
        tmp_path / "guard", tiny_net(), many(), class_names=NAMES, progress=False
    )
    assert loaded.result.warnings == guard.result.warnings
    assert loaded.result.teachers == guard.result.teachers
    files = loaded.report(tmp_path / "report")
    summary = json.loads(files["summary"].read_text())
    assert summary["warnings"] == guard.result.warnings
    assert summary["teachers"]["consensus"] == guard.result.teachers.consensus
    page = files["page"].read_text()
    assert page.index("itself be backdoored") < page.index("Suspected target classes")
    assert "All of them choose the same class for" in page


# --- refused ------------------------------------------------------------------------------------


def test_lists_that_cannot_be_combined_are_refused_at_once():
    with pytest.raises(ValueError, match=r"list of 2, but reference_scores .*know one CLIP"):
        guard_of([TintReader(), Sharp()], config=CGDConfig.paper())
    with pytest.raises(ValueError, match="clip is an empty list"):
        guard_of([])
    guard = guard_of([TintReader(), Sharp()])
    guard.config = CGDConfig.paper()
    with pytest.raises(ValueError, match="list of 2"):
        guard.scan()


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_clip_is_named():
    with pytest.raises(TypeError, match=r"or a list of these, got int"):
        guard_of([TintReader(), 3])
    with pytest.raises(TypeError, match=r"or a list of these, got the class TintReader"):
        guard_of(TintReader)


def test_names_say_which_clip_is_meant():
    assert names_of("ViT-B-32/openai") == ("CLIP",)
    assert names_of(["a/b", Sharp()]) == ("CLIP 1 (a/b)", "CLIP 2 (Sharp)")
