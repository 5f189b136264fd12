import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.test_archives import tar
from tests.data.test_images import CONVERTIBLE, PHOTOGRAPH, UNREADABLE, encoded
from train.__main__ import main
from train.augment import EvalTransformConfig
from train.config import DataConfig
from train.data import builders, npz_file, official, pipeline, survey
from train.data.archives import Files
from train.data.catalog import KNOWN


def square(size):
    return EvalTransformConfig(size, size)


RNG = np.random.default_rng(0)
JPEGS = {name: encoded(Image.new("RGB", (9, 7), name), "jpeg") for name in ("red", "green", "blue", "black")}


def _examples(contents):
    return {
        split: {Path(e.file).name: (e.image, e.labels) for e in examples()}
        for split, examples in contents.splits.items()
    }


def _write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _matlab(**fields):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, fields)
    return buffer.getvalue()


def _cars(rows):
    kinds = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    return _matlab(annotations=np.array([(1, label, name) for name, label in rows], dtype=kinds))


# What the owner's archives hold, in small, and for every split the label of each image.
OFFICIAL = {
    "food101": (
        {
            "food-101/meta/train.json": json.dumps({"apple": ["apple/1"], "soup": ["soup/2"]}),
            "food-101/meta/test.json": json.dumps({"apple": ["apple/3"], "soup": []}),
            **{f"food-101/images/{name}.jpg": JPEGS["red"] for name in ("apple/1", "soup/2", "apple/3")},
        },
        {"train": {"1.jpg": {"label": 0}, "2.jpg": {"label": 1}}, "test": {"3.jpg": {"label": 0}}},
    ),
    "dtd": (
        {
            "dtd/labels/train1.txt": "banded/a.jpg\n",
            "dtd/labels/val1.txt": "woven/b.jpg\n",
            "dtd/labels/test1.txt": "banded/c.jpg\n",
            **{f"dtd/images/{name}.jpg": JPEGS["red"] for name in ("banded/a", "woven/b", "banded/c")},
        },
        {"train": {"a.jpg": {"label": 0}}, "validation": {"b.jpg": {"label": 1}}, "test": {"c.jpg": {"label": 0}}},
    ),
    "oxford_iiit_pet": (
        {
            "annotations/trainval.txt": "# a comment\nBengal_1 1 1 1\nsaint_bernard_2 2 2 1\n",
            "annotations/test.txt": "saint_bernard_3 2 2 1\n",
            **{f"images/{name}.jpg": JPEGS["red"] for name in ("Bengal_1", "saint_bernard_2", "saint_bernard_3")},
        },
        {
            "train": {"Bengal_1.jpg": {"label": 0, "species": 0}, "saint_bernard_2.jpg": {"label": 1, "species": 1}},
            "test": {"saint_bernard_3.jpg": {"label": 1, "species": 1}},
        },
    ),
    "oxford_flowers102": (
        {
            "imagelabels.mat": _matlab(labels=np.array([[77, 1, 102]])),
            "setid.mat": _matlab(trnid=np.array([[3]]), valid=np.array([[1]]), tstid=np.array([[2]])),
            **{f"jpg/image_{number:05d}.jpg": JPEGS["red"] for number in (1, 2, 3)},
        },
        {
            "train": {"image_00003.jpg": {"label": 101}},
            "validation": {"image_00001.jpg": {"label": 76}},
            "test": {"image_00002.jpg": {"label": 0}},
        },
    ),
    "cars196": (
        {
            "devkit/cars_meta.mat": _matlab(class_names=np.array([["Audi", "BMW"]], dtype=object)),
            "devkit/cars_train_annos.mat": _cars([("00001.jpg", 2), ("00002.jpg", 1)]),
            "cars_test_annos_withlabels.mat": _cars([("00001.jpg", 1), ("00002.jpg", 2)]),
            **{f"cars_{split}/0000{number}.jpg": JPEGS["red"] for split in ("train", "test") for number in (1, 2)},
        },
        {
            "train": {"00001.jpg": {"label": 1}, "00002.jpg": {"label": 0}},
            "test": {"00001.jpg": {"label": 0}, "00002.jpg": {"label": 1}},
        },
    ),
    "fgvc_aircraft": (
        {
            "data/variants.txt": "707-320\nA380\n",
            "data/families.txt": "Boeing 707\nA380\n",
            "data/manufacturers.txt": "Airbus\nBoeing\n",
            **{
                f"data/images_{level}_{split}.txt": f"{number} {names[split]}\n"
                for level, names in (
                    ("variant", {"train": "A380", "val": "707-320", "test": "A380"}),
                    ("family", {"train": "A380", "val": "Boeing 707", "test": "A380"}),
                    ("manufacturer", {"train": "Airbus", "val": "Boeing", "test": "Airbus"}),
                )
                for number, split in ((1, "train"), (2, "val"), (3, "test"))
            },
            **{f"data/images/{number}.jpg": JPEGS["red"] for number in (1, 2, 3)},
        },
        {
            "train": {"1.jpg": {"label": 1, "family": 1, "manufacturer": 0}},
            "validation": {"2.jpg": {"label": 0, "family": 0, "manufacturer": 1}},
            "test": {"3.jpg": {"label": 1, "family": 1, "manufacturer": 0}},
        },
    ),
    "places205": (
        {
            "trainvalsplit_places205/train_places205.csv": "a/abbey/x.jpg 0\na/airport_terminal/inside/y.jpg 1\n",
            "trainvalsplit_places205/val_places205.csv": "a/abbey/z.jpg 0\n",
            **{
                f"data/vision/torralba/deeplearning/images256/{name}.jpg": JPEGS["red"]
                for name in ("a/abbey/x", "a/airport_terminal/inside/y", "a/abbey/z")
            },
        },
        {"train": {"x.jpg": {"label": 0}, "y.jpg": {"label": 1}}, "validation": {"z.jpg": {"label": 0}}},
    ),
    "places365": (
        {
            "categories_places365.txt": "/a/airfield 0\n/b/bar 1\n",
            "places365_train_standard.txt": "/a/airfield/00000001.jpg 0\n/b/bar/00000002.jpg 1\n",
            "places365_val.txt": "Places365_val_00000001.jpg 1\n",
            "data_256/a/airfield/00000001.jpg": JPEGS["red"],
            "data_256/b/bar/00000002.jpg": JPEGS["red"],
            "val_256/Places365_val_00000001.jpg": JPEGS["red"],
        },
        {
            "train": {"00000001.jpg": {"label": 0}, "00000002.jpg": {"label": 1}},
            "validation": {"Places365_val_00000001.jpg": {"label": 1}},
        },
    ),
    "i_naturalist2018": (
        {
            "categories.json": json.dumps([{"id": 1, "name": "Parus major"}, {"id": 0, "name": "Corvus corax"}]),
            **{
                f"{split}2018.json": json.dumps(
                    {
                        "images": [{"id": 7, "file_name": f"train_val2018/Aves/{category}/{split}.jpg"}],
                        "annotations": [{"image_id": 7, "category_id": category}],
                    }
                )
                for split, category in (("train", 1), ("val", 0))
            },
            "train_val2018/Aves/1/train.jpg": JPEGS["red"],
            "train_val2018/Aves/0/val.jpg": JPEGS["red"],
        },
        {"train": {"train.jpg": {"label": 1}}, "validation": {"val.jpg": {"label": 0}}},
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("packed_up", [False, True])
def test_the_owners_lists_give_every_image_its_split_and_label(tmp_path, name, packed_up):
    files, expected = OFFICIAL[name]
    if packed_up:
        tar(tmp_path / "all.tar.gz", {key: v if isinstance(v, bytes) else v.encode() for key, v in files.items()})
    else:
        _write(tmp_path, files)
    contents = KNOWN[name].read(Files(tmp_path))
    found = {split: {file: labels for file, (_, labels) in of.items()} for split, of in _examples(contents).items()}
    assert found == expected
    assert all(max(labels.values()) < 102 for of in found.values() for labels in of.values())
    if not packed_up:
        next(path for path in sorted(tmp_path.rglob("*.jpg")) if "val" not in path.name).unlink()
        with pytest.raises(ValueError, match="1 of . listed images are not in"):
            _examples(KNOWN[name].read(Files(tmp_path)))


def test_imagenet_is_read_from_its_two_archives_and_its_superclasses_are_parts_of_it(tmp_path):
    wnids = ("n02085620", "n02086910", "n01440764", "n02965783")  # two dogs and a fish of living_9, and a car mirror
    colours = dict(zip(wnids, JPEGS.values(), strict=True))
    inner = {f"{w}.tar": tar(tmp_path / "t" / w, {f"{w}_1.JPEG": image}).read_bytes() for w, image in colours.items()}
    tar(tmp_path / "in" / "ILSVRC2012_img_train.tar", inner)
    # The first two validation images are a snake n01751748 and a beach n09193705, the third a dog n02105855.
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)]
    tar(tmp_path / "in" / "ILSVRC2012_img_val.tar", dict.fromkeys(names, JPEGS["red"]))
    builders.prepare("living_9", tmp_path / "in", tmp_path / "data")

    def load(name, label, split="train"):
        return pipeline.load(
            DataConfig(name, label, (0,), (1,), evaluation=square(8), directory=str(tmp_path / "data")),
            split,
        )

    whole = load("imagenet", "label")
    assert [whole.class_names[label] for label in whole.labels()] == list(wnids)
    validation = load("imagenet", "label", "validation")
    assert [validation.class_names[i] for i in validation.labels()] == ["n01751748", "n09193705", "n02105855"]
    coarse, fine = load("living_9", "superclass"), load("living_9", "subclass")
    assert [coarse.class_names[label] for label in coarse.labels()] == ["dog", "dog", "fish"]
    assert [fine.class_names[label] for label in fine.labels()] == list(wnids[:3])
    assert (coarse.num_classes, fine.num_classes) == (9, 72)
    for position, wnid in enumerate(wnids[:3]):
        expected = Image.open(io.BytesIO(colours[wnid]))
        np.testing.assert_array_equal(np.asarray(coarse.image(position)), np.asarray(expected))


