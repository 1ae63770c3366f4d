from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import TABLE_CLASSES, TABLE_SIZE, made_up_table

from cgd_wrap.train.tags import TAG, is_tagged, tagged_index


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1))
def test_tags_carry_the_index_and_labels_stay_untagged(indices):
    index = torch.tensor(indices)
    assert is_tagged(index + TAG).all()
    assert torch.equal(tagged_index(index + TAG), index)
    assert not is_tagged(index).any()
    assert (tagged_index(index) == 0).all()


@given(st.integers(0, 2**31 - 1))
def test_a_tag_cut_to_int32_is_negative(index):
    assert torch.tensor(TAG + index).to(torch.int32) < 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_loss_that_was_not_wrapped_refuses_tags(dtype):
    tags = torch.tensor([TAG, TAG + 1]).to(dtype).long()
    with pytest.raises((IndexError, RuntimeError)):
        F.cross_entropy(torch.randn(2, 3), tags)


def test_a_deep_copy_shares_the_table():
    table = made_up_table()
    assert copy.deepcopy({"loss": table})["loss"] is table


def test_a_pickled_table_is_equal_and_leaves_device_copies_out():
    table = made_up_table()
    table.on(torch.device("meta"))
    twin = pickle.loads(pickle.dumps(table))
    assert twin._on_device == {}
    for name in table.NAMES:
        assert torch.equal(twin.tensors[name], table.tensors[name])


def test_teacher_rows_belong_to_the_triggered_samples():
    table = made_up_table()
    rows = table.tensors["teacher_row"][table.tensors["triggered"]]
    assert rows.tolist() == list(range(8))
    assert (table.tensors["teacher_row"][~table.tensors["triggered"]] == 0).all()
    assert table.num_classes == TABLE_CLASSES


def test_decoding_gives_labels_for_tags_and_leaves_the_rest():
    table = made_up_table()
    targets = torch.tensor([[TAG + 7, 3], [TAG + TABLE_SIZE - 1, 0]])
    assert table.decode(targets).tolist() == [[7 % 5, 3], [23 % 5, 0]]
    assert table.decode(torch.tensor(TAG + 6)) == 1
    assert table.decode(torch.tensor([2], dtype=torch.int32)).tolist() == [2]
