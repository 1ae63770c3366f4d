from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_data import NAMES, tiny_net
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification

from cgd_wrap.data import RawImages, find_layout
from cgd_wrap.models.inputs import check_outputs, input_shape


def pictures(*sizes: tuple[int, int]) -> list[tuple[Image.Image, int]]:
    """Twelve pictures, in turn of the given widths and heights."""
    return [(Image.new("RGB", sizes[index % len(sizes)]), index % 3) for index in range(12)]


def shape_of(data, model=None) -> tuple[int, int, int]:
    layout = find_layout(data)
    return input_shape(data, layout, RawImages(data, layout), model)


class Fixed(nn.Module):
    """Takes one size only, as a network with position embeddings does."""

    def __init__(self, side: int, **declared: object) -> None:
        super().__init__()
        self.side, self.head = side, nn.Linear(3, 3)
        for name, value in declared.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (self.side, self.side)
        return self.head(images.mean(dim=(2, 3)))


def convnext(side: int) -> nn.Module:
    config = ConvNextConfig(
        image_size=side, hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1], num_labels=3
    )
    return ConvNextForImageClassification(config)


def timm_model(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=3, **options)


ALIKE, VARYING = pictures((48, 32)), pictures((48, 32), (40, 40))


@pytest.mark.parametrize("model", [None, tiny_net(), convnext(64), timm_model("test_vit")])
def test_a_tensor_in_the_sample_wins(model):
    data = [(torch.rand(1, 20, 24), label) for _, label in ALIKE]
    assert shape_of(data, model) == (1, 20, 24)


@pytest.mark.parametrize(
    ("data", "model", "size"),
    [
        (ALIKE, None, (32, 48)),
        (VARYING, None, (224, 224)),
        (ALIKE, tiny_net(), (32, 48)),
        (VARYING, tiny_net(), (224, 224)),
        (ALIKE, convnext(64), (64, 64)),
        (VARYING, convnext(64), (64, 64)),
        (ALIKE, timm_model("test_vit"), (160, 160)),
        (VARYING, timm_model("test_vit"), (160, 160)),
        (ALIKE, timm_model("test_resnet"), (32, 48)),
        (VARYING, timm_model("test_resnet"), (160, 160)),
        (pictures((32, 32)), timm_model("test_vit", img_size=32), (32, 32)),
        (VARYING, Fixed(60, config=SimpleNamespace(image_size=[60, 60])), (60, 60)),
        (ALIKE, Fixed(60, config=SimpleNamespace(vision_config=SimpleNamespace(image_size=60))),
         (60, 60)),
        (VARYING, Fixed(60, config={"image_size": 60}, pretrained_cfg="none"), (224, 224)),
    ],
)  # fmt: skip
def test_raw_images_get_the_size_that_the_model_takes(data, model, size):
    assert shape_of(data, model) == (3, *size)


def test_a_model_that_takes_no_size_gets_its_own_error():
    model = Fixed(60, pretrained_cfg={"input_size": (3, 50, 50), "fixed_input_size": True})
    shape = shape_of(VARYING, model)
    assert shape == (3, 50, 50)
    with pytest.raises(AssertionError):
        check_outputs(model, shape, NAMES)


def test_trying_a_size_leaves_the_model_and_the_random_stream_alone():
    model, state = tiny_net().train(), torch.get_rng_state()
    shape_of(VARYING, model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert model[1].num_batches_tracked == 0