@pytest.mark.parametrize(("name", "label_bytes", "classes"), [("cifar10", 1, 10), ("cifar100", 2, 100)])
def test_cifars_binary_files_keep_their_order_and_coarse_labels(tmp_path, name, label_bytes, classes):
    pixels = RNG.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    labels = RNG.integers(0, [20, 100] if label_bytes == 2 else [10], (24, label_bytes), dtype=np.uint8)
    rows = [
        bytes(row_labels) + image.transpose(2, 0, 1).tobytes() for row_labels, image in zip(labels, pixels, strict=True)
    ]
    if name == "cifar10":
        files = {f"cifar-10-batches-bin/data_batch_{k + 1}.bin": b"".join(rows[4 * k : 4 * k + 4]) for k in range(5)}
        files |= {"cifar-10-batches-bin/test_batch.bin": b"".join(rows[20:])}
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        files |= {"cifar-10-batches-bin/batches.meta.txt": "\n".join(names).encode() + b"\n\n"}
    else:
        files = {"x/train.bin": b"".join(rows[:20]), "x/test.bin": b"".join(rows[20:])}
        files |= {"x/fine_label_names.txt": "\n".join(f"f{i}" for i in range(100)).encode()}
        files |= {"x/coarse_label_names.txt": "\n".join(f"c{i}" for i in range(20)).encode()}
    contents = KNOWN[name].read(Files(tar(tmp_path / "set.tar.gz", files)))
    examples = [example for split in ("train", "test") for example in contents.splits[split]()]
    np.testing.assert_array_equal([np.asarray(Image.open(io.BytesIO(e.image))) for e in examples], pixels)
    assert [e.labels["label"] for e in examples] == labels[:, -1].tolist()
    assert len(contents.class_names["label"]) == classes
    if name == "cifar100":
        assert [e.labels["coarse_label"] for e in examples] == labels[:, 0].tolist()
    else:
        is_vehicle = [label in (0, 1, 8, 9) for label in labels[:, 0]]
        assert [e.labels["kind"] for e in examples] == is_vehicle
        assert contents.class_names["kind"] == ["animal", "vehicle"]


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    pixels = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        header = b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes()
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = gzip.compress(b"\0\0\x08\x01\0\0\0\x03" + bytes([9, 0, 4]))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(labels)
    contents = official.fashion_mnist(Files(tmp_path))
    for split in ("train", "test"):
        examples = list(contents.splits[split]())
        np.testing.assert_array_equal([np.asarray(Image.open(io.BytesIO(e.image))) for e in examples], pixels)
        assert [contents.class_names["label"][e.labels["label"]] for e in examples] == [
            "Ankle boot",
            "T-shirt/top",
            "Coat",
        ]


