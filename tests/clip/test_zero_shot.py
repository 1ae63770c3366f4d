"""The zero-shot side: bit-equal to open_clip, honest errors, never random weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from small_clips import NAMES, VIT, config, save_model

from cgd_wrap.clip import OpenClipZeroShot, load_zero_shot

TYPE_CHECK = "violates type hint"  # where beartype, when it is on, comes first


@pytest.mark.parametrize("kind", ["folder", "biased"])
@pytest.mark.parametrize("prompts", ["a photo of a {}", "simple"])
def test_logits_equal_open_clip_bit_for_bit(
    kind: str, prompts: str, images: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    source = f"local-dir:{request.getfixturevalue(kind)}"
    ours = OpenClipZeroShot(source, NAMES, prompts=prompts)
    model, _ = open_clip.create_model_from_pretrained(source)
    model.eval().requires_grad_(False)  # torch's attention takes another path otherwise
    templates = (
        open_clip.SIMPLE_IMAGENET_TEMPLATES
        if prompts == "simple"
        else [lambda name: f"a photo of a {name}"]
    )
    matrix = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer(source), NAMES, templates
    )
    with torch.no_grad():
        cosines = model.encode_image(images, normalize=True)
        logits = model.logit_scale.exp() * cosines @ matrix
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
    assert torch.equal(ours.class_matrix, matrix)
    assert torch.equal(ours.logits(images), logits)
    assert torch.equal(ours(images), logits)


def test_bare_cosines_leave_scale_and_bias_out(biased: Path, images: torch.Tensor) -> None:
    scaled = OpenClipZeroShot(f"local-dir:{biased}", NAMES)
    bare = OpenClipZeroShot(f"local-dir:{biased}", NAMES, scaled_logits=False)
    assert bare.logits(images).abs().max() <= 1.0001
    expected = torch.tensor(2.5).exp() * bare.logits(images) - 3.0
    torch.testing.assert_close(scaled.logits(images), expected)
    assert scaled.fingerprint() == bare.fingerprint()


def test_stored_half_precision_features_give_fp32_logits(
    folder: Path, images: torch.Tensor
) -> None:
    model = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    features = model.features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    logits = model.logits_from_features(features.half())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.logits(images), atol=2e-2, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "amp"])
@pytest.mark.parametrize("kind", ["folder", "biased"])
def test_low_precision_keeps_text_side_and_can_repeat_in_fp32(
    kind: str, precision: str, images: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    source = f"local-dir:{request.getfixturevalue(kind)}"
    full = OpenClipZeroShot(source, NAMES)
    low = OpenClipZeroShot(source, NAMES, precision=precision)
    assert torch.equal(low.class_matrix, full.class_matrix)
    assert torch.equal(low.logit_scale, full.logit_scale)
    features = low.features(images)
    assert features.dtype == torch.float32
    assert not torch.equal(features, full.features(images))
    torch.testing.assert_close(features, full.features(images), atol=0.05, rtol=0)
    torch.testing.assert_close(
        low.features(images, "fp32"), full.features(images), atol=0.02, rtol=0
    )
    with torch.autocast("cpu"):
        assert torch.equal(full.features(images), OpenClipZeroShot(source, NAMES).features(images))
    assert low.fingerprint()["weights"] == full.fingerprint()["weights"]
    assert low.fingerprint() != full.fingerprint()


def test_fingerprint_follows_weights_not_paths(tmp_path: Path, folder: Path) -> None:
    save_model(tmp_path / "same" / "a", config(VIT))
    save_model(tmp_path / "other" / "a", config(VIT), seed=1)
    original = OpenClipZeroShot(f"local-dir:{folder}", NAMES).fingerprint()
    same = OpenClipZeroShot(f"local-dir:{tmp_path / 'same' / 'a'}", NAMES).fingerprint()
    other = OpenClipZeroShot(f"local-dir:{tmp_path / 'other' / 'a'}", NAMES).fingerprint()
    assert original == same
    assert original["weights"] != other["weights"]
    assert json.loads(json.dumps(original)) == original
    assert "0x" not in original["preprocess"]


def test_stays_frozen_and_in_eval_mode(biased: Path) -> None:
    model = OpenClipZeroShot(f"local-dir:{biased}", NAMES)
    model.train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_uint8_batches_are_refused(folder: Path) -> None:
    model = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    with pytest.raises(Exception, match=f"preprocessed floats|{TYPE_CHECK}"):
        model.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="None or 'fp32'"):
        model.features(torch.zeros(1, 3, 32, 32), "bf16")


def test_values_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        OpenClipZeroShot(f"local-dir:{folder}", NAMES, precision="int8")
    with pytest.raises(ValueError, match="class_names is empty"):
        OpenClipZeroShot(f"local-dir:{folder}", [])


def test_own_objects_pass_unchanged() -> None:
    class Mine:
        def logits(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    mine = Mine()
    assert load_zero_shot(mine, NAMES) is mine


def test_objects_without_logits_are_refused() -> None:
    with pytest.raises(Exception, match=rf"logits\(images\)|{TYPE_CHECK}"):
        load_zero_shot(object(), NAMES)  # type: ignore[arg-type]
