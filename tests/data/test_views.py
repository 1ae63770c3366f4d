from __future__ import annotations

import copy
import pickle

import datasets
import numpy as np
import pytest
import torch
from dataset_zoo import (
    CLASSES,
    FOLDER_ORDER,
    KINDS,
    LABELS,
    PIXELS,
    Items,
    N,
    Wrapper,
    augment,
    build,
    image_folder,
    normalise,
    pil,
    table,
    timm_folder,
)
from PIL import Image
from torch.utils.data import DataLoader, random_split

from cgd_wrap.data import EvaluatedImages, ModelInputs, RawImages, check_deterministic
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout, find_layout
from cgd_wrap.data.paths import image_path
from cgd_wrap.errors import BadSampleError, DatasetError

PLAIN = SampleLayout(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_images_and_labels_of_every_kind(kind, tmp_path):
    dataset, order = build(kind, tmp_path)
    before = copy.copy(vars(dataset)) if hasattr(dataset, "__dict__") else {}
    layout = find_layout(dataset)
    raw = RawImages(dataset, layout)
    assert len(raw) == len(order)
    for index, source in enumerate(order):
        assert raw[index].mode == "RGB"
        np.testing.assert_array_equal(np.asarray(raw[index]), PIXELS[source])
    assert read_labels(dataset, layout, 3).tolist() == [LABELS[i] for i in order]
    after = vars(dataset) if hasattr(dataset, "__dict__") else {}
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())


@pytest.mark.parametrize("kind", ["cifar10", "image folder", "timm", "subset of table"])
def test_evaluated_images_are_the_users_own(kind, tmp_path):
    dataset, order = build(kind, tmp_path)
    evaluated = EvaluatedImages(dataset, find_layout(dataset))
    for index, source in enumerate(order):
        assert torch.equal(evaluated[index], normalise(pil(source)))


def test_evaluated_images_must_be_tensors():
    with pytest.raises(TypeError, match=r"sample 3.*eval_dataset_view="):
        EvaluatedImages([(pil(i), 0) for i in range(N)], PLAIN)[3]


