from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attack_record import (
    POISON_EVERY,
    SIZES,
    TARGET,
    change,
    open_sets,
    pixels_and_labels,
    write_tree,
)

from cgd_wrap.backdoorbench import read_attack_result
from cgd_wrap.backdoorbench.result import truth
from cgd_wrap.backdoorbench.stored import StoredSamples


def test_a_result_is_read_with_its_images_and_labels(tmp_path):
    train, test = open_sets(write_tree(tmp_path))
    pixels, labels = pixels_and_labels(0)
    assert (len(train), len(test)) == (SIZES[0], sum(y != TARGET for y in pixels_and_labels(1)[1]))
    for index, (image, label) in enumerate(train):
        stored = index % POISON_EVERY == 1
        assert label == (TARGET if stored else labels[index])
        assert train.original_targets[index] == labels[index]
        assert bool(train.is_poisoned[index]) is stored
        expected = pixels[index].copy()
        if stored:
            expected[-6:, -6:] = 255
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert set(test.targets) == {TARGET}
    assert TARGET not in test.with_original_labels().targets
    assert test.with_original_labels()[3][1] == test.original_targets[3]


@pytest.mark.parametrize("written", ["./record/badnet", "/home/someone/bench/record/badnet"])
def test_a_result_may_have_been_moved(tmp_path, written):
    folder = write_tree(tmp_path / "made", written_root=written)
    moved = tmp_path / "elsewhere" / "record" / "renamed"
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    result = read_attack_result(moved)
    assert all(path is None or Path(path).is_relative_to(moved) for path in result.train.files)


def test_results_written_by_numpy_1_are_read(tmp_path):
    folder = write_tree(tmp_path)
    path = folder / "attack_result.pt"
    expected = read_attack_result(folder).train.original_index
    import zipfile

    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    renamed = {n: d.replace(b"cnumpy._core.", b"cnumpy.core.") for n, d in files.items()}
    assert renamed != files or b"cnumpy.core." in files["attack_result/data.pkl"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in renamed.items():
            archive.writestr(name, data)
    assert torch.equal(read_attack_result(folder).train.original_index, expected)


def test_data_parallel_prefixes_are_taken_off(tmp_path):
    folder = write_tree(tmp_path)
    weights = read_attack_result(folder).weights
    change(folder, model={f"module.{name}": value for name, value in weights.items()})
    assert list(read_attack_result(folder).weights) == list(weights)


@pytest.mark.parametrize(
    ("given", "original", "poison"),
    [
        ([0, 0, 0, 0], [1, 2, 0, 3], [1, 1, 1, 1]),  # one target: its own images are poison, too
        ([0, 0, 2, 0], [1, 2, 2, 0], [1, 1, 0, 1]),  # WaNet: sample 2 is a cross sample
        ([1, 2, 3, 3], [0, 1, 2, 3], [1, 1, 1, 0]),  # all to all
        ([5, 5, 5, 5], [5, 5, 5, 5], [1, 1, 1, 1]),  # clean label
    ],
)
def test_noise_is_told_from_poison(given, original, poison):
    labels = [torch.tensor([*row, -1]) for row in (given, original)]
    stored = torch.tensor([True] * 4 + [False])
    samples = StoredSamples(torch.arange(5), stored, labels[0], labels[1], (None,) * 5, 5)
    is_poison, is_noise = truth(samples)
    assert is_poison.int().tolist() == [*poison, 0]
    assert is_noise.int().tolist() == [*(1 - p for p in poison), 0]
