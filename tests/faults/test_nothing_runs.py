"""Hostile input for every loader: nothing in a file runs, nobody is asked, the error is ours."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny_data import NAMES, Items, TintReader, tensors, tiny_net

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.backdoorbench import AttackResultError, UnsafeFileError, read_attack_result
from cgd_wrap.backdoorbench.split_clean import read_clean_indices
from cgd_wrap.cli import main
from cgd_wrap.clip import load_zero_shot
from cgd_wrap.demo.run import CLIP
from cgd_wrap.errors import ClipLoadError
from cgd_wrap.files import read_json
from cgd_wrap.models.safe_loading import no_pickled_code
from cgd_wrap.models.weights import load_checkpoint

DEMO = Path(CLIP.removeprefix("local-dir:"))
LAUNCHER = Path(__file__).parents[2] / "integrations" / "timm"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEEP = "[" * 100_000 + "]" * 100_000

TORN = "can't be read as YAML"


class Harmful:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that would be there if something had run; questions on the terminal fail."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked"))
    return tmp_path / "ran"


# --- the same payload in each format of a file of weights ----------------------------------------


def zipped(value: Any, path: Path) -> None:
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def bare(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def tarred(value: Any, path: Path) -> None:
    """The format of torch 0.1, whose parts are pickles."""
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(value)
            part = tarfile.TarInfo(name)
            part.size = len(content)
            file.addfile(part, io.BytesIO(content))


FORMATS = {"zip": zipped, "legacy": legacy, "pickle": bare, "tar": tarred}


def bomb(path: Path) -> None:
    """A zip file as torch writes it, but with a part that unpacks to a thousand times its size."""
    torch.save(tiny_net().state_dict(), path)
    with zipfile.ZipFile(path) as file:
        parts = {part.filename: file.read(part) for part in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, bytes(10**7) if "/data/" in name else content)


@pytest.fixture(params=FORMATS)
def write(request: pytest.FixtureRequest) -> Callable[[Any, Path], None]:
    return FORMATS[request.param]


def test_code_in_a_checkpoint_does_not_run_in_any_format(
    write: Callable[[Any, Path], None], mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 45. Nor where the user has made ``torch.load`` unpickle by default."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name in ("weights.pt", "weights.pth", "weights.bin", "weights.safetensors"):
        path = tmp_path / name
        write({"state_dict": Harmful(mark)}, path)
        with pytest.raises(
            ValueError, match=f"{name}' can't be loaded as weights of Sequential"
        ) as caught:
            load_checkpoint(tiny_net(), path)
        assert "weights_only" not in str(caught.value)  # torch's advice is to let the code run
        guard = CGDGuard(
            tiny_net(), Items(tensors()), NAMES, clip=TintReader(), suspicious=path, progress=False
        )
        with pytest.raises(ValueError, match=f"{name}' can't be loaded"):
            guard.scan()
    assert not mark.exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Row 45."""
    bomb(tmp_path / "attack_result.pt")
    message = r"is compressed \(\d+ bytes that unpack to \d+\), which torch\.save never does"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tiny_net(), tmp_path / "attack_result.pt")
    with pytest.raises(UnsafeFileError, match=message):
        read_attack_result(tmp_path)


def test_the_switch_of_torch_is_put_back(monkeypatch: pytest.MonkeyPatch, mark: Path) -> None:
    payload = io.BytesIO()
    torch.save(Harmful(mark), payload)
    payload.seek(0)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = dict(os.environ)
    with no_pickled_code(), pytest.raises(pickle.UnpicklingError):
        torch.load(payload, weights_only=False)
    assert dict(os.environ) == before
    assert not mark.exists()


# --- CLIP ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clip"
    shutil.copytree(DEMO, path)
    return path


def set_text(folder: Path, **values: Any) -> None:
    path = folder / "open_clip_config.json"
    whole = json.loads(path.read_text())
    whole["model_cfg"]["text_cfg"].update(values)
    path.write_text(json.dumps(whole))


