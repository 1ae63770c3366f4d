from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from cgd_wrap.cli.images import ImageClasses, formats_by_suffix, read_image
from cgd_wrap.data import RawImages, find_layout
from cgd_wrap.errors import DatasetError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
WRITTEN = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".tga", ".jfif",
    ".ico", ".dds", ".qoi", ".PNG", ".JPG", ".WebP", ".TIFF",
)  # fmt: skip


def write(root: Path, *places: str) -> Path:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        if Path(place).suffix.lower() in formats_by_suffix():
            PICTURE.save(root / place)
        else:
            (root / place).write_text("not an image")
    return root


def places_of(dataset: ImageClasses) -> list[str]:
    return [str(Path(path).relative_to(dataset.root)) for path, _ in dataset.samples]


@pytest.mark.parametrize(
    "suffix", [s for s in WRITTEN if formats_by_suffix().get(s.lower()) in Image.SAVE]
)
def test_every_format_that_pillow_decodes_is_read(tmp_path, suffix):
    dataset = ImageClasses(write(tmp_path, f"cat/1{suffix}", "dog/1.png"))
    assert places_of(dataset) == [f"cat/1{suffix}", "dog/1.png"]
    image, label = dataset[0]
    assert (image.mode, image.size, label) == ("RGB", (16, 16), 0)
    assert image.resize((8, 8)).size == (8, 8)  # its file is closed, and isn't needed any more


def test_the_guard_reads_what_the_folder_holds(tmp_path):
    dataset = ImageClasses(write(tmp_path, "cat/1.png", "cat/2.gif", "dog/1.tif"))
    raw = RawImages(dataset, find_layout(dataset))
    assert np.array_equal(np.asarray(raw[0]), np.asarray(PICTURE))
    assert [raw[index].mode for index in range(3)] == ["RGB"] * 3


def test_16_bit_images_are_scaled(tmp_path):
    write(tmp_path, "dog/1.png")
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((4, 4), 0x8040, dtype=np.uint16)).save(tmp_path / "cat" / "1.png")
    assert np.asarray(ImageClasses(tmp_path)[0][0]).max() == 0x80


def test_what_is_left_out_is_counted_by_kind(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset = ImageClasses(
        write(
            tmp_path, "cat/1.png", "dog/2.png", "cat/a.txt", "dog/deep/b.TXT", "cat/clip.mp4",
            "cat/noname", "cat/._1.png", "dog/._2.png", "cat/.ipynb_checkpoints/1.png",
            "dog/@eaDir/2.png/thumb.png", "__MACOSX/cat/1.png", "cat/figure.eps", "loose.png",
        )
    )  # fmt: skip
    assert places_of(dataset) == ["cat/1.png", "dog/2.png"]
    assert dataset.classes == ["cat", "dog"]
    assert f"{tmp_path}: 2 images in 2 classes; left out: " in caplog.text
    assert sorted(caplog.text.rpartition("left out: ")[2].rstrip(".\n").split(", ")) == [
        "1 .eps", "1 .ipynb_checkpoints", "1 .mp4", "1 .png outside of the class folders",
        "1 @eaDir", "1 __MACOSX", "1 without a suffix", "2 ._*", "2 .txt",
    ]  # fmt: skip


def test_many_kinds_are_summed_up(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ImageClasses(write(tmp_path, "cat/1.png", "dog/1.png", *(f"cat/1.x{k}" for k in range(13))))
    assert caplog.text.count("1 .x") == 10
    assert caplog.text.endswith(", 3 other kinds.\n")


def test_nothing_left_out_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ImageClasses(write(tmp_path, "cat/1.png", "dog/2.png"))
    assert "2 images in 2 classes; left out: nothing." in caplog.text


def test_images_below_a_class_folder_are_of_the_class(tmp_path):
    dataset = ImageClasses(write(tmp_path, "cat/a/1.png", "cat/b/c/2.png", "dog/a/1.png"))
    assert dataset.classes == ["cat", "dog"]
    assert dataset.targets == [0, 0, 1]


@pytest.mark.parametrize(
    ("places", "named"),
    [
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"], "['train', 'val']"),
        (["train/cat/1.png", "train/dog/1.png"], "['train']"),
        (["Train/cat/1.png", "TEST/dog/1.png"], "['TEST', 'Train']"),
        (["train2017/cat/1.png", "val2017/dog/1.png"], "['train2017', 'val2017']"),
        (["training_set/cat/1.png", "test_set/cat/1.png"], "['test_set', 'training_set']"),
        (["train/cat/1.png", "test/1.png", "extra/1.png"], "['test', 'train']"),
        (["train/1.png", "test/1.png"], "['test', 'train']"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "['test', 'train']"),
        (["cat/a/val/1.png", "cat/a/test/1.png", "dog/1.png"], "['test', 'val']"),
    ],
)
def test_splits_are_never_taken_for_classes_nor_one_of_them_chosen(tmp_path, places, named):
    with pytest.raises(DatasetError, match="holds the splits") as caught:
        ImageClasses(write(tmp_path, *places))
    assert named in str(caught.value)


def test_the_error_of_splits_names_a_folder_to_give(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png")
    with pytest.raises(DatasetError) as caught:
        ImageClasses(tmp_path)
    assert repr(str(tmp_path / "train")) in str(caught.value)
    assert ImageClasses(tmp_path / "train").classes == ["cat", "dog"]


def test_a_class_may_be_called_train(tmp_path):
    assert ImageClasses(write(tmp_path, "bus/1.png", "train/1.png")).classes == ["bus", "train"]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["1.png", "2.png"], r"2 or more folders of images in .*, got \[\]"),
        (["cat/1.png"], r"2 or more folders of images .*\['cat'\]"),
        (["cat/1.png", "dog/1.txt", "elk/.x.png"], r"\['dog', 'elk'\] \(left out: 1 .*\)"),
    ],
)
def test_a_folder_without_classes_of_images_is_refused(tmp_path, places, message):
    with pytest.raises(DatasetError, match=message):
        ImageClasses(write(tmp_path, *places))


