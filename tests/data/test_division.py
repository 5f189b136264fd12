import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from configs import digits
from tests.data.test_images import encoded
from train.__main__ import main
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import DataConfig
from train.data import builders, checks, pipeline, writing
from train.data.division import Division, divide
from train.experiments import experiment
from train.trainer.prepare import prepare
from vcreg_jax import Sites

COUNTS = {"cat": 40, "dog": 10, "owl": 3}


def _folders(root, counts, place="{name}/{index}.png"):
    """Images of a class in its own colour, each of its own brightness."""
    for channel, (name, count) in enumerate(counts.items()):
        for index in range(count):
            path = root / place.format(name=name, index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            color = [0, 0, 0]
            color[channel % 3] = 100 + index
            path.write_bytes(encoded(Image.new("RGB", (8, 8), tuple(color)), "png"))


def _config(directory, **changes):
    square = EvalTransformConfig(8, 8)
    return DataConfig("pets", "label", (0.3,), (0.3,), AugmentConfig(), square, directory=str(directory), **changes)


def _files(directory, split):
    selection = pipeline.load(_config(directory), split).selection
    return [selection.records[index]["file"].decode() for index in selection.indices.tolist()]


def _prepared(tmp_path, *options, counts=COUNTS, to="data"):
    if not (tmp_path / "pets").exists():
        _folders(tmp_path / "pets", counts)
    main(["prepare", "pets", "--from", str(tmp_path / "pets"), "--directory", str(tmp_path / to), *options])
    return tmp_path / to


def test_every_class_gives_its_share_to_every_split_as_scikit_learn_counts_it():
    classes = [name for name, count in {"a": 100, "b": 60, "c": 40}.items() for _ in range(count)]
    found = np.array(divide(["train"] * 200, classes, Division(validation=0.1, test=0.2)))
    by_split = {split: Counter(np.array(classes)[found == split].tolist()) for split in ("validation", "test")}
    _, expected = train_test_split(classes, test_size=0.2, stratify=classes, random_state=0)
    assert by_split["test"] == Counter(expected) == {"a": 20, "b": 12, "c": 8}
    assert by_split["validation"] == {"a": 10, "b": 6, "c": 4}
    assert (found == "train").sum() == 140


def test_the_seed_decides_which_images_are_taken_and_what_is_there_stays():
    splits, classes = ["train"] * 50 + ["test"] * 4, ["a", "b"] * 27
    once, again, other = (divide(splits, classes, Division(0.2, seed=seed)) for seed in (3, 3, 4))
    assert once == again != other
    assert once[50:] == ["test"] * 4 and Counter(once) == {"train": 40, "validation": 10, "test": 4}


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ({"validation": 0.1, "test": 0.1}, "There is a test split already"),
        ({"validation": 0.5}, "The class rare has 1 training images, too few"),
        ({"validation": 0.6, "test": 0.4}, "leave nothing to train on"),
        ({"validation": -0.1}, "--val is a share"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(division, message):
    with pytest.raises(ValueError, match=message):
        divide(["train"] * 5 + ["test"], ["a"] * 4 + ["rare", "a"], Division(**division))


def test_folders_of_classes_alone_are_divided_and_no_image_is_lost_or_twice(tmp_path):
    directory = _prepared(tmp_path, "--val", "0.2", "--test", "0.1")
    files = {split: _files(directory, split) for split in ("train", "validation", "test")}
    of_class = {split: Counter(name.partition("/")[0] for name in names) for split, names in files.items()}
    assert of_class["validation"] == {"cat": 8, "dog": 2, "owl": 1} and of_class["test"] == {
        "cat": 4,
        "dog": 1,
        "owl": 1,
    }
    everything = [f"{name}/{index}.png" for name, count in COUNTS.items() for index in range(count)]
    assert sorted(itertools.chain(*files.values())) == sorted(everything)
    assert _files(_prepared(tmp_path, "--val", "0.2", "--test", "0.1", to="again"), "test") == files["test"]
    assert (
        _files(_prepared(tmp_path, "--val", "0.2", "--test", "0.1", "--seed", "1", to="other"), "test") != files["test"]
    )


def test_labels_and_images_stay_together_when_records_are_shuffled(tmp_path):
    data = pipeline.load(_config(_prepared(tmp_path, "--val", "0.2")), "train")
    for position, label in enumerate(data.labels()):
        pixel = np.asarray(data.image(position))[0, 0]
        index = int(data.selection.records[position]["file"].decode().partition("/")[2].removesuffix(".png"))
        assert pixel.argmax() == label and pixel.max() == 100 + index


@pytest.mark.parametrize("form", ["folders", "npz"])
def test_the_last_tenth_of_shuffled_records_has_every_class(tmp_path, form):
    counts, source = dict.fromkeys("abc", 60), tmp_path / "pets"
    if form == "npz":
        images, labels = np.zeros((180, 8, 8, 3), np.uint8), np.repeat(np.arange(3), 60)
        images[:, 0, 0, 0] = np.arange(180)
        np.savez(source := tmp_path / "pets.npz", x_train=images, y_train=labels)
    else:
        _folders(source, counts)
    builders.prepare("pets", source, tmp_path / "data")
    labels = pipeline.load(_config(tmp_path / "data", train_split="train[90%:]"), "train").labels()
    assert len(labels) == 18 and set(labels.tolist()) == {0, 1, 2}


def test_the_order_of_a_known_data_set_is_its_owners(tmp_path):
    images = np.arange(200, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    np.savez(tmp_path / "fashion_mnist_train.npz", images=images, labels=np.sort(np.arange(200) % 10))
    builders.prepare("fashion_mnist", tmp_path, tmp_path / "data")
    builder = builders.prepared("fashion_mnist", str(tmp_path / "data"))
    pixels = [record["image"][0, 0, 0] for record in builder.as_data_source("train")]
    assert pixels == list(range(200))
    with pytest.raises(SystemExit):
        main(["prepare", "fashion_mnist", "--directory", str(tmp_path / "more"), "--val", "0.1"])


@pytest.mark.parametrize("folder", ["Train", "TRAIN", "training"])
def test_folders_of_splits_are_known_in_any_letter_case(tmp_path, folder):
    _folders(tmp_path / "pets", {"cat": 3, "dog": 3}, folder + "/{name}/{index}.png")
    _folders(tmp_path / "pets", {"cat": 1, "dog": 1}, "Val/{name}/{index}.png")
    directory = _prepared(tmp_path)
    assert len(_files(directory, "train")) == 6 and len(_files(directory, "validation")) == 2


def test_a_class_may_be_called_train_and_classes_may_lie_deeper(tmp_path):
    _folders(tmp_path / "pets", {"car": 3, "train": 3}, "vehicles/photos/{name}/{index}.png")
    builder = builders.prepared("pets", str(_prepared(tmp_path)))
    assert builder.info.features["label"].names == ["car", "train"]


def test_records_of_many_files_keep_their_order_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    _prepared(tmp_path, "--val", "0.2", to="whole")
    monkeypatch.setattr(writing, "_SHARD", 500)
    _prepared(tmp_path, "--val", "0.2", to="parts")
    parts = list((tmp_path / "parts").rglob("*-train.array_record-*"))
    assert len(parts) > 3 and {path.name[-3:] for path in parts} == {f"{len(parts):03}"}
    for split in ("train", "validation"):
        assert _files(tmp_path / "parts", split) == _files(tmp_path / "whole", split)
    (tmp_path / "pets/cat/bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        _prepared(tmp_path, "--bad-images", "raise", to="failed")
    assert not [path for path in (tmp_path / "failed").rglob("*") if path.is_file()]


def _train(directory, **changes):
    config = digits.get_config()
    train = replace(config.train, data=_config(directory, **changes), batch_size=8)
    return replace(config, train=train, targets={}, runs_directory=str(directory))


def test_a_split_that_lacks_a_class_is_refused_unless_that_is_allowed(tmp_path):
    root = tmp_path / "pets"
    _folders(root, {"cat": 9, "dog": 9, "owl": 9}, "train/{name}/{index}.png")
    _folders(root, {"cat": 2, "owl": 2}, "val/{name}/{index}.png")
    _folders(root, {"cat": 2, "dog": 2}, "test/{name}/{index}.png")
    directory = _prepared(tmp_path)
    with pytest.raises(ValueError, match="pets validation, of 4 images, has none of 1 classes .* splits have: dog"):
        prepare(_train(directory).train, Sites())
    with pytest.raises(ValueError, match="pets test, of 4 images, has none of 1 classes that other splits have: owl"):
        experiment.run(_train(directory, validation_split="train"), "test")
    prepare(_train(directory, allow_missing_classes=True).train, Sites())


def test_a_batch_of_more_images_than_there_are_is_refused(tmp_path):
    directory = _prepared(tmp_path, "--val", "0.2")  # 32 + 8 + 2 images to train on
    train = replace(_train(directory).train, batch_size=48)
    with pytest.raises(ValueError, match="A batch of 48 is larger than the training set pets train, of 42 images"):
        prepare(train, Sites())
    prepare(replace(train, batch_size=40), Sites())


@pytest.mark.parametrize("name", ["mean", "std"])
def test_normalization_of_other_channels_than_the_images_have_is_refused(tmp_path, name):
    directory = _prepared(tmp_path, "--val", "0.2")
    for values in ((0.5, 0.5), (0.5,) * 4):
        train = _train(directory).train
        with pytest.raises(ValueError, match=rf"data.{name} must have one value for each of the 3 channels of pets"):
            prepare(replace(train, data=replace(train.data, **{name: values})), Sites())
    prepare(replace(train, data=replace(train.data, **{name: (0.5, 0.4, 0.3)})), Sites())


def test_normalization_beyond_pixels_of_0_to_1_is_refused():
    for changes in ({"mean": (123.7,)}, {"mean": (-0.1,)}, {"std": (58.4,)}, {"std": (0.0,)}):
        with pytest.raises(ValueError, match=f"DataConfig.{next(iter(changes))} must be in"):
            replace(_config(Path()), **changes)


def test_synthetic_images_need_no_class_in_every_split():
    data = DataConfig("synthetic", "label", (0.5,), (0.5,), synthetic_images=60_000, synthetic_classes=55_000)
    checks.check_training(data, pipeline.load(data, "train"), pipeline.load(data, "validation"), 64)