def python_files(folder: Path, mark: Path) -> dict[str, Any]:
    """Write Python files that leave the mark; return an ``auto_map`` that names them."""
    code = f"open({str(mark)!r}, 'w').close()\nclass Thing: pass\n"
    for name in ("tokenization_thing", "modeling_thing", "configuration_thing", "thing"):
        (folder / f"{name}.py").write_text(code)
    return {
        "AutoTokenizer": ["tokenization_thing.Thing", "tokenization_thing.Thing"],
        "AutoConfig": "configuration_thing.Thing", "AutoModel": "modeling_thing.Thing",
        "AutoProcessor": "thing.Thing", "AutoImageProcessor": "thing.Thing",
    }  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """Puts a folder into an offline hub cache, as huggingface_hub lays it out: links to blobs."""
    cache = tmp_path / "hub"
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(cache))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def put(repo: str, folder: Path) -> Path:
        root = cache / f"models--{repo.replace('/', '--')}"
        snapshot, blobs = root / "snapshots" / COMMIT, root / "blobs"
        for path in (snapshot, blobs, root / "refs"):
            path.mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(COMMIT)
        for number, file in enumerate(sorted(folder.iterdir())):
            blob = blobs / f"{number:040x}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)
        return snapshot

    return put


def refused(source: str, message: str, mark: Path) -> None:
    with pytest.raises(ClipLoadError, match=message):
        load_zero_shot(source, ["a", "b"])
    assert not mark.exists()


@pytest.mark.parametrize("place", ["folder", "hub", "another repository"])
@pytest.mark.parametrize("kind", ["Thing", "BertTokenizer"])
def test_a_tokenizer_with_code_of_its_own_is_refused(
    place: str, kind: str, folder: Path, mark: Path, hub: Any, tmp_path: Path
) -> None:
    """Row 47: an ``auto_map`` in tokenizer_config.json, with or without a class that is known."""
    pytest.importorskip("transformers")
    set_text(folder, hf_tokenizer_name="org/words")
    words = folder if place != "another repository" else tmp_path / "words"
    words.mkdir(exist_ok=True)
    config = {"tokenizer_class": kind, "auto_map": python_files(words, mark)}
    (words / "tokenizer_config.json").write_text(json.dumps(config))
    (words / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    if place == "another repository":
        hub("org/words", words)
    if place != "folder":
        hub("org/clip", folder)
    source = f"local-dir:{folder}" if place == "folder" else "hf-hub:org/clip"
    refused(source, "the tokenizer of CLIP, .*asks for Python code of its own", mark)


def test_a_tokenizer_made_of_others_asks_nobody(folder: Path, mark: Path) -> None:
    """Row 47: RAG's tokenizer loads two from subfolders, without saying that no code may run."""
    pytest.importorskip("transformers")
    set_text(folder, hf_tokenizer_name="org/words")
    part = {"model_type": "resnet"}  # a model that has no tokenizer of its own
    config = {"model_type": "rag", "question_encoder": part, "generator": part}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RagTokenizer"}')
    for name in ("question_encoder_tokenizer", "generator_tokenizer"):
        (folder / name).mkdir()
        config = {"tokenizer_class": "Thing", "auto_map": python_files(folder, mark)}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    message = "a part of the tokenizer of CLIP, .*asks for Python code of its own"
    refused(f"local-dir:{folder}", message, mark)


def test_a_tokenizer_beside_files_with_code_for_other_parts_loads_and_runs_nothing(
    folder: Path, mark: Path
) -> None:
    """Row 47: many honest repositories have an ``auto_map`` in config.json, which isn't read."""
    pytest.importorskip("transformers")
    set_text(folder, hf_tokenizer_name="org/words")
    text = json.dumps({"auto_map": python_files(folder, mark), "model_type": "thing"})
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text(text)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    load_zero_shot(f"local-dir:{folder}", ["a", "b"])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "thing"}, "asks for Python code of its own"),
        ({"model_type": "roberta"}, "asks for Python code of its own"),
        ({"model_type": "thing", "auto_map": None}, "of the kind 'thing'"),
        ({"model_type": "timm_wrapper", "auto_map": None}, "of the kind 'timm_wrapper'"),
        ({"auto_map": None}, "of the kind None"),
    ],
)
def test_a_text_tower_with_code_of_its_own_is_refused(
    config: dict[str, Any], message: str, folder: Path, mark: Path, hub: Any, tmp_path: Path
) -> None:
    """Row 47: open_clip itself would ask on the terminal whether the tower's code may run."""
    pytest.importorskip("transformers")
    tower = tmp_path / "tower"
    tower.mkdir()
    whole = {"auto_map": python_files(tower, mark)} | config
    if whole["auto_map"] is None:
        del whole["auto_map"]
    (tower / "config.json").write_text(json.dumps(whole))
    hub("roberta-base", tower)
    set_text(folder, hf_model_name="roberta-base", hf_proj_type="mlp", hf_pooler_type="mean_pooler")
    refused(f"local-dir:{folder}", message, mark)


