"""The zero-shot side: bit-equal to open_clip, honest errors, never random weights."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import time
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cgd_wrap.clip import OpenClipZeroShot, load_zero_shot
from cgd_wrap.clip.loading import RGBFirst
from cgd_wrap.clip.prompts import fill, resolve_prompts
from cgd_wrap.clip.weights import locate
from cgd_wrap.errors import ClipLoadError

TYPE_CHECK = "Type-check error"  # where beartype, when it is on, comes first
NAMES = ["red square", "blue circle", "green {x}"]
VIT = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TIMM = {
    "timm_model_name": "test_resnet",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 32,
}
PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def config(vision: dict[str, object], **more: object) -> dict[str, object]:
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **more}


def save_model(folder: Path, model_config: dict[str, object], *, seed: int = 0) -> torch.nn.Module:
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**json.loads(json.dumps(model_config)))
        model.logit_scale.data.fill_(2.5)
        if model.logit_bias is not None:
            model.logit_bias.data.fill_(-3.0)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    torch.save(state, folder.parent / "weights.pt")
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(text)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "vit"
    save_model(path, config(VIT))
    return path


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "timm"
    save_model(path, config(TIMM, init_logit_bias=-10.0))
    return path


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("configs") / "cgd-tiny-vit.json"
    path.write_text(json.dumps(config(VIT)))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


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


def test_checkpoint_paths_after_the_architecture(
    folder: Path, architecture: str, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    monkeypatch.chdir(folder.parent)
    for path in (
        f"{folder.name}/open_clip_model.safetensors",
        f"/{str(folder).lstrip('/')}/open_clip_model.safetensors",
        "weights.pt",
    ):
        ours = OpenClipZeroShot(f"{architecture}/{path}", NAMES)
        assert torch.equal(ours.logits(images), expected.logits(images))
        assert ours.fingerprint()["weights"] == expected.fingerprint()["weights"]


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


def test_loading_disturbs_neither_rng_nor_logging(folder: Path) -> None:
    torch.manual_seed(5)
    before, handlers = torch.get_rng_state(), list(logging.getLogger().handlers)
    OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    assert torch.equal(torch.get_rng_state(), before)
    assert logging.getLogger().handlers == handlers


def test_stays_frozen_and_in_eval_mode(biased: Path) -> None:
    model = OpenClipZeroShot(f"local-dir:{biased}", NAMES)
    model.train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_preprocess_converts_before_it_resizes(folder: Path) -> None:
    preprocess = OpenClipZeroShot(f"local-dir:{folder}", NAMES).preprocess
    palette = Image.effect_noise((48, 40), 90).convert("RGB").quantize(16)
    assert torch.equal(preprocess(palette), preprocess(palette.convert("RGB")))
    assert preprocess(palette).shape == (3, 32, 32)
    assert isinstance(pickle.loads(pickle.dumps(preprocess)), RGBFirst)
    with pytest.raises(Exception, match=f"PIL images, got Tensor|{TYPE_CHECK}"):
        preprocess(torch.zeros(3, 32, 32))


def test_uint8_batches_are_refused(folder: Path) -> None:
    model = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    with pytest.raises(Exception, match=f"preprocessed floats|{TYPE_CHECK}"):
        model.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="None or 'fp32'"):
        model.features(torch.zeros(1, 3, 32, 32), "bf16")


def test_truncated_prompts_warn(folder: Path) -> None:
    long = "a very " + "long " * 300 + "name"
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 16 tokens"):
        OpenClipZeroShot(f"local-dir:{folder}", ["cat", long])
    with pytest.warns(UserWarning, match="1 of 2 prompts"):
        OpenClipZeroShot(f"local-dir:{folder}", ["one two three four five six", "a b c " * 4])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-B32/openai", "no open_clip architecture.*ViT-B-32"),
        ("nonsense", "no open_clip architecture.*hf-hub:org/repo"),
        ("ViT-B-32", "the weights are missing. Tags of ViT-B-32: openai.*laion2b_s34b_b79k"),
        ("ViT-B-32/laion3b", "'laion3b' is neither a pretrained tag nor a file. Tags of .*openai"),
        ("ViT-B-32//no/such/clip.pt", "no checkpoint file at '/no/such/clip.pt'"),
        ("ViT-B-32/clip.safetensors", "no checkpoint file at"),
        ("local-dir:/no/such/folder", "open_clip_model.safetensors and open_clip_config.json"),
    ],
)
def test_bad_sources_are_explained(source: str, message: str) -> None:
    with pytest.raises(ClipLoadError, match=message):
        OpenClipZeroShot(source, NAMES)


@pytest.mark.parametrize("source", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:org/no-such-repo-here"])
def test_hub_offline_fails_at_once_with_instructions(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ClipLoadError, match=r"(?s)Without a network.*hf download.*local-dir:"):
        load_zero_shot(source, NAMES)
    assert time.monotonic() - start < 5


@pytest.fixture
def hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository in an offline hub cache, as an earlier download leaves it; its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--tiny"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return commit


def test_cached_hub_models_load_offline(folder: Path, hub_cache: str, images: torch.Tensor) -> None:
    expected = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    for revision in (None, hub_cache):
        ours = OpenClipZeroShot("hf-hub:org/tiny", NAMES, revision=revision)
        assert torch.equal(ours.logits(images), expected.logits(images))
        assert ours.fingerprint()["revision"] == revision
        assert locate("hf-hub:org/tiny", revision).commit == hub_cache
    with pytest.raises(ClipLoadError, match="at revision 'v2' are not on this machine"):
        OpenClipZeroShot("hf-hub:org/tiny", NAMES, revision="v2")


def test_tags_bring_their_activation_and_their_preprocessing(
    architecture: str, hub_cache: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"hf_hub": "org/tiny/", "quick_gelu": True, **PREPROCESS}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, {"tag": tag})
    ours = OpenClipZeroShot(f"{architecture}/tag", NAMES)
    expected = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    assert any(isinstance(m, open_clip.transformer.QuickGELU) for m in ours.modules())
    assert not any(isinstance(m, open_clip.transformer.QuickGELU) for m in expected.modules())
    assert repr(ours.preprocess.transform) == repr(expected.preprocess.transform)
    assert ours.fingerprint()["weights"] == expected.fingerprint()["weights"]


def test_revision_belongs_to_hub_sources(folder: Path) -> None:
    with pytest.raises(ClipLoadError, match="only hf-hub:org/repo sources"):
        locate(f"local-dir:{folder}", "main")


def test_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(
        (folder / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(ClipLoadError, match=r"open_clip_model\.safetensors not found"):
        OpenClipZeroShot(f"local-dir:{tmp_path}", NAMES)


def test_foreign_and_pickled_checkpoints_are_refused(architecture: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ClipLoadError, match="exactly this architecture"):
        OpenClipZeroShot(f"{architecture}/{tmp_path}/foreign.safetensors", NAMES)
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"state_dict": print}))
    with pytest.raises(ClipLoadError, match="weights_only=True"):
        OpenClipZeroShot(f"{architecture}/{tmp_path}/code.pt", NAMES)


def test_prompts() -> None:
    assert resolve_prompts("a {}") == ("a {}",)
    assert resolve_prompts(["a {}", "the {}"]) == ("a {}", "the {}")
    assert len(resolve_prompts("openai")) == 80
    assert resolve_prompts("simple")[0] == "itap of a {}."
    assert fill("{0} {}", "{x}") == "{0} {x}"
    for wrong in ("a photo", ["a {}", "none"]):
        with pytest.raises(ValueError, match=r"has no '\{\}'"):
            resolve_prompts(wrong)
    with pytest.raises(ValueError, match="at least one template"):
        resolve_prompts([])


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