def _folder_with_bad_images(root) -> int:
    kinds = {name: file for name, (file, _) in CONVERTIBLE.items()} | UNREADABLE
    for number, file in enumerate(kinds.values()):
        _write(root, {f"train/cat/{number:02d}.jpg": file})
    _write(root, {"train/dog/plain.jpg": PHOTOGRAPH, "val/dog/plain.png": JPEGS["red"], "notes.txt": "not an image"})
    return len(kinds)


@pytest.mark.parametrize(
    ("policy", "left_out"), [("convert", len(UNREADABLE)), ("skip", len(CONVERTIBLE | UNREADABLE))]
)
def test_bad_images_are_counted_and_named_and_none_is_lost_in_silence(tmp_path, policy, left_out, capsys):
    bad = _folder_with_bad_images(tmp_path / "pets")
    main(["prepare", "pets", "--from", str(tmp_path / "pets"), "--directory", str(tmp_path), "--bad-images", policy])
    text = capsys.readouterr().out
    log = json.loads((tmp_path / "pets" / "1.0.0" / "bad_images.json").read_text())
    assert log.pop(0)["file"] == "notes.txt"  # which is no image, and named all the same
    assert len(log) == bad and sum(not entry["kept"] for entry in log) == left_out
    assert all(f"train/cat/{number:02d}.jpg" in text for number in range(bad))
    for kind in [*CONVERTIBLE, *UNREADABLE]:
        assert any(entry["flaw"].startswith(kind) for entry in log), kind
    data = pipeline.load(
        DataConfig("pets", "label", (0,), (1,), evaluation=square(8), directory=str(tmp_path)), "train"
    )
    assert len(data) == bad + 1 - left_out
    assert data.class_names == ["cat", "dog"]
    for position in range(len(data)):
        assert data.image(position).mode == "RGB"


