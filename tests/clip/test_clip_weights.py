from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from small_clips import NAMES

from cgd_wrap.clip import OpenClipZeroShot, load_zero_shot
from cgd_wrap.clip.weights import locate
from cgd_wrap.errors import ClipLoadError


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


def test_cached_hub_models_load_offline(folder: Path, hub_cache: str, images: torch.Tensor) -> None:
    expected = OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    for revision in (None, hub_cache):
        ours = OpenClipZeroShot("hf-hub:org/tiny", NAMES, revision=revision)
        assert torch.equal(ours.logits(images), expected.logits(images))
        assert ours.fingerprint()["revision"] == revision
        assert locate("hf-hub:org/tiny", revision).commit == hub_cache
    with pytest.raises(ClipLoadError, match="at revision 'v2' are not on this machine"):
        OpenClipZeroShot("hf-hub:org/tiny", NAMES, revision="v2")


def test_revision_belongs_to_hub_sources(folder: Path) -> None:
    with pytest.raises(ClipLoadError, match="only hf-hub:org/repo sources"):
        locate(f"local-dir:{folder}", "main")


def test_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(
        (folder / "open_clip_config.json").read_bytes()
    )
    with pytest.raises(ClipLoadError, match=r"open_clip_model\.safetensors not found"):
        OpenClipZeroShot(f"local-dir:{tmp_path}", NAMES)
