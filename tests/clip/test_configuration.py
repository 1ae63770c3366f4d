"""A CLIP folder is data: nothing in its configuration makes code run, and honest ones load."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm

from cgd_wrap.clip import load_zero_shot
from cgd_wrap.clip.configuration import read_configuration
from cgd_wrap.clip.loading import load_tokenizer
from cgd_wrap.clip.weights import locate
from cgd_wrap.demo.run import CLIP
from cgd_wrap.errors import ClipLoadError

DEMO = Path(CLIP.removeprefix("local-dir:"))
CODE = "open({mark!r}, 'w').close()\nclass Thing: pass\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's CLIP with Python files beside it that leave a mark when they run."""
    path = tmp_path / "clip"
    shutil.copytree(DEMO, path)
    for name in ("tokenization_thing.py", "modeling_thing.py", "configuration_thing.py"):
        (path / name).write_text(CODE.format(mark=str(tmp_path / "ran")))
    auto_map = {
        "AutoTokenizer": ["tokenization_thing.Thing", None],
        "AutoConfig": "configuration_thing.Thing",
        "AutoModel": "modeling_thing.Thing",
    }
    for name in ("tokenizer_config.json", "config.json"):
        text = json.dumps({"tokenizer_class": "Thing", "model_type": "thing", "auto_map": auto_map})
        (path / name).write_text(text)
    return path


def change(folder: Path, section: str | None, **values: Any) -> None:
    path = folder / "open_clip_config.json"
    whole = json.loads(path.read_text())
    (whole["model_cfg"][section] if section else whole["model_cfg"]).update(values)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("text_cfg", {"hf_tokenizer_name": "bert-base-uncased",
                      "tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ("text_cfg", {"hf_tokenizer_name": "x/y"}, "the tokenizer of CLIP"),
        ("text_cfg", {"hf_model_name": "{folder}"}, "hf_model_name"),
        ("text_cfg", {"hf_model_name": "someone/custom-tower"}, "hf_model_name"),
        ("text_cfg", {"hf_model_config": {"auto_map": {}}}, "hf_model_config"),
        ("text_cfg", {"tokenizer_kwargs": {"tokenizer_file": "/etc/passwd"}}, "tokenizer_file"),
        ("text_cfg", {"tokenizer_kwargs": ["trust_remote_code"]}, "tokenizer_kwargs"),
        ("text_cfg", {"act_kwargs": {"__class__": "os"}}, "__class__"),
        ("vision_cfg", {"timm_model_name": "hf-hub:someone/else"}, "timm_model_name"),
        ("vision_cfg", {"timm_model_name": "local-dir:/tmp"}, "timm_model_name"),
        ("vision_cfg", {"timm_model_name": 7}, "timm_model_name"),
        ("vision_cfg", {"timm_kwargs": {}}, "timm_kwargs"),
        ("vision_cfg", {"image_size": {"$ref": "x"}}, "image_size"),
        (None, {"text_cfg": "builtins"}, "text_cfg"),
        (None, {"auto_map": {"AutoModel": "modeling_thing.Thing"}}, "auto_map"),
    ],
)  # fmt: skip
def test_a_folder_that_asks_for_code_is_refused_and_runs_nothing(
    section: str | None, values: dict[str, Any], named: str, folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked"))
    filled = {k: str(folder) if v == "{folder}" else v for k, v in values.items()}
    change(folder, section, **filled)
    with pytest.raises(ClipLoadError, match=named):
        load_zero_shot(f"local-dir:{folder}", ["a", "b"])
    assert not (tmp_path / "ran").exists()


def test_all_faults_are_named_at_once(folder: Path) -> None:
    change(folder, "text_cfg", one=1, two=2)
    with pytest.raises(ClipLoadError, match=r"text_cfg\.one.*text_cfg\.two"):
        read_configuration(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_cfg": 3}', "[" * 100_000])
def test_what_is_no_configuration_is_one_clear_error(text: str, folder: Path) -> None:
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(ClipLoadError, match=r"open_clip_config\.json"):
        load_zero_shot(f"local-dir:{folder}", ["a", "b"])


def test_every_configuration_that_open_clip_ships_is_allowed(tmp_path: Path) -> None:
    checked = 0
    for model in open_clip.list_models():
        whole = {"model_cfg": open_clip.get_model_config(model)}
        network = whole["model_cfg"]["vision_cfg"].get("timm_model_name")
        if network and not timm.is_model(network.partition(".")[0]):
            continue  # the oldest timm that we support lacks some
        checked += 1
        (tmp_path / "open_clip_config.json").write_text(json.dumps(whole))
        assert read_configuration(tmp_path) == whole["model_cfg"]
    assert checked > 100


def test_a_tokenizer_of_transformers_without_code_loads(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "photo", "of"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").unlink()
    tokenizer.save_pretrained(folder)
    change(folder, "text_cfg", hf_tokenizer_name="x/y", tokenizer_kwargs={"clean": "lower"})
    assert load_zero_shot(f"local-dir:{folder}", ["a", "photo"]) is not None


def test_a_folder_with_code_beside_an_honest_configuration_loads(
    folder: Path, tmp_path: Path
) -> None:
    load_zero_shot(f"local-dir:{folder}", ["a", "b"])
    assert not (tmp_path / "ran").exists()


def test_keys_that_open_clip_never_reads_are_ignored(folder: Path) -> None:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "library_name": "open_clip"}))
    assert read_configuration(folder)["embed_dim"]


def test_a_hub_tokenizer_is_made_from_the_configuration_that_was_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository's main branch may say something else than the pinned revision."""
    pytest.importorskip("transformers")  # which the core does without
    change(folder, "text_cfg", hf_tokenizer_name="org/words", tokenizer_kwargs={"clean": "lower"})
    (folder / "tokenizer_config.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("cgd_wrap.clip.weights._snapshot", lambda *_: folder)
    monkeypatch.setattr(
        "open_clip.factory._get_hf_config", lambda *_, **__: pytest.fail("read again, unchecked")
    )
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("open_clip.tokenizer.HFTokenizer", lambda **given: asked.append(given))
    load_tokenizer(locate("hf-hub:org/repo", revision="v1"))
    assert asked == [
        {"tokenizer_name": "org/words", "clean": "lower", "context_length": 16,
         "tokenizer_mode": None, "trust_remote_code": False}
    ]  # fmt: skip