def test_under_raise_the_first_bad_image_stops_the_work_and_nothing_is_left_behind(tmp_path):
    _folder_with_bad_images(tmp_path / "pets")
    with pytest.raises(ValueError, match="train/cat/00.jpg: CMYK. `--bad-images convert` mends it"):
        builders.prepare("pets", tmp_path / "pets", tmp_path / "data", "raise")
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_arrays_in_npz_files_are_split_by_name_or_by_is_test(tmp_path):
    images, labels = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8), np.array([0, 1, 2, 2, 1, 0])
    np.savez(tmp_path / "a.npz", x_train=images[:4], y_train=labels[:4], x_test=images[4:], y_test=labels[4:])
    np.savez(
        tmp_path / "b.npz",
        images=images[:4],
        labels=np.array([1, 0, 1, 0]),
        names=np.array(["dark", "light"]),
        is_test=np.array([0, 1, 1, 0], np.uint8),
    )
    a, b = (npz_file.read({"": tmp_path / name}) for name in ("a.npz", "b.npz"))
    assert a.shape == (5, 4, 1) and b.class_names == {"label": ["dark", "light"]}
    for split, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        found = list(a.splits[split]())
        np.testing.assert_array_equal([_pixels(example) for example in found], images[rows])
        assert [e.labels["label"] for e in found] == labels[rows].tolist()
    assert [e.labels["label"] for e in b.splits["test"]()] == [0, 1]
    np.testing.assert_array_equal([_pixels(example) for example in b.splits["test"]()], images[1:3])


