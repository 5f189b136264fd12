"""The data sets that are known by name: where their owners give them out, and how they are read.

Sizes and SHA-256 are those of TFDS 4.9.10's `checksums.tsv` and `url_checksums`, where it has them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.data import official
from train.data.archives import Files
from train.data.sources import Contents


@dataclass(frozen=True)
class File:
    """A file as its owner gives it out."""

    name: str
    size: int | None = None  # bytes
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, sha256 {self.sha256})" if self.size else self.name


@dataclass(frozen=True)
class DataSet:
    """A data set that has a reader."""

    read: Callable[[Files], Contents]
    homepage: str
    files: tuple[File, ...] = ()
    usual_place: Path | None = None  # where a system's package puts the files
    note: str = ""  # to those who do not have them


_ROBOTS = "https://www.robots.ox.ac.uk/~vgg/data"

KNOWN: dict[str, DataSet] = {
    "digits": DataSet(official.digits, "https://archive.ics.uci.edu/dataset/80"),  # scikit-learn carries them
    "cifar10": DataSet(
        official.cifar10,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            File(
                "cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        note="The python version is a pickle, which could run anything when loaded: it is not read.",
    ),
    "cifar100": DataSet(
        official.cifar100,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            File(
                "cifar-100-binary.tar.gz",
                168513733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        note="The python version is a pickle, which could run anything when loaded: it is not read.",
    ),
    "fashion_mnist": DataSet(
        official.fashion_mnist,
        "https://github.com/zalandoresearch/fashion-mnist",
        (
            File(
                "train-images-idx3-ubyte.gz",
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            File(
                "train-labels-idx1-ubyte.gz",
                29515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            File(
                "t10k-images-idx3-ubyte.gz",
                4422102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            File(
                "t10k-labels-idx1-ubyte.gz",
                5148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        usual_place=Path("/usr/share/datasets/fashion-mnist"),
        note="Debian's package dataset-fashion-mnist has them.",
    ),
    "imagenet": DataSet(
        official.imagenet,
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
        (
            File(
                "ILSVRC2012_img_train.tar",
                147897477120,
                "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
            ),
            File(
                "ILSVRC2012_img_val.tar",
                6744924160,
                "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
            ),
        ),
        note="Folders train/<wnid>/ and val/<wnid>/ (or val/ flat) do as well.",
    ),
    "i_naturalist2018": DataSet(
        official.i_naturalist2018,
        "https://github.com/visipedia/inat_comp/tree/master/2018",
        (
            File("train_val2018.tar.gz"),
            File("train2018.json.tar.gz"),
            File("val2018.json.tar.gz"),
            File("categories.json.tar.gz"),
        ),
    ),
    "places205": DataSet(
        official.places205,
        "http://places.csail.mit.edu/downloadData.html",
        (File("imagesPlaces205_resize.tar.gz"), File("trainvalsplit_places205.tar.gz")),
    ),
    "places365": DataSet(
        official.places365,
        "http://places2.csail.mit.edu/download.html",
        (
            File(
                "train_256_places365standard.tar",
                26103685120,
                "0ade5d7d38c682aa0203014a2b99ad3bf608bf1de0f151dc0d80efba54660a0a",
            ),
            File("val_256.tar", 525158400, "24b4e639ef12a0012af525bc4cb443e4ab4aaea8369a1fb009b70e4a4aad5d48"),
            File(
                "filelist_places365-standard.tar",
                67498496,
                "520699e00d69b63ddc29fac54645aa00ce1c10ca42e288960aa1cf791d6e9aa9",
            ),
        ),
    ),
    "food101": DataSet(
        official.food101,
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        (File("food-101.tar.gz", 4996278331, "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4"),),
    ),
    "cars196": DataSet(
        official.cars196,
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        (
            File("cars_train.tgz", 979269282, "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288"),
            File("cars_test.tgz", 977350468, "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243"),
            File("car_devkit.tgz", 330960, "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd"),
            File(
                "cars_test_annos_withlabels.mat",
                185758,
                "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            ),
        ),
        note="Its owner's links have been dead since 2023; copies must have these sums.",
    ),
    "fgvc_aircraft": DataSet(
        official.fgvc_aircraft, f"{_ROBOTS}/fgvc-aircraft/", (File("fgvc-aircraft-2013b.tar.gz"),)
    ),
    "oxford_iiit_pet": DataSet(
        official.oxford_iiit_pet,
        f"{_ROBOTS}/pets/",
        (
            File("images.tar.gz", 791918971, "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d"),
            File("annotations.tar.gz", 19173078, "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91"),
        ),
    ),
    "oxford_flowers102": DataSet(
        official.oxford_flowers102,
        f"{_ROBOTS}/flowers/102/",
        (
            File("102flowers.tgz", 344862509, "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"),
            File("imagelabels.mat", 502, "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"),
            File("setid.mat", 14989, "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
        ),
    ),
    "dtd": DataSet(
        official.dtd,
        f"{_ROBOTS}/dtd/",
        (File("dtd-r1.0.1.tar.gz", 625239812, "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205"),),
    ),
}
