"""Finding a CLIP model's trained weights; any doubt is an error, so that none are ever random."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cgd_wrap.clip.configuration import FILE, read_configuration
from cgd_wrap.errors import ClipLoadError
from cgd_wrap.escaping import brief

HUB, DIR = "hf-hub:", "local-dir:"
CONTEXT_LENGTH = 77  # tokens, where a configuration says nothing: open_clip's default
_CHECKPOINT_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy"}
OFFLINE = (
    "Without a network, download it beforehand where there is one "
    "(`hf download {repo} --local-dir clip`), copy the folder here and pass {instead}"
)


@dataclass(frozen=True)
class ClipWeights:
    """Where a trained CLIP model lies on this machine's disk, in open_clip's terms.

    Attributes:
        name: open_clip model name: an architecture, or ``local-dir:`` with a folder.
        checkpoint: file with the weights; None when the folder holds them.
        tokenizer: open_clip model name that open_clip's own tokenizer is looked up by.
        hub_tokenizer: arguments of a tokenizer of transformers, from the checked configuration;
            None where the tokenizer is open_clip's own.
        hub_text: the checked ``text_cfg`` whose text tower is one of transformers; None where the
            text tower is open_clip's own.
        quick_gelu: whether the weights were trained with QuickGELU although the architecture's
            configuration doesn't say so.
        image_options: mean, std, interpolation and resize mode that the weights were trained with.
        commit: hub commit that the files belong to.
    """

    name: str
    checkpoint: str | None
    tokenizer: str
    hub_tokenizer: Mapping[str, Any] | None = None
    hub_text: Mapping[str, Any] | None = None
    quick_gelu: bool = False
    image_options: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None

    @property
    def pickled(self) -> list[Path]:
        """Files of pickled weights, one of which open_clip may read."""
        folder = Path(self.name.removeprefix(DIR))
        files = [Path(self.checkpoint)] if self.checkpoint else _weight_files(folder)
        return [file for file in files if file.suffix != ".safetensors"]


def locate(source: str, revision: str | None = None) -> ClipWeights:
    """Find a CLIP model's weights; download them if the source is a hub repository or a tag.

    Args:
        source: ``"architecture/pretrained-tag"``, ``"architecture/checkpoint-file"`` (split at
            the first slash: ``"ViT-B-32//models/clip.pt"`` for an absolute path),
            ``"hf-hub:org/repo"`` or ``"local-dir:folder"``.
        revision: commit, branch or tag of the hub repository.

    Raises:
        ClipLoadError: the architecture or tag is unknown, a file is missing, or the hub can't be
            reached.
    """
    if revision is not None and not source.startswith(HUB):
        raise ClipLoadError(
            f"revision={revision!r} was given for {source!r}, but only {HUB}org/repo sources "
            "have revisions. Leave it out, or name the hub repository"
        )
    if source.startswith(HUB):
        return _from_hub(source.removeprefix(HUB), revision)
    if source.startswith(DIR):
        return _from_folder(Path(source.removeprefix(DIR)).expanduser())
    return _from_architecture(source)


def _from_architecture(source: str) -> ClipWeights:
    import open_clip

    name, _, rest = source.partition("/")
    if name not in (known := open_clip.list_models()):
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise ClipLoadError(
            f"CLIP model {source!r}: {name!r} is no open_clip architecture"
            + (f" (similar: {', '.join(close)})" if close else "")
            + f". Expected 'architecture/pretrained-tag', 'architecture/checkpoint-file', "
            f"'{HUB}org/repo' or '{DIR}folder'"
        )
    configuration = open_clip.get_model_config(name)
    hub = (_hub_tokenizer(configuration), _hub_text(configuration))
    options = open_clip.get_pretrained_cfg(name, rest)
    if options:
        checkpoint = _download_tag(source, name, options)
        return ClipWeights(
            name,
            str(checkpoint),
            name,
            *hub,
            quick_gelu=bool(options.get("quick_gelu", False)),
            image_options={
                f"image_{key}": options[key]
                for key in ("mean", "std", "interpolation", "resize_mode")
                if key in options
            },
        )
    path = Path(rest).expanduser()
    if rest and path.is_file():
        return ClipWeights(name, str(path), name, *hub)
    raise ClipLoadError(_no_such_weights(source, name, rest))


def _no_such_weights(source: str, name: str, rest: str) -> str:
    import open_clip

    if "/" in rest or Path(rest).suffix in _CHECKPOINT_SUFFIXES:
        return (
            f"CLIP model {source!r}: no checkpoint file at {str(Path(rest).absolute())!r}. "
            "Check the path; an absolute one is written after a second slash: "
            f"'{name}//models/clip.safetensors'"
        )
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    got = f"{rest!r} is neither a pretrained tag nor a file" if rest else "the weights are missing"
    return (
        f"CLIP model {source!r}: {got}. Tags of {name}: {tags}. "
        f"Pass '{name}/<tag>' or '{name}/<checkpoint file>'"
    )


def _download_tag(source: str, name: str, options: dict[str, Any]) -> Path:
    repo, _, file = options.get("hf_hub", "").rpartition("/")
    if repo:
        file = file or "open_clip_pytorch_model.bin"
        safe = "open_clip_model" if file == "open_clip_pytorch_model.bin" else Path(file).stem
        instead = f"'{DIR}clip' or '{name}/clip/<file>'"
        for candidate in dict.fromkeys((f"{safe}.safetensors", file)):
            path = _snapshot(repo, None, [candidate], instead) / candidate
            if path.is_file():
                return path
        raise ClipLoadError(
            f"CLIP model {source!r}: {file!r} is not in the local copy of {repo!r}. "
            + OFFLINE.format(repo=repo, instead=instead)
        )
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(options))
    except Exception as error:
        raise ClipLoadError(
            f"CLIP model {source!r} cannot be downloaded from {options.get('url')!r}: "
            f"{brief(error)}. Without a network, download that file beforehand and pass "
            f"'{name}/<file>'"
        ) from error


def _from_hub(repo: str, revision: str | None) -> ClipWeights:
    instead = f"'{DIR}clip'"
    small = ["*.json", "*.txt", "*.model"]
    folder = _snapshot(repo, revision, [*small, "open_clip_*.safetensors"], instead)
    if not list(folder.glob("open_clip_*.safetensors")):
        folder = _snapshot(repo, revision, ["open_clip_pytorch_model.bin"], instead)
    return replace(_from_folder(folder, from_hub=True), commit=folder.name)


def _from_folder(folder: Path, *, from_hub: bool = False) -> ClipWeights:
    missing = [] if _weight_files(folder) else ["open_clip_model.safetensors"]
    if not (folder / FILE).is_file():
        missing.append(FILE)
    if missing:
        raise ClipLoadError(
            f"no CLIP model in folder {str(folder.absolute())!r}: {' and '.join(missing)} not "
            "found. Expected the layout that open_clip's push_to_hf_hub writes"
        )
    configuration = read_configuration(folder)
    tokenizer = _hub_tokenizer(configuration)
    # A hub repository without tokenizer files means the tokenizer of the name that it gives.
    if tokenizer and not (from_hub and not (folder / "tokenizer_config.json").is_file()):
        tokenizer["tokenizer_name"] = str(folder)
    name = f"{DIR}{folder}"
    return ClipWeights(name, None, name, tokenizer, _hub_text(configuration))


def _weight_files(folder: Path) -> list[Path]:
    """Files of weights in a CLIP folder; what is no file, such as a pipe, would never end."""
    suffixes = {".safetensors", ".bin", ".pth"}
    found = [path for path in sorted(folder.glob("*")) if path.suffix in suffixes]
    strange = [path.name for path in found if path.exists() and not path.is_file()]
    if strange:
        raise ClipLoadError(f"{folder} holds {strange}, which are no files: remove them")
    return found


def _hub_text(configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """Text configuration of a CLIP whose text tower is one of transformers; None for others."""
    text = configuration["text_cfg"]
    return dict(text) if text.get("hf_model_name") else None


def _hub_tokenizer(configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of the tokenizer of transformers that a configuration asks for, if it does."""
    text = configuration["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return None
    return {
        **(text.get("tokenizer_kwargs") or {}),
        "tokenizer_name": text["hf_tokenizer_name"],
        "context_length": text.get("context_length", CONTEXT_LENGTH),
        "tokenizer_mode": text.get("tokenizer_mode"),
    }


def _snapshot(repo: str, revision: str | None, files: list[str], instead: str) -> Path:
    # open_clip's own download retries for 46 s without a network; this is one listing request.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except Exception as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ClipLoadError(
            f"CLIP weights {repo!r}{at} are not on this machine and cannot be downloaded: "
            f"{brief(error)}. " + OFFLINE.format(repo=repo, instead=instead)
        ) from error
