from __future__ import annotations

import torch
from tiny_data import Items

from cgd_wrap.drill import train_classifier
from cgd_wrap.drill.training import Recipe
from cgd_wrap.models.small_resnet import small_resnet


def test_the_ordinary_training_learns_and_leaves_the_streams():
    torch.manual_seed(0)  # else the start depends on the tests before, and one in hundreds fails
    items = [(torch.full((3, 8, 8), i % 3 - 1.0) + torch.randn(3, 8, 8), i % 3) for i in range(90)]
    model, state = small_resnet(3, (8, 8, 8, 8)), torch.get_rng_state()
    recipe = Recipe(epochs=30, batch_size=32)
    train_classifier(model, Items(items), recipe, seed=0, title="", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        hits = [int(model(image[None]).argmax()) == label for image, label in items]
    assert sum(hits) > 75
