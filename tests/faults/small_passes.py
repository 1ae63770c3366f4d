"""Each kind of file that the library keeps, made from little data in a moment.

python small_passes.py KIND FOLDER NUMBER: make it, and be killed before that system call.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_store import PRINT, ROWS, values
from tiny_data import NAMES, Items, TintReader, pictures, quick_config, stack, tensors, tiny_net

from cgd_wrap import CGDGuard
from cgd_wrap.clip.zero_shot import OpenClipZeroShot
from cgd_wrap.demo.run import CLIP
from cgd_wrap.processes import Runtime
from cgd_wrap.scan import clip_pass
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.store import UnitStore
from cgd_wrap.scan.suspicious_pass import trained_suspicious_pass

SOME = 24
PICTURES = [image for image, _ in pictures(SOME)]


def options(cache: Path) -> PassOptions:
    return PassOptions(
        folder=cache, dataset={"dataset": "d"}, num_classes=3, runtime=Runtime(torch.device("cpu")),
        config=quick_config(suspicious_epochs=1, suspicious_runs=2), progress=False,
    )  # fmt: skip


def units(folder: Path) -> None:
    """Units of a pass, and their manifest."""
    store = UnitStore.open(folder / "clip", ROWS, PRINT)
    for unit in store.missing(range(len(store))):
        store.write(unit, values(store, unit), {unit * 1024: ["empty", "no bytes", None]})


def text_side(folder: Path) -> None:
    """The pass of an open_clip model with its text side."""
    clip_pass.clip_pass(CLIP, NAMES, PICTURES[:6], options(folder))


def suspicious_weights(folder: Path) -> None:
    """Weights of two suspicious models, what they were trained on, and their pass."""
    images, labels = stack(pictures(SOME))
    trained_suspicious_pass(
        tiny_net(), {}, Items(images), {}, labels, torch.arange(SOME), options(folder)
    )


@functools.cache
def scanned() -> CGDGuard:
    return CGDGuard(
        tiny_net(), tensors(), NAMES, clip=TintReader(), config=quick_config(), progress=False
    ).scan()


def saved_guard(folder: Path) -> None:
    """A guard's scan, over an older one."""
    scanned().save(folder)


KINDS: dict[str, Callable[[Path], None]] = {
    kind.__name__: kind for kind in (units, text_side, suspicious_weights, saved_guard)
}


def load_clips_once(patch: pytest.MonkeyPatch) -> None:
    """Load each CLIP a single time; the models are the real ones."""
    loaded: dict[str, OpenClipZeroShot] = {}
    load = clip_pass.load_zero_shot

    def load_once(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named))
        if key not in loaded:
            loaded[key] = load(*arguments, **named)  # type: ignore[assignment]
        return loaded[key]

    patch.setattr(clip_pass, "load_zero_shot", load_once)


if __name__ == "__main__":
    from power_cut import kill, power_cut

    with power_cut(Path(sys.argv[2]), int(sys.argv[3]), kill):
        KINDS[sys.argv[1]](Path(sys.argv[2]))