def _pixels(example):
    return np.asarray(Image.open(io.BytesIO(example.image)))


def test_npz_files_with_pickles_wrong_lengths_or_labels_out_of_range_are_refused(tmp_path):
    def refused(message, **fields):
        np.savez(tmp_path / "x.npz", **fields)
        with pytest.raises(ValueError, match=message):
            builders.prepare("x", tmp_path / "x.npz", tmp_path / "data")

    images = np.zeros((2, 4, 4, 3), np.uint8)
    refused("Object arrays cannot be loaded", images=np.array([{}, None]), labels=[0, 0])
    refused("2 images but 1 of label", images=images, labels=[0])
    refused("labels must lie in 0..1, got -1 at index 1", images=images, labels=[1, -1])
    refused("labels must lie in 0..0, got 2 at index 0", images=images, labels=[2, 0], names=["one"])
    refused("images must be uint8 .* got float64", images=images / 2, labels=[0, 0])
    refused("needs images and labels", pictures=images)


X, Y = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 3
NAMES = np.array(["owl", "cat", "dog"])
LAYOUTS = {
    "channels_first": ({"x_train": X.transpose(0, 3, 1, 2), "y_train": Y}, ["0", "1", "2"]),
    "whole_floats": ({"x_train": X, "y_train": Y.astype(float)}, ["0", "1", "2"]),
    "strings": ({"x_train": X, "y_train": NAMES[Y]}, ["cat", "dog", "owl"]),
    "bytes": ({"x_train": X, "y_train": NAMES[Y].astype("S")}, ["cat", "dog", "owl"]),
    "class_names": ({"x_train": X, "y_train": Y, "class_names": NAMES}, ["owl", "cat", "dog"]),
    "filenames": ({"x_train": X, "y_train": Y, "filenames": NAMES[Y]}, ["0", "1", "2"]),
}
REFUSED_LAYOUTS = {
    "flat": ({"x_train": X.reshape(12, -1), "y_train": Y}, r"images must be uint8 .* got uint8 \(12, 192\)"),
    "float images": ({"x_train": X / 255, "y_train": Y}, "images must be uint8 .* got float64"),
    "parts of classes": ({"x_train": X, "y_train": Y + 0.7}, "labels must be whole numbers or names, got float64"),
    "complex": ({"x_train": X, "y_train": Y + 0j}, "labels must be whole numbers or names, got complex128"),
    "not finite": ({"x_train": X, "y_train": Y * np.nan}, "labels must be whole numbers"),
    "huge": ({"x_train": X, "y_train": Y + 2**31 - 9}, "labels must be below 1,000,000, got 2,147,483,641"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_arrays_as_people_keep_them_are_read(tmp_path, name):
    arrays, names = LAYOUTS[name]
    np.savez(tmp_path / "a.npz", **arrays)
    contents = npz_file.read({"": tmp_path / "a.npz"})
    examples = list(contents.splits["train"]())
    assert contents.class_names == {"label": names}
    found = [names[example.labels["label"]] for example in examples]
    assert (
        found
        == [
            str(given) if arrays["y_train"].dtype.kind == "U" else names[int(label)]
            for given, label in zip(NAMES[Y], Y, strict=True)
        ]
        if name != "bytes"
        else found == NAMES[Y].tolist()
    )
    np.testing.assert_array_equal([np.asarray(Image.open(io.BytesIO(example.image))) for example in examples], X)


def test_opacity_is_shown_over_white(tmp_path):
    rgba = np.concatenate([X, np.zeros_like(X[..., :1])], axis=-1)
    np.savez(tmp_path / "a.npz", x_train=rgba, y_train=Y)
    builders.prepare("clear", tmp_path / "a.npz", tmp_path)
    config = DataConfig("clear", "label", (0,), (1,), directory=str(tmp_path))
    assert (np.asarray(pipeline.load(config, "train").image(0)) == 255).all()


@pytest.mark.parametrize("name", REFUSED_LAYOUTS)
def test_arrays_that_cannot_be_meant_are_refused_in_one_line(tmp_path, name):
    arrays, message = REFUSED_LAYOUTS[name]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        npz_file.read({"": tmp_path / "a.npz"})


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.files])
def test_missing_files_are_named_with_where_they_are_given_out_and_their_sums(tmp_path, name, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", name, "--from", str(tmp_path), "--directory", str(tmp_path / "data")])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for file in KNOWN[name].files:
        assert file.name in error and file.sha256 in error and (file.size is None or f"{file.size:,} bytes" in error)
    assert KNOWN[name].homepage in error


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As anybody's data set prepared with TFDS: shuffled by it, with other features beside."""

    VERSION = tfds.core.Version("2.1.0")
    last_label = 1

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        features["box"] = tfds.features.BBoxFeature()
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, (name, image) in enumerate(JPEGS.items()):
            label = self.last_label if index == 3 else index % 2
            yield name, {"image": image, "label": label, "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}


def _foreign(directory, last_label=1):
    Foreign.last_label = last_label
    builder = Foreign(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return DataConfig("foreign", "label", (0,), (1,), evaluation=square(8), directory=str(directory))


def test_a_tfds_data_set_that_was_prepared_elsewhere_is_read_as_it_is(tmp_path):
    config = _foreign(tmp_path)
    data = pipeline.load(config, "train")
    of_colour = {np.asarray(Image.open(io.BytesIO(file))).tobytes(): i % 2 for i, file in enumerate(JPEGS.values())}
    assert {np.asarray(data.image(i)).tobytes(): int(data.labels()[i]) for i in range(4)} == of_colour
    pipeline.load(
        DataConfig("foreign:2.1.0", "label", (0,), (1,), evaluation=square(8), directory=str(tmp_path)),
        "train",
    )
    info = tmp_path / "foreign" / "2.1.0" / "dataset_info.json"
    (info.parent / "hashes.json").unlink()
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    pipeline.load.cache_clear()
    with pytest.raises(ValueError, match="is prepared as tfrecord, which needs TensorFlow"):
        pipeline.load(config, "train")


def test_labels_out_of_range_are_found_before_training(tmp_path):
    config = _foreign(tmp_path, last_label=-1)  # which TFDS writes for test images without labels
    with pytest.raises(ValueError, match=r"foreign train label: labels must lie in 0..1, got -1 at index . \(1 such\)"):
        pipeline.load(config, "train")


def test_the_survey_counts_names_and_shows_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "pets", {f"train/cat/{name}.jpg": file for name, file in JPEGS.items()})
    _write(tmp_path / "pets", {"train/dog/grey.png": CONVERTIBLE["grayscale"][0], "test/dog/1.jpg": JPEGS["red"]})
    main(["prepare", "pets", "--from", "pets"])
    main(["data", "pets"])
    text = capsys.readouterr().out
    assert "train: 5 images" in text and "2 classes, 1 (dog) to 4 (cat) images" in text
    assert "2 classes, 0 (cat) to 1 (dog) images, median 0; without any: cat" in text
    assert "1 are converted when read: grayscale" in text
    assert "sizes: 8x6 to 9x7, 2 different; shorter side 0..7: 5" in text and "sizes: 9x7" in text
    assert (
        "1 images are in two splits, so what is tested was trained on: test test/dog/1.jpg = train train/cat/" in text
    )
    assert "shorter side 7 pixels (median): convnext_digits on a CPU, resnet20_x2 on a GPU or TPU" in text
    sheet = np.asarray(Image.open("runs/data/pets.png"))
    np.testing.assert_allclose(sheet[40, 40], [255, 0, 0], atol=2)  # the first cat is black, blue, green or red
    monkeypatch.setattr(survey.pipeline.Split, "opened", _broken)
    with pytest.raises(SystemExit) as stop:
        main(["data", "pets"])
    assert stop.value.code == 1
    assert "5 images do not decode" in capsys.readouterr().out


def _broken(self, index, record):
    raise survey.BadImageError("bad")
