"""Reading the user's dataset: labels, class names, and images as CLIP and the models need them."""

from __future__ import annotations

from cgd_wrap.data.layout import SampleLayout, find_layout
from cgd_wrap.data.views import (
    EvaluatedImages,
    LabelledImages,
    ModelInputs,
    RawImages,
    RawView,
    check_deterministic,
)

__all__ = [
    "EvaluatedImages",
    "LabelledImages",
    "ModelInputs",
    "RawImages",
    "RawView",
    "SampleLayout",
    "check_deterministic",
    "find_layout",
]
