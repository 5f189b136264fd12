import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.test_archives import tar
from tests.data.test_images import encoded
from train.__main__ import main
from train.data.archives import Files
from train.data.catalog import KNOWN
from train.data.sources import class_folders
from train.data.views import long_tail_indices

JPEG = encoded(Image.new("RGB", (9, 7), "red"), "jpeg")


def _folders(root, *names):
    for name in names or ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)


def _files(contents):
    return {split: sorted(example.file for example in examples()) for split, examples in contents.splits.items()}


@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz", "more/train.tar"])
def test_an_archive_beside_the_folder_unpacked_from_it_is_refused(tmp_path, name):
    _folders(tmp_path)
    tar(tmp_path / name, {"train/cat/1.jpg": JPEG})
    with pytest.raises(ValueError, match="train/cat/1.jpg lies there twice"):
        class_folders(Files(tmp_path))


def test_imagenets_archives_beside_their_folders_are_refused(tmp_path):
    _folders(tmp_path, "train/n01440764/n01440764_1.JPEG")
    tar(tmp_path / "train" / "n01440764.tar", {"n01440764_1.JPEG": JPEG})
    with pytest.raises(ValueError, match="n01440764_1.JPEG lies there twice"):
        list(KNOWN["imagenet"].read(Files(tmp_path)).splits["train"]())


def test_every_file_is_used_or_named_with_the_reason(tmp_path, capsys):
    _folders(tmp_path / "a")
    _folders(tmp_path / "a", "train/cat/siamese/2.JPG", "train/cat/3.jfif", "Test/dog/4.png")
    _folders(tmp_path / "a", "train/cat/without_suffix", "5.jpg", "test/6.jpg", "train/.ipynb_checkpoints/7.jpg")
    (tmp_path / "a/train/dog/gone.png").symlink_to(tmp_path / "nowhere")
    main(["prepare", "pets", "--from", str(tmp_path / "a"), "--directory", str(tmp_path)])
    said = capsys.readouterr().out
    for line in (
        "train/cat/without_suffix (not named as an image)",
        "left out: 5.jpg (not in a folder train/<class>",
        "left out: test/6.jpg (not in a folder",
        "train/.ipynb_checkpoints/7.jpg (hidden)",
        "train/dog/gone.png (a link to nothing",
        "all 5 are named in",
    ):
        assert line in said
    contents = class_folders(Files(tmp_path / "a"))
    assert contents.class_names == {"label": ["cat", "dog"]}
    assert _files(contents) == {
        "train": ["train/cat/1.jpg", "train/cat/3.jfif", "train/cat/siamese/2.JPG", "train/dog/1.jpg"],
        "validation": ["val/cat/1.jpg", "val/dog/1.jpg"],
        "test": ["Test/dog/4.png"],
    }


def test_links_to_class_folders_are_followed_and_never_in_circles(tmp_path):
    _folders(tmp_path / "a")
    shutil.move(tmp_path / "a/train/dog", tmp_path / "dog")
    (tmp_path / "a/train/dog").symlink_to(tmp_path / "dog")
    (tmp_path / "a/train/cat/again").symlink_to(tmp_path / "a")
    contents = class_folders(Files(tmp_path / "a"))
    assert _files(contents)["train"] == ["train/cat/1.jpg", "train/dog/1.jpg"]


@pytest.mark.parametrize("name", ["b\nc", " ", "cat ", os.fsdecode(b"caf\xe9")])
def test_a_folder_whose_name_cannot_be_that_of_a_class_is_named(tmp_path, name):
    _folders(tmp_path, f"train/{name}/1.jpg", "train/dog/1.jpg")
    if name.isascii():
        with pytest.raises(ValueError, match="whose name cannot be that of a class"):
            class_folders(Files(tmp_path))
    else:
        assert class_folders(Files(tmp_path)).class_names["label"][0].startswith("caf")


def test_a_file_name_that_is_no_utf8_is_prepared(tmp_path):
    _folders(tmp_path / "a", os.fsdecode(b"train/cat/\xff\xfe.jpg"), "train/dog/1.jpg")
    main(["prepare", "pets", "--from", str(tmp_path / "a"), "--directory", str(tmp_path)])


def test_a_long_tail_keeps_its_ratio_on_unequal_classes_and_never_empties_one():
    labels = np.repeat([0, 1, 2], [40, 100, 30])
    counts = np.bincount(labels[long_tail_indices(labels, 3, 10.0)])
    assert counts.tolist() == [30, 9, 3]
    with pytest.raises(ValueError, match="leaves a class no image: the smallest has 30"):
        long_tail_indices(labels, 3, 31.0)
