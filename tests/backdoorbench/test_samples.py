from __future__ import annotations

import shutil

from attack_record import (
    open_sets,
    write_tree,
)

from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import find_layout


def test_labels_are_read_from_a_column_without_decoding(tmp_path):
    train, _ = open_sets(write_tree(tmp_path))
    shutil.rmtree(tmp_path / "record" / "badnet" / "bd_train_dataset" / "6")
    # Only a few samples are opened to confirm the column; 6, 16, ... have lost their images.
    labels = read_labels(train, find_layout(train), 10)
    assert labels.tolist() == train.targets
