from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from cgd_wrap.data.failures import bad_sample, classify_failure, ran_out_of_memory
from cgd_wrap.data.pixels import UnusableValuesError, to_rgb
from cgd_wrap.errors import BadSampleError


def failure(action) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def read(path) -> Image.Image:
    with Image.open(path) as image:
        return to_rgb(image)


def test_failures_of_real_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(jpeg, "jpeg")
    Image.fromarray(noise).save(png, "png")
    damaged = bytearray(png.getvalue())
    damaged[60] ^= 0xFF
    contents = {
        "empty": b"",
        "not_image": b"<html>404</html>",
        "truncated": jpeg.getvalue()[:-200],
        "corrupt": bytes(damaged),
    }
    for reason, data in contents.items():
        path = tmp_path / f"{reason}.jpg"
        path.write_bytes(data)
        error = failure(lambda path=path: read(path))
        assert classify_failure(error, str(path)) == reason
        assert classify_failure(error) == reason
    missing = str(tmp_path / "gone.jpg")
    assert classify_failure(failure(lambda: Image.open(missing)), missing) == "missing"


def test_failures_by_type():
    cause = RuntimeError("loader")
    cause.__cause__ = Image.DecompressionBombError("1000 x 1000")
    reasons = {
        "too_large": cause,
        "no_permission": PermissionError(13, "denied"),
        "io_error": OSError(5, "input/output error"),
        "corrupt": zlib.error("bad"),
        "not_image": UnidentifiedImageError("cannot identify image file <_io.BytesIO object>"),
        "getitem_failed": KeyError("bug"),
        "nonfinite": BadSampleError(1, "nonfinite", "x"),
        "out_of_range": UnusableValuesError("out_of_range", "x"),
    }
    assert {reason: classify_failure(error) for reason, error in reasons.items()} == {
        reason: reason for reason in reasons
    }


def test_memory_that_ran_out():
    """Row 40: told by its own words on each device."""
    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**58)):
        error = failure(allocate)
        assert ran_out_of_memory(error)
        assert classify_failure(error) == "too_large"
    assert ran_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert ran_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not ran_out_of_memory(RuntimeError("shape mismatch"))
    assert not ran_out_of_memory(ValueError("out of memory"))


def test_a_bad_sample_says_what_was_wrong_and_where():
    class Files(list):
        paths = ("a.png", "b.png")

    found = bad_sample(KeyError("bug"), 1, Files([0, 0]))
    assert str(found).startswith("sample 1 ('b.png') is unusable [getitem_failed]: KeyError: 'bug'")
    found = bad_sample(UnusableValuesError("nonfinite", "1 value is NaN"), 0, [0])
    assert str(found).startswith("sample 0 is unusable [nonfinite]: 1 value is NaN.")