def test_an_honest_text_tower_loads_by_its_settings_alone(
    folder: Path, mark: Path, hub: Any, tmp_path: Path
) -> None:
    """Row 47: settings that its class doesn't know, such as another's kernels, are left out."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 40, "vocab_size": 50000,
    }  # fmt: skip
    tower = tmp_path / "tower"
    transformers.RobertaConfig(**sizes).save_pretrained(tower)
    snapshot = hub("roberta-base", tower)
    set_text(folder, hf_model_name="roberta-base", hf_proj_type="mlp", hf_pooler_type="mean_pooler")
    whole = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    whole.pop("custom_text", None)
    model = open_clip.CustomTextCLIP(
        **whole | {"text_cfg": whole["text_cfg"] | {"hf_model_pretrained": False}}
    )
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = json.loads((snapshot / "config.json").read_text())
    config |= {"attn_implementation": "someone/kernels", "quantization_config": {"load_in_8bit": 1}}
    (snapshot / "config.json").write_text(json.dumps(config))
    loaded = load_zero_shot(f"local-dir:{folder}", ["a", "b"])
    found = loaded.image_model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())


@pytest.mark.parametrize("place", ["folder", "hub", "architecture"])
def test_pickled_weights_of_a_clip_run_nothing(
    place: str, write: Any, folder: Path, mark: Path, hub: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Row 45: in every format, from each place that a CLIP may come from."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (folder / "open_clip_model.safetensors").unlink()
    name = "model.pth" if place == "folder" else "open_clip_pytorch_model.bin"
    write({"state_dict": Harmful(mark)}, folder / name)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "cgd-hostile", config)
    if place == "hub":
        hub("org/clip", folder)
    source = {
        "folder": f"local-dir:{folder}", "hub": "hf-hub:org/clip",
        "architecture": f"cgd-hostile/{folder / name}",
    }[place]  # fmt: skip
    refused(source, "cannot be loaded as", mark)


def test_compressed_weights_of_a_clip_are_refused(folder: Path, mark: Path) -> None:
    """Row 45."""
    (folder / "open_clip_model.safetensors").unlink()
    bomb(folder / "open_clip_pytorch_model.bin")
    refused(f"local-dir:{folder}", "is compressed", mark)


def test_what_is_no_file_in_a_clip_folder_is_refused(folder: Path, mark: Path) -> None:
    """Row 47: a pipe, or a link to a device, would be read without end."""
    (folder / "open_clip_pytorch_model.bin").symlink_to("/dev/zero")
    refused(f"local-dir:{folder}", r"\['open_clip_pytorch_model\.bin'\], which are no files", mark)


@pytest.mark.parametrize("name", ["../x", "org/../../x", "/etc", "org/x/../../y", "", "org/\0"])
def test_hub_names_that_are_paths_are_refused(name: str, hub: Any, mark: Path) -> None:
    """Row 42."""
    refused(f"hf-hub:{name}", "are not on this machine|no CLIP model in folder", mark)


# --- what else is read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.mkdir [{mark}]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("[" * 40_000, "nested too deeply"),
        ("a: " + "{a: " * 10_000, "nested too deeply"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"aliases \(\*name\) are not read"),
        ("a: &a [*a]", r"aliases \(\*name\) are not read"),
        ("seed: " + "9" * 5000, "integer string conversion"),
        ("a: " + "x" * 60_000, "longer than 50000 characters"),
        ("seed: 1000000000000000000000", "a whole number beyond 9223372036854775807"),
        ("a: [[1, -1000000000000000000000]]", "a whole number beyond"),
        ("- " * 20_000, "nested too deeply"),
        ("a: !!timestamp x", TORN),
        ("a: [1", TORN),
        ("a: 2001-99-99", "month must be in"),
        ("\x00", TORN),
    ],
)
def test_hostile_yaml_is_one_clear_error(
    text: str, message: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 45: settings files of ours, of the launcher and of the BackdoorBench script."""
    path = tmp_path / "settings.yaml"
    path.write_text(text.replace("{mark}", str(mark)))
    expected = rf"settings\.yaml': can't be read as YAML: .*{message.removeprefix(TORN)}"
    with pytest.raises(ValueError, match=expected):
        CGDConfig.from_yaml(path)
    monkeypatch.syspath_prepend(str(LAUNCHER))
    from arguments import parse

    with pytest.raises(ValueError, match="can't be read as YAML"):
        parse(["images", "-c", str(path)])
    assert not mark.exists()


