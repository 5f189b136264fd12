from collections import Counter

import pytest

from train.data import measures


def test_sizes_are_counted_in_ranges_of_the_shorter_side():
    assert measures.describe_sizes(Counter({(28, 28): 7})) == "28x28"
    sizes = Counter({(20, 15): 2, (16, 90): 3, (31, 40): 4, (64, 64): 5, (3000, 2500): 6})
    text = measures.describe_sizes(sizes)
    assert text == "16x15 to 3000x2500, 5 different; shorter side 8..15: 2, 16..31: 7, 64..95: 5, 2048..: 6"


def test_copies_across_splits_and_within_one_are_told_apart():
    digests = {"train": [b"a", b"b", b"b", b"", b"d"], "test": [b"a", b"c", b"", b"d"]}
    files = {"train": ["1", "2", "3", "4", "5"], "test": ["6", "7", "8", "9"]}
    across, within = measures.describe_copies(digests, files)
    assert across.startswith("2 images are in two splits") and across.endswith("train 1 = test 6; train 5 = test 9")
    assert within == "1 images are in a split more than once"
    names = {"train": ["1", "2"], "test": ["3", "4"]}
    assert measures.describe_copies({"train": [b"a", b""], "test": [b"b", b""]}, names) == []


@pytest.mark.parametrize(
    ("side", "cpu", "gpu"), [(8, "convnext_digits", "resnet20_x2"), (500, "convnext_cifar", "resnet18")]
)
def test_networks_fit_the_images_and_the_device(side, cpu, gpu):
    assert (measures.choose_network(side, "cpu"), measures.choose_network(side, "gpu")) == (cpu, gpu)
