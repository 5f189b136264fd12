"""Readers of the data sets of the paper, each in the form in which its owner gives it out, packed or unpacked."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.data.archives import Files
from train.data.sources import (
    Contents,
    Example,
    Listing,
    binary_records,
    check_once,
    idx,
    in_memory,
    listed,
    text_lines,
)

FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FASHION_KINDS = ["clothing", "footwear", "bag"]
KIND_OF_FASHION_CLASS = np.array([0, 0, 0, 0, 0, 1, 0, 1, 2, 1])
VEHICLES = ("airplane", "automobile", "ship", "truck")
WNID = re.compile(r"n\d{8}")
# In file order within each digit, of every ten: five to train, one to choose by, four to test.
SPLIT_OF_TEN = ("train",) * 5 + ("validation",) + ("test",) * 4
WITH_CLOSED_LOOP = (0, 6, 8, 9)
_FINE_AND_COARSE = {"label": "fine", "coarse_label": "coarse"}


def digits(_: Files) -> Contents:
    """Grey levels 0..16 are stored as 0..255; the second label is whether the digit has a closed loop."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    order = np.zeros(len(labels), int)
    for digit in range(10):
        order[labels == digit] = np.arange((labels == digit).sum())
    split_of = np.array(SPLIT_OF_TEN)[order % 10]
    fields = {"digit": labels, "closed_loop": np.isin(labels, WITH_CLOSED_LOOP).astype(int)}
    splits = {
        split: (images[split_of == split], {field: values[split_of == split] for field, values in fields.items()})
        for split in ("train", "validation", "test")
    }
    return in_memory({"digit": [str(digit) for digit in range(10)], "closed_loop": ["no", "yes"]}, splits)


def cifar10(files: Files) -> Contents:
    """The binary version's records in file order; `kind` is animal or vehicle."""
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    found = files.find(*batches, "test_batch.bin", "batches.meta.txt")
    classes = text_lines(found["batches.meta.txt"])
    kind_of_class = np.isin(classes, VEHICLES).astype(int)
    splits = {}
    for split, names in (("train", batches), ("test", ["test_batch.bin"])):
        images, labels = binary_records([found[name] for name in names], label_bytes=1)
        splits[split] = images, {"label": labels[:, 0], "kind": kind_of_class[labels[:, 0]]}
    return in_memory({"label": classes, "kind": ["animal", "vehicle"]}, splits)


