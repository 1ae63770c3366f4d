"""Prompt templates: what CLIP's text tower reads for each class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

_NAMED = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


def resolve_prompts(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """Turn a template, a list of them or a set's name into templates that each hold ``{}``.

    Args:
        prompts: one template such as ``"a photo of a {}"``; a list of templates, whose text
            features are averaged; ``"openai"`` (80 templates) or ``"simple"`` (7), open_clip's own
            sets.

    Raises:
        ValueError: there is no template, or a template lacks ``{}``.
        TypeError: a template is no text.
    """
    if isinstance(prompts, str):
        if prompts in _NAMED:
            return _named_templates(_NAMED[prompts])
        prompts = (prompts,)
    if not prompts:
        raise ValueError(
            "prompts is empty: expected at least one template, such as 'a photo of a {}'"
        )
    if wrong := [p for p in prompts if not isinstance(p, str)]:
        raise TypeError(
            f"a prompt template must be text with '{{}}', got {type(wrong[0]).__name__}: "
            "write 'a photo of a {}' in place of a function"
        )
    if wrong := [p for p in prompts if "{}" not in p]:
        raise ValueError(
            f"prompt template {wrong[0]!r} has no '{{}}' for the class name: expected a template "
            "such as 'a photo of a {}', or the name of a set, 'openai' or 'simple'"
        )
    return tuple(prompts)


def fill(template: str, class_name: str) -> str:
    """Put a class name into a template; other braces, in template or name, stay as they are."""
    return template.replace("{}", class_name)


def warn_truncated(tokenizer: Any, texts: Sequence[str], context: int) -> None:
    """Warn when prompts are longer than the text tower's context, which drops their end.

    Args:
        tokenizer: open_clip tokenizer, ``(texts, context_length=...)`` -> tokens [n, length].
        texts: filled prompts.
        context: tokens that the text tower reads, its start and end tokens included.
    """
    # A token covers at least one byte, so that only long texts need to be tokenised twice.
    long = [text for text in texts if len(text.encode()) + 3 > context]
    cut = []
    for start in range(0, len(long), 256):
        batch = long[start : start + 256]
        tokens = tokenizer(batch, context_length=16 * context)
        overflow = (tokens[:, context:] != tokens[:, -1:]).any(dim=1)
        cut += [text for text, over in zip(batch, overflow.tolist(), strict=True) if over]
    if cut:
        examples = ", ".join(repr(text[:80]) for text in cut[:3])
        warnings.warn(
            f"{len(cut)} of {len(texts)} prompts are longer than the {context} tokens that this "
            f"CLIP reads; their end is cut off: {examples}. Shorten the class names.",
            stacklevel=3,
        )


def _named_templates(constant: str) -> tuple[str, ...]:
    import open_clip

    return tuple(template("{}") for template in getattr(open_clip, constant))
