"""Checking the configuration of a CLIP folder: it may give sizes and names, never code.

``open_clip_config.json`` is written by whoever made the folder or hub repository. open_clip hands
parts of the file on to timm and transformers, where some names stand for "run the Python files
beside me". So only keys and values that this module lists are accepted; all others raise a
:class:`~cgd_wrap.errors.ClipLoadError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cgd_wrap.errors import ClipLoadError

FILE = "open_clip_config.json"
# Keys that open_clip 3.3's classes read; a test checks that they cover its own configurations.
BLOCK = frozenset(
    {
        "act_kwargs", "block_type", "final_ln_after_pool", "heads", "layers", "ls_init_value",
        "mlp_ratio", "norm_kwargs", "output_tokens", "pool_type", "qk_norm", "scale_attn",
        "scale_attn_inner", "scale_fc", "scale_heads", "scaled_cosine_attn", "width",
    }
)  # fmt: skip
TEXT = BLOCK | {
    "context_length", "embed_cls", "eos_id", "hf_model_name", "hf_model_pretrained",
    "hf_pooler_type", "hf_proj_type", "hf_tokenizer_name", "no_causal_mask", "pad_id", "proj_bias",
    "proj_type", "tokenizer_kwargs", "tokenizer_mode", "vocab_size",
}  # fmt: skip
VISION = BLOCK | {
    "attentional_pool", "attn_pooler_heads", "attn_pooler_queries", "head_width", "image_size",
    "no_ln_pre", "patch_dropout", "patch_size", "pos_embed_type", "timm_drop", "timm_drop_path",
    "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
}  # fmt: skip
SECTIONS = {
    "vision_cfg": VISION,
    "text_cfg": TEXT,
    "multimodal_cfg": TEXT | {"attn_pooler_heads", "dim_head", "n_queries"},
}
MODEL = frozenset(
    {
        "custom_text", "embed_dim", "init_logit_bias", "init_logit_scale", "nonscalar_logit_scale",
        "output_dict", "pad_id", "quick_gelu",
    }
)  # fmt: skip
PREPROCESS = frozenset(
    {"fill_color", "interpolation", "mean", "mode", "resize_mode", "size", "std"}
)
TOKENIZER = frozenset({"clean", "language", "reduction_mask", "strip_sep_token"})
LAYER_OPTIONS = frozenset({"approximate", "eps"})  # of an activation or a normalisation
NESTED = {
    "act_kwargs": LAYER_OPTIONS, "norm_kwargs": LAYER_OPTIONS, "tokenizer_kwargs": TOKENIZER,
}  # fmt: skip


def read_configuration(folder: Path) -> dict[str, Any]:
    """Read a CLIP folder's configuration, and check that nothing in it can make code run.

    Args:
        folder: folder with ``open_clip_config.json``, the user's own or from a hub.

    Raises:
        ClipLoadError: the file is no configuration, or holds keys or values that aren't allowed;
            the message names them, up to 10.
    """
    path = folder / FILE
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClipLoadError(f"{path} can't be read as JSON: {error}") from error
    faults = list(_faults_of_file(whole))
    if faults:
        raise ClipLoadError(
            f"{path} holds what a CLIP's configuration may not: {'; '.join(faults[:10])}. "
            "A configuration may give sizes and name the layers of open_clip, timm and "
            "transformers, but it may not name code or another place to load from. Remove these "
            "keys if you know what they are for, or take a CLIP that does without"
        )
    configuration: dict[str, Any] = whole["model_cfg"]
    return configuration


def _faults_of_file(whole: Any) -> Iterator[str]:
    if not isinstance(whole, Mapping) or not isinstance(whole.get("model_cfg"), Mapping):
        yield "no mapping 'model_cfg'"
        return
    yield from _faults("preprocess_cfg.", whole.get("preprocess_cfg", {}), PREPROCESS)
    model = whole["model_cfg"]
    yield from _faults("model_cfg.", model, MODEL, sections=SECTIONS)
    for section in ("vision_cfg", "text_cfg"):
        if not isinstance(model.get(section), Mapping):
            yield f"no mapping 'model_cfg.{section}'"
    for section, allowed in SECTIONS.items():
        values = model.get(section)
        if isinstance(values, Mapping):
            yield from _faults(f"model_cfg.{section}.", values, allowed, sections=NESTED)
            yield from _foreign_names(f"model_cfg.{section}.", values)
            for name, options in NESTED.items():
                yield from _faults(f"model_cfg.{section}.{name}.", values.get(name) or {}, options)


def _faults(
    where: str, values: Any, allowed: frozenset[str], *, sections: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Describe a mapping's unknown keys and values that aren't plain; ``sections`` are skipped."""
    if not isinstance(values, Mapping):
        yield f"{where[:-1]}={values!r} is no mapping"
        return
    sections = sections or {}
    yield from _unknown_keys(where, values, allowed | set(sections))
    for name, value in values.items():
        if name in allowed and name not in sections and not _is_plain(value):
            yield f"{where}{name}={value!r:.80} is neither text, number nor list of numbers"


def _unknown_keys(where: str, values: Mapping[str, Any], allowed: Any) -> Iterator[str]:
    yield from (f"unknown key {where + str(name)!r}" for name in values if name not in allowed)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, (bool, int, float)) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _foreign_names(where: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Describe names by which timm or transformers would load a model from elsewhere."""
    rules: dict[str, tuple[Callable[[str], bool], str]] = {
        "timm_model_name": (_is_timm_architecture, "a network that timm itself holds"),
        "hf_model_name": (
            _is_text_tower_of_open_clip,
            "a text tower that open_clip itself names (and no folder here has this name)",
        ),
    }
    for key, (accepts, expected) in rules.items():
        name = values.get(key)
        if name is not None and not (isinstance(name, str) and accepts(name)):
            yield f"{where}{key}={name!r:.80} is not {expected}"


def _is_timm_architecture(name: str) -> bool:
    import timm

    return not {":", "/"} & set(name) and bool(timm.is_model(name.partition(".")[0]))


def _is_text_tower_of_open_clip(name: str) -> bool:
    import open_clip

    own = (open_clip.get_model_config(model) for model in open_clip.list_models())
    known = {(one or {}).get("text_cfg", {}).get("hf_model_name") for one in own}
    # transformers takes a folder of this name in the working directory for the hub's repository.
    return name in known and not Path(name).exists()
