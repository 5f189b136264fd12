"""What is measured of images before a network is chosen for them: pixels, sizes, and what is there twice."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from train.data.images import BadImageError
from train.data.pipeline import Split

_MEASURED = 2000  # images
_EDGES = (8, 16, 32, 48, 64, 96, 128, 224, 256, 384, 512, 1024, 2048)  # pixels, of a histogram
_NAMED = 5  # copies


def measure_pixels(data: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, of the pixels in 0..1 of training images as the network evaluates them.

    Of more than 2,000 images so many, at random by a fixed seed.
    """
    positions = np.random.default_rng(0).permutation(len(data))[:_MEASURED]
    count, total, squares = 0, np.zeros(data.image_shape[2]), np.zeros(data.image_shape[2])
    for position in positions.tolist():
        try:
            image = data.image(position)
        except BadImageError:
            continue
        assert isinstance(image, Image.Image)  # synthetic images are not prepared
        pixels = data.eval_transform(image).reshape(-1, data.image_shape[2]) / 255.0
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = total / max(count, 1)
    std = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0))
    # A channel that is the same everywhere tells nothing, but must be divided by something.
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(np.where(std < 1e-3, 1.0, std), 4).tolist())


def choose_network(shorter_side: int, platform: str) -> str:
    """A small ConvNeXt on a CPU; on others a ResNet for small images or for large ones."""
    if platform == "cpu":
        return "convnext_digits" if shorter_side < 16 else "convnext_cifar"
    return "resnet20_x2" if shorter_side <= 64 else "resnet18"


def describe_sizes(sizes: Counter[tuple[int, int]]) -> str:
    """How many images have which shorter side: where all are alike their size, else a line of ranges."""
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"{width}x{height}"
    widths, heights = zip(*sizes, strict=True)
    counts: Counter[int] = Counter()
    for size, count in sizes.items():
        counts[int(np.searchsorted(_EDGES, min(size), side="right"))] += count
    edges = [0, *_EDGES]
    ranges = [
        f"{edges[place]}..{edges[place + 1] - 1}: {count:,}" if place < len(_EDGES) else f"{edges[-1]}..: {count:,}"
        for place, count in sorted(counts.items())
    ]
    span = f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}, {len(sizes):,} different"
    return f"{span}; shorter side {', '.join(ranges)}"


def describe_copies(digests: Mapping[str, Sequence[bytes]], files: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines on images whose pixels are the same, in two splits or in one; none where there are none.

    Args:
      digests: by split, a hash of every image's pixels; empty for one that was not read.
      files: their names, likewise.
    """
    places: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split, own in digests.items():
        for digest, name in zip(own, files[split], strict=True):
            if digest:
                places[digest].append((split, name))
    same = [found for found in places.values() if len(found) > 1]
    across = [found for found in same if len({split for split, _ in found}) > 1]
    lines = []
    if across:
        lines.append(f"{len(across):,} images are in two splits, so what is tested was trained on: {_pairs(across)}")
    if within := sum(len(found) - 1 for found in same if len({split for split, _ in found}) == 1):
        lines.append(f"{within:,} images are in a split more than once")
    return lines


def _pairs(found: Sequence[Sequence[tuple[str, str]]]) -> str:
    named = [" = ".join(f"{split} {name}" for split, name in one) for one in found[:_NAMED]]
    return "; ".join(named) + ("; ..." if len(found) > _NAMED else "")
