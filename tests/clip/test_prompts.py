from __future__ import annotations

from pathlib import Path

import pytest

from cgd_wrap.clip import OpenClipZeroShot
from cgd_wrap.clip.prompts import fill, resolve_prompts


def test_truncated_prompts_warn(folder: Path) -> None:
    long = "a very " + "long " * 300 + "name"
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 16 tokens"):
        OpenClipZeroShot(f"local-dir:{folder}", ["cat", long])
    with pytest.warns(UserWarning, match="1 of 2 prompts"):
        OpenClipZeroShot(f"local-dir:{folder}", ["one two three four five six", "a b c " * 4])


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
