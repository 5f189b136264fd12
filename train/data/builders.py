"""Our TFDS builders: they yield encoded bytes and are written as `array_record`, without TensorFlow."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

# In file order within each digit, of every ten: five to train, one to choose by, four to test.
_SPLIT_OF_TEN = ("train",) * 5 + ("validation",) + ("test",) * 4
_WITH_CLOSED_LOOP = (0, 6, 8, 9)


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 handwritten 8x8 digits that scikit-learn carries, with whether each has a closed loop.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
    (its test set). Grey levels 0..16 are stored as 0..255.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "digit": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
            "closed_loop": tfds.features.ClassLabel(names=["no", "yes"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, digits = load_digits(return_X_y=True)
        seen = np.zeros(10, int)
        for index, (image, digit) in enumerate(zip(images, digits, strict=True)):
            if _SPLIT_OF_TEN[seen[digit] % 10] == split:
                pixels = np.rint(image.reshape(8, 8) * 255 / 16).astype(np.uint8)
                yield (
                    index,
                    {"image": _png(pixels), "digit": int(digit), "closed_loop": int(digit in _WITH_CLOSED_LOOP)},
                )
            seen[digit] += 1


BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {"digits": Digits}


def prepared(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """The builder of the data set called `name`, prepared under `directory` on first use.

    Raises:
      ValueError: for an unknown name, with the names that are known.
    """
    if name not in BUILDERS:
        raise ValueError(f"Unknown data set {name!r}. Known: {', '.join(BUILDERS)}.")
    builder = BUILDERS[name](data_dir=Path(directory).expanduser(), file_format="array_record")
    if not Path(builder.data_path).exists():
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it announces downloads of unknown size
            builder.download_and_prepare()
    return builder


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
