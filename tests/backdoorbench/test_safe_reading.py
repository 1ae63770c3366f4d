from __future__ import annotations

import os
import pickle

import pytest
from attack_record import change, open_sets, write_tree

from cgd_wrap.backdoorbench import (
    UnsafeFileError,
    read_attack_result,
)
from cgd_wrap.backdoorbench.safe_reading import load_pickled_arrays


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_result_is_not_run(tmp_path):
    folder = write_tree(tmp_path)
    change(folder, data_path=Bomb(tmp_path / "bang"))
    with pytest.raises(UnsafeFileError, match=r"posix\.mkdir.*Nothing in it was run"):
        read_attack_result(folder)
    assert not (tmp_path / "bang").exists()


def test_code_in_a_cifar_batch_is_not_run(tmp_path):
    folder = write_tree(tmp_path)
    batch = tmp_path / "data" / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Bomb(tmp_path / "bang"), "labels": []}))
    with pytest.raises(UnsafeFileError, match=r"data_batch_3 is refused: it needs posix\.mkdir"):
        open_sets(folder)
    assert not (tmp_path / "bang").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1])])
def test_damaged_batches_are_named(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UnsafeFileError, match="batch is refused"):
        load_pickled_arrays(tmp_path / "batch")
