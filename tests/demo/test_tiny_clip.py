from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

import cgd_wrap.demo
from cgd_wrap.demo.shapes import ShapesDataset

FOLDER = Path(cgd_wrap.demo.__file__).parent / "clip"
SOURCE = f"local-dir:{FOLDER}"


@pytest.fixture(scope="module")
def loaded():
    return open_clip.create_model_from_pretrained(SOURCE)


@pytest.fixture(scope="module")
def recall(loaded) -> torch.Tensor:
    """Recall of each class on 1000 pictures that no stage of the training has seen."""
    model, preprocess = loaded
    data = ShapesDataset(1000, seed=12345, transform=preprocess)
    with torch.inference_mode():
        sentences = [f"a photo of a {name}" for name in data.classes]
        text = model.encode_text(open_clip.get_tokenizer(SOURCE)(sentences), normalize=True)
        batches = torch.utils.data.DataLoader(data, batch_size=250)
        answers = [(model.encode_image(x, normalize=True) @ text.T).argmax(1) for x, _ in batches]
    labels = torch.tensor(data.targets)
    right = (torch.cat(answers) == labels).float()
    return torch.stack([right[labels == c].mean() for c in range(10)])


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 6_000_000


def test_nothing_in_the_folder_can_execute():
    kinds = {file.suffix for file in FOLDER.iterdir()}
    assert kinds == {".json", ".safetensors", ".md"}


@pytest.mark.slow
def test_zero_shot_is_useful_but_weak(recall):
    """A CLIP without errors would make the demo too easy."""
    assert 0.7 < recall.mean() < 0.95


def test_no_class_is_lost(recall):
    assert recall.min() > 0.4


def test_the_recorded_accuracy_is_reproduced(recall):
    recorded = json.loads((FOLDER / "training.json").read_text())
    assert abs(float(recall.mean()) - recorded["zero_shot_accuracy"]) < 0.04
    assert f"{recorded['zero_shot_accuracy']:.1%}" in (FOLDER / "README.md").read_text()


def test_captions_beat_captions_of_another_shape(loaded):
    model, preprocess = loaded
    data = ShapesDataset(100, seed=777)
    right = [data.caption(i) for i in range(100)]
    wrong = []
    for caption, label in zip(right, data.targets, strict=True):
        other = data.classes[(label + 3) % len(data.classes)]
        wrong.append(caption.replace(data.classes[label], other))
    with torch.inference_mode():
        images = torch.stack([preprocess(data[i][0]) for i in range(100)])
        seen = model.encode_image(images, normalize=True)
        said = model.encode_text(open_clip.get_tokenizer(SOURCE)(right + wrong), normalize=True)
    closeness = (seen.repeat(2, 1) * said).sum(1)
    assert (closeness[:100] > closeness[100:]).float().mean() > 0.7