def cifar100(files: Files) -> Contents:
    """The binary version's records in file order, with the 20 superclasses as `coarse_label`."""
    found = files.find("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
    splits = {}
    for split in ("train", "test"):
        images, labels = binary_records([found[f"{split}.bin"]], label_bytes=2)
        splits[split] = images, {"label": labels[:, 1], "coarse_label": labels[:, 0]}
    names = {field: text_lines(found[f"{kind}_label_names.txt"]) for field, kind in _FINE_AND_COARSE.items()}
    return in_memory(names, splits)


def fashion_mnist(files: Files) -> Contents:
    """60,000 training and 10,000 test images, 28x28 grey; `kind` is clothing, footwear or bag."""
    names = {"train": "train", "test": "t10k"}
    paths = [f"{name}-{part}-ubyte.gz" for name in names.values() for part in ("images-idx3", "labels-idx1")]
    found = files.find(*paths)
    splits = {}
    for split, name in names.items():
        labels = idx(found[f"{name}-labels-idx1-ubyte.gz"])
        fields = {"label": labels, "kind": KIND_OF_FASHION_CLASS[labels]}
        splits[split] = idx(found[f"{name}-images-idx3-ubyte.gz"])[..., None], fields
    return in_memory({"label": FASHION_CLASSES, "kind": FASHION_KINDS}, splits)


def imagenet(files: Files) -> Contents:
    """Classes are WordNet ids in order; a validation image's is its folder's or, in the archive, its number's."""
    labels = tfds.core.tfds_path("datasets/imagenet2012")
    wnids = text_lines((labels / "labels.txt").read_bytes())
    of_validation = text_lines((labels / "validation_labels.txt").read_bytes())
    index = {wnid: label for label, wnid in enumerate(wnids)}

    def wnid_of(name: str) -> tuple[str, str] | None:
        if not name.endswith((".JPEG", ".jpg", ".jpeg")):
            return None
        if match := re.search(r"ILSVRC2012_val_(\d{8})", name):
            folder = WNID.findall(name)
            return "validation", folder[-1] if folder else of_validation[int(match[1]) - 1]
        split = "validation" if re.search(r"(^|/)val(idation)?/", name) else "train"
        return (split, found[-1]) if (found := WNID.findall(name)) else None

    if not any(map(wnid_of, (name for name, _ in files))):
        raise FileNotFoundError(f"no image of a WordNet id in {files.root}")

    def split(wanted: str) -> Iterator[Example]:
        seen: set[str] = set()
        for name, read in files:
            place = wnid_of(name)
            if place is not None and place[0] == wanted:
                check_once(name.rsplit("/", 1)[-1], seen)  # names are unique throughout ImageNet
                if place[1] not in index:
                    raise ValueError(f"{name}: {place[1]} is not among the 1,000 classes.")
                yield Example(name, read(), {"label": index[place[1]]})

    return Contents({"label": wnids}, {name: lambda name=name: split(name) for name in ("train", "validation")})


def i_naturalist2018(files: Files) -> Contents:
    """Classes are the category ids in order, by their names."""
    lists = {"train": "train2018.json", "validation": "val2018.json"}
    found = {name: json.loads(text) for name, text in files.find(*lists.values(), "categories.json").items()}
    categories = sorted(found["categories.json"], key=lambda category: category["id"])
    index = {category["id"]: label for label, category in enumerate(categories)}
    listings = {}
    for split, name in lists.items():
        label_of = {entry["image_id"]: index[entry["category_id"]] for entry in found[name]["annotations"]}
        listings[split] = {
            _tail(image["file_name"], 3): {"label": label_of[image["id"]]} for image in found[name]["images"]
        }
    names = [category["name"] for category in categories]
    return listed(files, {"label": names}, listings, lambda name: _tail(name, 3))


def places205(files: Files) -> Contents:
    """Classes by their folder, such as `a/abbey`."""
    lists = {"train": "train_places205.csv", "validation": "val_places205.csv"}
    found = files.find(*lists.values())
    rows = {split: [line.rsplit(maxsplit=1) for line in text_lines(found[name])] for split, name in lists.items()}
    listings = {split: {path: {"label": int(label)} for path, label in table} for split, table in rows.items()}
    names = {int(label): path.rsplit("/", 1)[0] for path, label in rows["train"]}

    def key(name: str) -> str:
        return name.rpartition("images256/")[2]

    return listed(files, {"label": [names[label] for label in sorted(names)]}, listings, key)


def places365(files: Files) -> Contents:
    """The small or the large images of Places365-Standard."""
    lists = {"train": "places365_train_standard.txt", "validation": "places365_val.txt"}
    found = files.find(*lists.values(), "categories_places365.txt")
    listings = {
        split: {path.strip("/"): {"label": int(label)} for path, label in map(str.split, text_lines(found[name]))}
        for split, name in lists.items()
    }
    names = [line.split()[0].strip("/") for line in text_lines(found["categories_places365.txt"])]

    def key(name: str) -> str:
        return re.sub(r"^.*?(data|val)_(256|large)(_standard)?/", "", name)

    return listed(files, {"label": names}, listings, key)


def food101(files: Files) -> Contents:
    """The 25,250 images that were labelled with care are `test`."""
    lists = {"train": "meta/train.json", "test": "meta/test.json"}
    texts = files.find(*lists.values())
    found = {split: json.loads(texts[name]) for split, name in lists.items()}
    names = sorted(found["train"])
    listings = {
        split: {f"{path}.jpg": {"label": names.index(name)} for name, paths in of_class.items() for path in paths}
        for split, of_class in found.items()
    }
    return listed(files, {"label": names}, listings, lambda name: _tail(name, 2))


def cars196(files: Files) -> Contents:
    """The test labels come in a file of their own."""
    lists = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    found = {name: _matlab(text) for name, text in files.find("cars_meta.mat", *lists.values()).items()}
    listings = {}
    for split, name in lists.items():
        rows = found[name]["annotations"]
        pairs = zip(np.atleast_1d(rows["fname"]), np.atleast_1d(rows["class"]), strict=True)
        listings[split] = {f"cars_{split}/{file}": {"label": int(label) - 1} for file, label in pairs}
    names = [str(name) for name in found["cars_meta.mat"]["class_names"]]
    return listed(files, {"label": names}, listings, lambda name: _tail(name, 2))


def fgvc_aircraft(files: Files) -> Contents:
    """Variants as `label`, and families and manufacturers."""
    levels = {"label": ("variant", "variants"), "family": ("family", "families")}
    levels["manufacturer"] = ("manufacturer", "manufacturers")
    splits = {"train": "train", "validation": "val", "test": "test"}
    wanted = [f"{plural}.txt" for _, plural in levels.values()]
    wanted += [f"images_{level}_{split}.txt" for level, _ in levels.values() for split in splits.values()]
    found = {name: text_lines(text) for name, text in files.find(*wanted).items()}
    names = {field: found[f"{plural}.txt"] for field, (_, plural) in levels.items()}
    listings: dict[str, Listing] = {split: {} for split in splits}
    for split, in_file in splits.items():
        for field, (level, _) in levels.items():
            for line in found[f"images_{level}_{in_file}.txt"]:
                image, name = line.split(" ", 1)
                listings[split].setdefault(f"images/{image}.jpg", {})[field] = names[field].index(name)
    return listed(files, names, listings, lambda name: _tail(name, 2))


def oxford_iiit_pet(files: Files) -> Contents:
    """37 breeds as `label`, and `species`."""
    found = files.find("annotations/trainval.txt", "annotations/test.txt")
    listings, names = {}, {}
    for split, name in (("train", "trainval"), ("test", "test")):
        rows = [line.split() for line in text_lines(found[f"annotations/{name}.txt"]) if not line.startswith("#")]
        listings[split] = {f"{row[0]}.jpg": {"label": int(row[1]) - 1, "species": int(row[2]) - 1} for row in rows}
        names |= {int(row[1]) - 1: row[0].rsplit("_", 1)[0] for row in rows}
    class_names = {"label": [names[label] for label in sorted(names)], "species": ["cat", "dog"]}
    return listed(files, class_names, listings, lambda name: _tail(name, 1))


def oxford_flowers102(files: Files) -> Contents:
    """The official splits, of which the test split is the largest. The owner gives classes numbers, 1 to 102."""
    found = {name: _matlab(text) for name, text in files.find("imagelabels.mat", "setid.mat").items()}
    labels = found["imagelabels.mat"]["labels"]
    names = {"train": "trnid", "validation": "valid", "test": "tstid"}
    listings = {
        split: {
            f"image_{number:05d}.jpg": {"label": int(labels[number - 1]) - 1}
            for number in np.atleast_1d(found["setid.mat"][name])
        }
        for split, name in names.items()
    }
    class_names = [str(label) for label in range(1, 103)]
    return listed(files, {"label": class_names}, listings, lambda name: _tail(name, 1))


def dtd(files: Files) -> Contents:
    """The first of the ten official partitions, as in TFDS."""
    lists = {"train": "labels/train1.txt", "validation": "labels/val1.txt", "test": "labels/test1.txt"}
    found = {name: text_lines(text) for name, text in files.find(*lists.values()).items()}
    names = sorted({path.split("/")[0] for paths in found.values() for path in paths})
    listings = {
        split: {path: {"label": names.index(path.split("/")[0])} for path in found[name]}
        for split, name in lists.items()
    }
    return listed(files, {"label": names}, listings, lambda name: _tail(name, 2))


def _tail(path: str, parts: int) -> str:
    return "/".join(path.split("/")[-parts:])


def _matlab(encoded: bytes) -> dict[str, Any]:
    from scipy.io import loadmat

    return loadmat(io.BytesIO(encoded), squeeze_me=True)
