from __future__ import annotations

import numpy as np
import pytest
from attack_record import loaded, write_split, write_tree

from cgd_wrap.backdoorbench import (
    AttackResultError,
    read_clean_indices,
    use_clean_split,
)


def test_the_clean_split_takes_the_place_of_clean_data(tmp_path):
    result = loaded(write_tree(tmp_path))
    poisoned = result["bd_train"].wrapped_dataset
    use_clean_split(result, [3, 1, 3])
    split = result["clean_train"].wrapped_dataset
    assert result["clean_train"].wrap_img_transform == "kept"
    assert len(split) == 3
    for position, index in enumerate([3, 1, 3]):
        image, label = split[position]
        np.testing.assert_array_equal(np.asarray(image), np.asarray(poisoned[index][0]))
        assert label == poisoned.given_targets[index]
    poisoned.targets = poisoned.original_targets  # such switches are flipped in place there
    assert split[1][1] == 0
    with pytest.raises(AttackResultError, match="names sample 100, but the training set has 100"):
        use_clean_split(result, [100])


def test_a_part_of_the_split_is_drawn_without_putting_back(tmp_path):
    folder = write_tree(tmp_path)
    with pytest.raises(FileNotFoundError, match="run the CGD defence on this result first"):
        read_clean_indices(folder)
    write_split(folder, list(range(40)))
    assert read_clean_indices(folder) == list(range(40))
    drawn = read_clean_indices(folder, max_size=10)
    assert len(set(drawn)) == 10
    assert drawn == read_clean_indices(folder, max_size=10)
    assert drawn != read_clean_indices(folder, max_size=10, seed=1)
    with pytest.raises(ValueError, match="at least 1"):
        read_clean_indices(folder, max_size=0)