@pytest.mark.parametrize("text", [DEEP, '{"a": ' + DEEP + "}", "9" * 5000, "\ud800", "NaN"])
def test_hostile_json_counts_as_torn(text: str, tmp_path: Path) -> None:
    """Row 35: manifests, requests and splits."""
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_json(path) is None
    (tmp_path / "AWC").mkdir()
    path.rename(tmp_path / "AWC" / "clean_indices.json")
    with pytest.raises(ValueError, match="must hold a list of indices"):
        read_clean_indices(tmp_path)


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:", "local-dir:", "file://", ""])
def test_the_command_line_makes_models_of_timm_alone(
    prefix: str, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 45: names by which timm would load a configuration and weights from elsewhere."""
    from PIL import Image

    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / "a.png")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architecture": "test_vit"}')
    torch.save(Harmful(mark), model / "pytorch_model.bin")
    done = main(["scan", str(tmp_path / "images"), "--out", str(tmp_path / "out"),
                 "--model", f"{prefix}{model}", "--clip", CLIP, "--quiet"])  # fmt: skip
    assert done == 1
    assert "timm knows no model" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("option", ["--initial-checkpoint", "--resume"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_launcher_runs_nothing_in_a_checkpoint(
    option: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 45: also where timm itself asks for a whole pickle, as older versions do."""
    from PIL import Image

    monkeypatch.syspath_prepend(str(LAUNCHER))
    import building
    import train

    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / "a.png")
    legacy({"state_dict": Harmful(mark), "epoch": 1}, tmp_path / "last.pth.tar")

    def as_older_versions_read(*_: Any, **__: Any) -> None:
        torch.load(tmp_path / "last.pth.tar", map_location="cpu", weights_only=False)

    options = [
        str(tmp_path / "images"), "--val-split", "", "--model", "test_vit", "--device", "cpu",
        "--model-kwargs", "img_size=32", "--input-size", "3", "32", "32", "-b", "1", "-j", "0",
        "--output", str(tmp_path / "out"), "--cgd-off", option, str(tmp_path / "last.pth.tar"),
    ]  # fmt: skip
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        train.main(options)
    monkeypatch.setattr(building, "create_model", as_older_versions_read)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train.main(options)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_folder_with_a_loading_script_is_not_run_by_the_launcher(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 45: ``datasets`` before version 4 would ask on the terminal, or run it if told to."""
    monkeypatch.syspath_prepend(str(LAUNCHER))
    from arguments import parse
    from building import datasets

    data = tmp_path / "thing"
    data.mkdir()
    (data / "thing.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    args = parse([str(data), "--dataset", f"hfds/{data}"])
    with pytest.raises(Exception):  # noqa: B017, PT011 - datasets' own, and another each version
        datasets(args)
    assert not mark.exists()


# --- BackdoorBench -------------------------------------------------------------------------------


def hostile_results() -> dict[str, Callable[[dict[str, Any]], None]]:
    laughs: Any = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]

    def entry(state: dict[str, Any]) -> dict[str, Any]:
        return next(iter(state["bd_train"]["bd_data_container"]["data_dict"].values()))

    return {
        "an absolute path": lambda s: entry(s).update(path="/etc/passwd"),
        "a path upwards": lambda s: entry(s).update(path="./record/badnet/../../../x.png"),
        "a path of Windows": lambda s: entry(s).update(path="..\\..\\..\\x.png"),
        "a path with a zero": lambda s: entry(s).update(path="a\0b"),
        "a path of a number": lambda s: entry(s).update(path=7),
        "labels of a number": lambda s: entry(s).update(other_info=7),
        "a key of a text": lambda s: s["bd_train"]["bd_data_container"]["data_dict"].update(x={}),
        "a folder without end": lambda s: s["bd_train"]["bd_data_container"].update(
            save_folder_path=laughs
        ),
        "a size without end": lambda s: s.update(img_size=laughs),
        "a weight's name of a number": lambda s: s.update(model={3: torch.zeros(1)}),
        "huge labels": lambda s: entry(s).update(other_info=[10**30, 10**30]),
    }


@pytest.mark.parametrize("kind", hostile_results())
def test_a_hostile_result_of_backdoorbench_is_refused(kind: str, tmp_path: Path) -> None:
    """Row 45."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "backdoorbench"))
    try:
        from attack_record import attack_state, write_tree
    finally:
        sys.path.pop(0)
    folder = write_tree(tmp_path)
    state = attack_state(folder)
    hostile_results()[kind](state)
    torch.save(state, folder / "attack_result.pt")
    with pytest.raises(AttackResultError, match="can't be used"):
        read_attack_result(folder)
