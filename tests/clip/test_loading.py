from __future__ import annotations

import logging
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_clips import NAMES, PREPROCESS

from cgd_wrap.clip import OpenClipZeroShot
from cgd_wrap.clip.loading import RGBFirst
from cgd_wrap.errors import ClipLoadError

TYPE_CHECK = "violates type hint"  # where beartype, when it is on, comes first


def test_loading_disturbs_neither_rng_nor_logging(folder: Path) -> None:
    torch.manual_seed(5)
    before, handlers = torch.get_rng_state(), list(logging.getLogger().handlers)
    OpenClipZeroShot(f"local-dir:{folder}", NAMES)
    assert torch.equal(torch.get_rng_state(), before)
    assert logging.getLogger().handlers == handlers


def test_preprocess_converts_before_it_resizes(folder: Path) -> None:
    preprocess = OpenClipZeroShot(f"local-dir:{folder}", NAMES).preprocess
    palette = Image.effect_noise((48, 40), 90).convert("RGB").quantize(16)
    assert torch.equal(preprocess(palette), preprocess(palette.convert("RGB")))
    assert preprocess(palette).shape == (3, 32, 32)
    assert isinstance(pickle.loads(pickle.dumps(preprocess)), RGBFirst)
    with pytest.raises(Exception, match=f"PIL images, got Tensor|{TYPE_CHECK}"):
        preprocess(torch.zeros(3, 32, 32))


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


def test_foreign_and_pickled_checkpoints_are_refused(architecture: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ClipLoadError, match="exactly this architecture"):
        OpenClipZeroShot(f"{architecture}/{tmp_path}/foreign.safetensors", NAMES)
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"state_dict": print}))
    with pytest.raises(ClipLoadError, match="weights_only=True"):
        OpenClipZeroShot(f"{architecture}/{tmp_path}/code.pt", NAMES)
