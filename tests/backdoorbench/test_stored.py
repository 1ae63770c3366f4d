from __future__ import annotations

import shutil

import pytest
import torch
from attack_record import change, write_tree
from PIL import Image

from cgd_wrap.backdoorbench import (
    AttackResultError,
    UnsafeFileError,
    clean_images,
    poisoned_samples,
    read_attack_result,
)


def test_pictures_inside_the_pickle_are_the_old_layout(tmp_path):
    folder = write_tree(tmp_path)
    change(folder, bd_train={"x": Image.new("RGB", (4, 4))})
    with pytest.raises(UnsafeFileError, match="v1"):
        read_attack_result(folder)


def escape(state, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    first = next(iter(state["bd_data_container"]["data_dict"].values()))
    first["path"] = "./record/badnet/bd_train_dataset/../../../secret.png"


def link(state, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    path = tmp_path / "record" / "badnet" / "bd_train_dataset" / "1" / "1.png"
    path.unlink()
    path.symlink_to(tmp_path / "secret.png")


def lose(state, tmp_path):
    shutil.rmtree(tmp_path / "record" / "badnet" / "bd_train_dataset" / "1")


def mislabel(state, tmp_path):
    next(iter(state["bd_data_container"]["data_dict"].values()))["other_info"] = [10, 1]


def misplace(state, tmp_path):
    state["original_index_array"] = state["original_index_array"] + 1


def forget(state, tmp_path):
    state["bd_data_container"]["data_dict"].popitem()


def half(state, tmp_path):
    state["poison_indicator"] = state["poison_indicator"] / 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (escape, r"1 samples name an image outside of .*: \[1\]"),
        (link, r"1 samples name an image outside of"),
        (lose, r"10 samples lack their image"),
        (mislabel, r"don't carry two labels in \[0, 10\)"),
        (misplace, "indices below 100"),
        (forget, "have no image path"),
        (half, "poison_indicator must be a row of whole numbers"),
    ],
)
def test_faults_of_a_training_set_are_named(tmp_path, spoil, words):
    folder = write_tree(tmp_path)
    state = torch.load(folder / "attack_result.pt", weights_only=False)
    spoil(state["bd_train"], tmp_path)
    torch.save(state, folder / "attack_result.pt")
    with pytest.raises(AttackResultError, match=words):
        read_attack_result(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bd_train": None}, "LIRA and Blind"),
        ({"bd_train": {"x": torch.zeros(1), "y": torch.zeros(1)}}, "v1"),
        ({"num_classes": "ten"}, "num_classes: expected a number"),
        ({"img_size": ()}, "img_size"),
        ({"model": {"conv": 3}}, "these are none"),
    ],
)
def test_faults_of_a_result_are_named(tmp_path, fields, words):
    folder = write_tree(tmp_path)
    change(folder, **fields)
    with pytest.raises(AttackResultError, match=words):
        read_attack_result(folder)


def test_another_file_is_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "attack_result.pt")
    with pytest.raises(AttackResultError, match=r"no attack_result\.pt: it lacks"):
        read_attack_result(tmp_path)
    with pytest.raises(FileNotFoundError, match="no BackdoorBench result"):
        read_attack_result(tmp_path / "nowhere")


def test_the_clean_data_are_looked_for_within_the_tree(tmp_path):
    folder = write_tree(tmp_path)
    result = read_attack_result(folder)
    assert result.data_folder() == (tmp_path / "data" / "cifar10").resolve()
    assert result.data_folder(tmp_path / "data") == tmp_path / "data" / "cifar10"
    (tmp_path.parent / "database").mkdir(exist_ok=True)
    change(folder, data_path="./data/../../database")
    with pytest.raises(FileNotFoundError, match="pass the folder that holds 'cifar10'"):
        read_attack_result(folder).data_folder()


def test_other_clean_data_are_refused(tmp_path):
    result = read_attack_result(write_tree(tmp_path))
    _, test = clean_images("cifar10", result.data_folder())
    with pytest.raises(AttackResultError, match=r"started from 100 clean images.*has 40"):
        poisoned_samples(result, test)