def test_inputs_of_a_fresh_model():
    raw = RawImages([(pil(i), 0) for i in range(N)], PLAIN)
    same = ModelInputs(raw, (32, 32), 3)
    torch.testing.assert_close(same[2], normalise(pil(2)))
    smaller = ModelInputs(raw, (8, 16), 1)[2]
    assert smaller.shape == (1, 8, 16)
    expected = pil(2).convert("L").resize((16, 8), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(smaller[0].numpy(), np.asarray(expected) / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="channels"):
        ModelInputs(raw, (8, 8), 2)


def test_normalised_tensors_need_a_clip_dataset():
    items = Items([(normalise(pil(i)), LABELS[i]) for i in range(N)])
    with pytest.raises(DatasetError, match=r"sample 0.*clip_dataset="):
        RawImages(items, PLAIN)


def test_a_dataset_that_computes_on_tensors_is_read_through_its_transform():
    class Darkened(Wrapper):
        def __getitem__(self, index):
            image, label = self.base[index]
            return image.clamp(max=0.5), label

    unit = Wrapper([(pil(i), LABELS[i]) for i in range(N)], lambda x: normalise(x) / 2 + 0.5)
    raw = RawImages(Darkened(unit, None), PLAIN)
    assert np.abs(np.asarray(raw[1]).astype(int) - np.minimum(PIXELS[1], 127.5)).max() <= 1


def test_a_transform_set_on_the_class_is_left_out():
    class Fixed(Items):
        transform = torch.nn.Identity()

        def __getitem__(self, index):
            image, label = self.items[index]
            return (normalise(image) if self.transform else image), label

    raw = RawImages(Fixed([(pil(i), LABELS[i]) for i in range(N)]), PLAIN)
    np.testing.assert_array_equal(np.asarray(raw[4]), PIXELS[4])


class Augmented:
    """A transform as an object, not code: classes may hold one."""

    def __call__(self, image):
        return augment(image)


class Named(Items):
    """Keeps its transform under any name, as users' own datasets do."""

    def __init__(self, name, transform, items=None, *, on_class=False):
        super().__init__(items or [(pil(i), LABELS[i]) for i in range(N)])
        self.name = name
        if not on_class:
            setattr(self, name, transform)

    def __getitem__(self, index):
        image, label = self.items[index]
        transform = getattr(self, self.name)
        return (image if transform is None else transform(image)), label


@pytest.mark.parametrize("name", ["image_transform", "train_transforms", "_img_transform"])
@pytest.mark.parametrize("on_class", [False, True])
def test_transforms_of_other_names_are_left_out(name, on_class):
    class Kind(Named):
        pass

    dataset = Kind(name, Augmented(), on_class=on_class)
    setattr(Kind, name, Augmented() if on_class else None)
    assert dataset[0][0].shape == (3, 32, 32)
    raw = RawImages(dataset, PLAIN)
    assert all((np.asarray(raw[i]) == PIXELS[i]).all() for i in range(N))


@pytest.mark.parametrize(
    "name", ["target_transform", "label_transforms", "bd_image_pre_transform", "transform_count"]
)
def test_what_is_no_transform_of_the_image_or_poisons_it_stays(name):
    def inverted(image):
        return Image.eval(image, lambda value: 255 - value)

    raw = RawImages(Named(name, inverted), PLAIN)
    assert all((np.asarray(raw[i]) == 255 - PIXELS[i]).all() for i in range(N))


def test_generated_data_and_its_split():
    from torchvision.datasets import FakeData

    dataset = FakeData(40, (3, 32, 32), 4, transform=normalise)
    plain = FakeData(40, (3, 32, 32), 4)
    part, _ = random_split(dataset, [30, 10], generator=torch.Generator().manual_seed(0))
    raw = RawImages(part, find_layout(part))
    labels = read_labels(part, PLAIN, 4)
    for k, index in enumerate(part.indices):
        assert raw[k].tobytes() == plain[index][0].tobytes()
        assert int(labels[k]) == int(plain[index][1])


def test_a_table_of_arrays():
    rows = {"x": [np.full((8, 8, 3), i, np.uint8) for i in range(N)], "y": LABELS}
    features = {"x": datasets.Array3D((8, 8, 3), "uint8"), "y": datasets.Value("int64")}
    arrays = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    dataset = arrays.with_format("numpy")
    layout = find_layout(dataset)
    assert RawImages(dataset, layout)[5].getpixel((0, 0)) == (5, 5, 5)
    assert read_labels(dataset, layout, 3).tolist() == LABELS


def test_a_wrapper_that_takes_rows_of_a_table_apart():
    class Rows(Wrapper):
        def __getitem__(self, index):
            row = self.base[index]
            return self.transform(row["img"]), row["label"]

    order = list(range(N))[::-1]
    dataset = Rows(table().select(order), normalise)
    raw = RawImages(dataset, find_layout(dataset))
    assert all(raw[i].tobytes() == PIXELS[s].tobytes() for i, s in enumerate(order))
    assert read_labels(dataset, PLAIN, 3).tolist() == [LABELS[s] for s in order]


def test_an_animation_behind_a_timm_reader(tmp_path):
    dataset = timm_folder(tmp_path)
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(dataset.reader.samples[0][0], "gif", save_all=True, append_images=frames[1:])
    assert RawImages(dataset, PLAIN)[0].getpixel((0, 0)) == (255, 0, 0)


def test_a_dataset_that_holds_itself():
    dataset = Items([(pil(i), LABELS[i]) for i in range(N)])
    dataset.itself, dataset.transform = dataset, normalise
    assert RawImages(dataset, PLAIN)[1].size == (32, 32)
    assert dataset.transform is normalise


def test_attack_wrappers_show_the_poisoned_images(tmp_path):
    attacks = pytest.importorskip("cgd_wrap.attacks")
    base = [(pil(i), LABELS[i]) for i in range(N)]
    clean = Items(base)
    poisoned = attacks.BadNets(target=0, rate=0.5, seed=1).poison(clean, transform=normalise)
    raw = RawImages(poisoned, find_layout(poisoned))
    changed = [i for i in range(N) if (np.asarray(raw[i]) != PIXELS[i]).any()]
    assert changed == poisoned.poisoned.tolist()
    assert read_labels(poisoned, PLAIN, 3).tolist() == poisoned.targets
    files = image_folder(tmp_path, transform=None)
    poisoned = attacks.BadNets(target=0, rate=0.5).poison(files)
    assert image_path(poisoned, 2) == files.samples[2][0]
    triggered = attacks.BadNets(target=0, rate=0.5).triggered(files)
    assert image_path(triggered, 0) == files.samples[int(triggered.indices[0])][0]


@pytest.mark.parametrize("make", [image_folder, timm_folder])
def test_bad_files_raise_with_index_path_and_reason(make, tmp_path):
    dataset = make(tmp_path)
    faults = {1: b"", 5: b"<html>", 9: (tmp_path / "ant" / "00.png").read_bytes()[:300]}
    paths = {i: str(tmp_path / CLASSES[LABELS[s]] / f"{s:02}.png")
             for i, s in enumerate(FOLDER_ORDER)}  # fmt: skip
    for index, content in faults.items():
        with open(paths[index], "wb") as file:
            file.write(content)
    (tmp_path / "cat" / "11.png").unlink()
    layout = find_layout(dataset)
    reasons = {1: "empty", 5: "not_image", 9: "truncated", 11: "missing"}
    for view in (RawImages(dataset, layout), EvaluatedImages(dataset, layout)):
        for index, reason in reasons.items():
            with pytest.raises(BadSampleError) as caught:
                view[index]
            found = caught.value
            assert (found.index, found.path, found.reason) == (index, paths[index], reason)
            assert found.__cause__ is not None
        assert view[0] is not None
    assert read_labels(dataset, layout, 3).tolist() == [LABELS[i] for i in FOLDER_ORDER]


def test_faults_of_a_users_code():
    class Faulty(Items):
        def __getitem__(self, index):
            if index == 3:
                raise ZeroDivisionError("a bug")
            return super().__getitem__(index)

    items = Faulty([(pil(i), LABELS[i]) for i in range(N)])
    items.items[6] = ("a path", 0)
    items.items[7] = (Image.new("L", (1, 5000)), 0)
    raw = RawImages(items, PLAIN)
    with pytest.raises(
        BadSampleError, match=r"sample 3 .*getitem_failed.*ZeroDivisionError: a bug"
    ):
        raw[3]
    with pytest.raises(TypeError, match=r"sample 6: expected an image.*str"):
        raw[6]
    with pytest.raises(BadSampleError, match="too_large"):
        raw[7]
    assert raw[-1].tobytes() == PIXELS[-1].tobytes()
    with pytest.raises(IndexError):
        raw[N]


def test_random_views_are_refused_and_the_users_seeds_kept():
    dataset = Wrapper([(pil(i), LABELS[i]) for i in range(N)], augment)
    torch.manual_seed(0)
    np.random.seed(0)
    layout = find_layout(dataset)
    raw, evaluated = RawImages(dataset, layout), EvaluatedImages(dataset, layout)
    read_labels(dataset, layout, 3)
    check_deterministic(raw)
    check_deterministic(ModelInputs(raw, (8, 8)))
    with pytest.raises(DatasetError, match=r"12 of 12 samples.*eval_dataset_view="):
        check_deterministic(evaluated)
    with pytest.raises(DatasetError, match=r"Pass clip_dataset=, the same samples"):
        check_deterministic(evaluated, "clip_dataset")
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert (torch.rand(1), np.random.rand()) == drawn


@pytest.mark.parametrize("kind", ["image folder", "timm", "table as tensors", "subset of table"])
def test_views_survive_pickling(kind, tmp_path):
    dataset, order = build(kind, tmp_path)
    layout = find_layout(dataset)
    inputs = pickle.loads(pickle.dumps(ModelInputs(RawImages(dataset, layout), (32, 32))))
    evaluated = pickle.loads(pickle.dumps(EvaluatedImages(dataset, layout)))
    torch.testing.assert_close(inputs[1], normalise(pil(order[1])))
    assert evaluated[1] is not None


def test_views_work_in_worker_processes(tmp_path):
    dataset = image_folder(tmp_path)
    inputs = ModelInputs(RawImages(dataset, PLAIN), (32, 32))
    loader = DataLoader(
        inputs, batch_size=4, num_workers=1, multiprocessing_context="fork",
        generator=torch.Generator(),
    )  # fmt: skip
    together = torch.cat(list(loader))
    torch.testing.assert_close(together, torch.stack([normalise(pil(i)) for i in FOLDER_ORDER]))
