from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cgd_wrap.errors import DatasetError
from cgd_wrap.models.prediction import predict, predict_with_labels

NUM_CLASSES = 4


class Reader(nn.Module):
    """Reads the class off the first pixel; dropout and batch norm would spoil it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.9)
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        codes = self.dropout(self.norm(images))[:, 0, 0, 0] * self.scale
        return -(codes[:, None] - torch.arange(NUM_CLASSES)).abs()


class Wrapped(Reader):
    def forward(self, images: Tensor) -> Any:  # type: ignore[override]
        return SimpleNamespace(logits=super().forward(images))


def images_of(codes: list[int] | Tensor) -> Tensor:
    return torch.as_tensor(codes, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)


def data_of(codes: list[int], labels: list[int]) -> TensorDataset:
    return TensorDataset(images_of(codes), torch.tensor(labels))


CODES, LABELS = [0, 1, 2, 3, 1, 1, 0], [0, 1, 2, 3, 0, 2, 3]


def as_dicts(keys: tuple[str, str]) -> list[dict[str, Any]]:
    images = images_of(CODES)
    return [{keys[0]: images[i], keys[1]: LABELS[i], "id": str(i)} for i in range(len(CODES))]


@pytest.mark.parametrize(
    "data",
    [
        data_of(CODES, LABELS),
        DataLoader(data_of(CODES, LABELS), batch_size=3),
        [(image, np.int64(y), "more") for image, y in zip(images_of(CODES), LABELS, strict=True)],
        as_dicts(("pixel_values", "labels")),
        as_dicts(("image", "label")),
        DataLoader(as_dicts(("pixel_values", "labels")), batch_size=2),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("make", [Reader, Wrapped])
def test_predictions_and_labels(data: Any, make: Callable[[], Reader]) -> None:
    predictions, labels = predict_with_labels(make(), data)
    assert (predictions.dtype, labels.dtype) == (torch.int64, torch.int64)
    assert predictions.tolist() == CODES
    assert labels.tolist() == LABELS
    assert torch.equal(predict(make(), data), predictions)


@given(size=st.integers(0, 20), batch_size=st.integers(1, 8))
def test_batches(size: int, batch_size: int) -> None:
    model, codes = Reader(), [index % NUM_CLASSES for index in range(size)]
    data = data_of(codes, codes)
    assert predict(model, data, batch_size=batch_size).tolist() == codes
    assert sum(model.batches) == size
    assert all(count <= batch_size for count in model.batches)


def test_each_part_of_the_model_gets_its_mode_back() -> None:
    model = Reader().train()
    model.norm.eval()
    predict(model, data_of(CODES, LABELS))
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    with pytest.raises(DatasetError):
        predict(model, [(1, 2)])
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)


class Noisy(Dataset[Any]):
    """Draws from all three global streams, as augmentations do."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 2, 2) + random.random() + np.random.rand(), 0


def streams() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)["state"]  # type: ignore[index,call-overload]
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


def test_the_random_streams_are_untouched() -> None:
    own = torch.Generator().manual_seed(5)
    before, own_before = streams(), own.get_state()
    for data in (
        Noisy(),
        DataLoader(Noisy()),
        DataLoader(Noisy(), shuffle=True),
        DataLoader(Noisy(), shuffle=True, generator=own),
    ):
        predict(Reader(), data)
        assert streams() == before
        assert torch.equal(own.get_state(), own_before)


def test_images_go_where_the_model_is() -> None:
    model = Reader().to("meta")
    seen: list[str] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].device.type))
    with pytest.raises(RuntimeError):  # meta tensors hold no values to predict from
        predict(model, data_of(CODES, LABELS))
    assert seen == ["meta"]
    assert predict(Reader(), data_of(CODES, LABELS), device="cpu").tolist() == CODES
    assert predict(nn.Flatten(), data_of([1, 2], [0, 0])).tolist() == [0, 0]


def test_nan_logits_are_no_class(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.tensor([[1.0, 2.0], [math.nan, math.nan], [math.nan, 9.0], [math.inf, 0.0]])
    data = TensorDataset(images, torch.zeros(4, dtype=torch.int64))
    assert predict(nn.Identity(), data).tolist() == [1, -1, -1, 0]
    assert "2 samples have NaN logits" in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.Identity(), r"of shape \[7, 1, 2, 2\]"), (nn.Flatten(0), "of shape")],
)
def test_models_that_return_no_logits(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        predict(model, data_of(CODES, LABELS))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([("image", 1)], "samples hold a str where the model needs a tensor"),
        ([torch.zeros(1)], "got a Tensor"),
        ([{"pixel_values": torch.zeros(1)}], r"got a dict with keys \['pixel_values'\]"),
        ([(torch.zeros(1),)], "got a tuple"),
    ],
)
def test_samples_without_image_or_label(data: list[Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        predict(Reader(), data)
