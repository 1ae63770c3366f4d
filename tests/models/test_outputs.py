from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cgd_wrap.models.outputs import logits_of


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x)]
)
def test_logits_are_found(wrap):
    logits = torch.randn(4, 3)
    assert logits_of(wrap(logits)) is logits


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(4), r"shape \[4\]"),
        (torch.zeros(4, 3, 1), r"shape \[4, 3, 1\]"),
        ((torch.zeros(4, 3), torch.zeros(4, 3)), "tuple"),
        ({"loss": torch.zeros(())}, "dict"),
        (SimpleNamespace(logits=None), "SimpleNamespace"),
        (None, "NoneType"),
    ],
)
def test_other_outputs_are_refused(output, got):
    with pytest.raises(TypeError, match=got):
        logits_of(output)
