"""Text towers and tokenizers of transformers, which a CLIP may name: taken as data, never as code.

transformers runs Python files of a repository whose configuration has an ``auto_map``, after a
question on the terminal. So the configuration is read here, and what transformers gets is a copy
without anything but the settings of its own class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cgd_wrap.errors import ClipLoadError


@contextmanager
def checked_text_tower(text: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Copy the configuration of a text tower of transformers, without what could run code.

    Args:
        text: the checked ``text_cfg`` of a CLIP whose text tower is one of transformers; None for
            a CLIP with a text tower of open_clip.

    Yields:
        Arguments for open_clip's factory: ``text_cfg`` with the copy in place of the repository's
        name; nothing if ``text`` is None.

    Raises:
        ClipLoadError: the tower needs code of its own, or is of a kind that open_clip can't use.
    """
    if text is None:
        yield {}
        return
    from open_clip.hf_configs import arch_dict
    from transformers import CONFIG_MAPPING, PretrainedConfig

    name = text["hf_model_name"]
    given, _ = PretrainedConfig.get_config_dict(name)
    _refuse_code(f"the text tower {name!r} of CLIP (config.json)", given)
    kind = given.get("model_type")
    if kind not in arch_dict or kind not in CONFIG_MAPPING:
        raise ClipLoadError(
            f"the text tower {name!r} of CLIP is of the kind {kind!r:.80}, which open_clip can't "
            f"use. Expected one of {sorted(arch_dict)}"
        )
    known = CONFIG_MAPPING[kind]().to_dict()
    copy = CONFIG_MAPPING[kind](**{key: value for key, value in given.items() if key in known})
    with tempfile.TemporaryDirectory(prefix="cgd-wrap-") as folder:
        copy.save_pretrained(folder)
        yield {"text_cfg": {**text, "hf_model_name": folder, "hf_model_pretrained": False}}


def hub_tokenizer(arguments: Mapping[str, Any]) -> Any:
    """Load a tokenizer of transformers without running code of its repository or folder.

    Args:
        arguments: those of open_clip's ``HFTokenizer``, from a checked configuration.

    Raises:
        ClipLoadError: the tokenizer needs code of its own.
    """
    from open_clip.tokenizer import HFTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    name = arguments["tokenizer_name"]
    _refuse_code(
        f"the tokenizer of CLIP, {name!r} (tokenizer_config.json),", get_tokenizer_config(name)
    )
    try:
        with _no_questions():
            return HFTokenizer(**arguments, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise _needs_code(f"a part of the tokenizer of CLIP, {name!r},") from error


@contextmanager
def _no_questions() -> Iterator[None]:
    """Keep transformers from asking on the terminal whether a repository's code may run.

    ``trust_remote_code=False`` isn't passed on by classes that load further tokenizers from
    subfolders. Where nobody has decided, transformers then asks, unless it may wait 0 seconds for
    an answer; so it raises an error.
    """
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _refuse_code(what: str, configuration: Mapping[str, Any]) -> None:
    if "auto_map" in configuration:
        raise _needs_code(what, f" (auto_map={configuration['auto_map']!r:.80})")


def _needs_code(what: str, where: str = "") -> ClipLoadError:
    return ClipLoadError(
        f"{what} asks for Python code of its own{where}, which is never run. Take a CLIP that does "
        "without"
    )
