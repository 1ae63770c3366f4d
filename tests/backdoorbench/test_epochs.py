from __future__ import annotations

import torch
from attack_record import write_tree

from cgd_wrap.backdoorbench import (
    build_network,
    clean_images,
    image_transform,
    read_attack_result,
    triggered_samples,
)
from cgd_wrap.backdoorbench.epochs import EpochRows
from cgd_wrap.backdoorbench.measuring import BenchData
from cgd_wrap.train.epochs import EpochRecord


def test_rows_and_checkpoints_of_the_epochs(tmp_path):
    folder = write_tree(tmp_path / "bench")
    result = read_attack_result(folder)
    model = build_network(result.model_name, 10, result.weights).eval()
    _, test = clean_images("cifar10", result.data_folder())
    steady = image_transform("cifar10", (32, 32), augment=False)
    bench = BenchData(
        test.with_transform(steady), triggered_samples(result, test).with_transform(steady)
    )
    epochs = EpochRows(bench, tmp_path / "state.pt", save_every=2)
    epochs(EpochRecord(1, 0.5, 0.75, 0.25, -0.5, 0.1, None, 3.0), model)
    assert not (tmp_path / "state.pt").exists()
    epochs(EpochRecord(2, 0.5, 0.75, 0.25, -0.5, 0.1, 0.875, 3.0), model)
    assert [row["epoch"] for row in epochs.rows] == [0, 1]
    assert [row["held_out_acc"] for row in epochs.rows] == [None, 0.875]
    assert bench.measure(model).as_row().items() <= epochs.rows[0].items()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["epoch_current"] == 2
    build_network(result.model_name, 10, state["model"])