@pytest.mark.parametrize("place", ["nowhere", "file.txt"])
def test_no_folder_is_an_error_with_its_path(tmp_path, place):
    write(tmp_path, "file.txt")
    with pytest.raises(OSError, match=place):
        ImageClasses(tmp_path / place)


def test_classes_are_numbered_as_by_timm(tmp_path):
    from timm.data import create_dataset

    names = ["10", "9", "Zebra", "ant", "a2", "a10", "B"]
    write(tmp_path, *(f"{name}/1.png" for name in names))
    by_timm = create_dataset("", root=str(tmp_path)).reader.class_to_idx
    assert ImageClasses(tmp_path).class_to_idx == by_timm


def test_equal_numbers_have_one_order(tmp_path):
    assert ImageClasses(write(tmp_path, "1/1.png", "01/1.png", "²/1.png")).classes[:2] == [
        "01", "1",
    ]  # fmt: skip


def test_other_images_take_the_numbers_of_the_training_images(tmp_path):
    training = ImageClasses(write(tmp_path / "a", "ant/1.png", "bee/1.png", "cat/1.png"))
    other = ImageClasses(write(tmp_path / "b", "cat/1.png", "bee/1.png"), training.class_to_idx)
    assert (other.classes, other.targets) == (training.classes, [1, 2])
    with pytest.raises(DatasetError, match=r"the training images don't have: \['dog'\]"):
        ImageClasses(write(tmp_path / "c", "cat/1.png", "dog/1.png"), training.class_to_idx)
    with pytest.raises(DatasetError, match=r"1 or more folders of images"):
        ImageClasses(write(tmp_path / "d", "1.png"), training.class_to_idx)


def test_links_are_followed_and_end(tmp_path):
    root, store = tmp_path / "images", write(tmp_path / "store", "1.png", "more/2.png")
    write(root, "dog/1.png")
    (root / "cat").mkdir()
    (root / "cat" / "link.png").symlink_to(store / "1.png")
    (root / "cat" / "folder").symlink_to(store / "more")
    (root / "cat" / "up").symlink_to(root / "cat")
    (store / "more" / "round").symlink_to(root / "cat" / "folder")
    (root / "elk").symlink_to(store)
    dataset = ImageClasses(root)
    assert places_of(dataset) == [
        "cat/folder/2.png", "cat/link.png", "dog/1.png", "elk/1.png", "elk/more/2.png",
    ]  # fmt: skip


def test_what_is_no_file_is_not_opened(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path, "cat/1.png", "dog/1.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # to read it would wait for ever
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert places_of(ImageClasses(tmp_path)) == ["cat/1.png", "dog/1.png"]
    assert "2 broken links and special files" in caplog.text


def test_no_image_starts_another_program(tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(eps)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"
    with pytest.raises(UnidentifiedImageError):
        read_image(str(tmp_path / "a.png"))
