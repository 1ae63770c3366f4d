"""Sealed files open only whole, and only at the place that they were written for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from cgd_wrap.sealed import read_sealed, read_sealed_json, write_sealed, write_sealed_json

PLACE = {"kind": "unit", "number": 3}
TENSORS = {
    "logits": torch.arange(12.0).reshape(3, 4),
    "half": torch.ones(2, dtype=torch.float16),
    "bf": torch.ones(3, dtype=torch.bfloat16),
    "scalar": torch.tensor(5),
    "empty": torch.empty(0, 4),
}
NOTES = {"bad": {"7": ["truncated", "a file with an ä", None]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "a.safetensors", TENSORS, PLACE, NOTES)
    return tmp_path / "a.safetensors"


def test_what_was_written_comes_back(file: Path) -> None:
    found = read_sealed(file, PLACE)
    assert found is not None
    tensors, notes = found
    assert notes == NOTES
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_equal_values_give_equal_bytes(file: Path) -> None:
    """Safetensors alone writes metadata of several names in a random order."""
    for number in range(20):
        again = file.with_name(str(number))
        write_sealed(again, dict(reversed(TENSORS.items())), PLACE, NOTES)
        assert again.read_bytes() == file.read_bytes()


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_sealed(tmp_path / "a", {"one": whole, "two": whole, "part": whole[2:]}, PLACE)
    found = read_sealed(tmp_path / "a", PLACE)
    assert found is not None
    assert torch.equal(found[0]["two"], whole)
    assert torch.equal(found[0]["part"], whole[2:])


@pytest.mark.parametrize("place", [{**PLACE, "number": 4}, {"kind": "unit"}, {}])
def test_another_place_opens_nothing(file: Path, place: dict[str, object]) -> None:
    assert read_sealed(file, place) is None


def test_a_missing_a_cut_and_an_alien_file_open_nothing(file: Path) -> None:
    payload = file.read_bytes()
    assert read_sealed(file.with_name("b"), PLACE) is None
    assert read_sealed(file / "below", PLACE) is None
    for cut in (0, 5, 8, 60, len(payload) - 1):
        file.write_bytes(payload[:cut])
        assert read_sealed(file, PLACE) is None
    file.write_bytes(payload + b"x")
    assert read_sealed(file, PLACE) is None
    file.write_text("<html>")
    assert read_sealed(file, PLACE) is None


def test_no_flip_is_taken_for_another_content(file: Path) -> None:
    payload, draw = file.read_bytes(), random.Random(0)
    for _ in range(1000):
        at, bit = draw.randrange(len(payload)), 1 << draw.randrange(8)
        file.write_bytes(payload[:at] + bytes([payload[at] ^ bit]) + payload[at + 1 :])
        found = read_sealed(file, PLACE)
        if found is not None:  # a flip in the order or the spaces of the header changes nothing
            assert found[1] == NOTES
            assert all(torch.equal(found[0][name], TENSORS[name]) for name in TENSORS)


def test_json_is_sealed_too(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"a": [1, {"b": "ä"}], "z": None}
    write_sealed_json(path, value, PLACE)
    assert read_sealed_json(path, PLACE) == value
    assert read_sealed_json(path, {}) is None
    path.write_text(path.read_text().replace("1", "2", 1))
    assert read_sealed_json(path, PLACE) is None
    path.write_text(json.dumps(value))
    assert read_sealed_json(path, PLACE) is None
    path.write_text("[1]")
    assert read_sealed_json(path, PLACE) is None
