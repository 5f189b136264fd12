"""Plain arrays of the development images in `../shared/data`, which `train prepare` reads as anybody's.

python -m tests.development_images ../shared/data FOLDER
python -m train prepare cifar100 --from FOLDER
python -m train prepare flowers89 --from FOLDER/flowers89_64.npz
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np


def load_reader(folder: Path) -> ModuleType:
    """Import the reader that lies beside the images."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpack(source: Path, target: Path) -> None:
    """Write the images of every file in `source` as uint8 arrays beside their labels."""
    reader = load_reader(source)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.npz")):
        images, labels, others = reader.load_images(path)
        of_images = {name: values for name, values in others.items() if name == "is_test" or "names" in name}
        more = {name: values for name, values in others.items() if name.endswith("_labels")}
        np.savez_compressed(target / path.name, images=images, labels=labels, **of_images, **more)
        print(target / path.name, images.shape)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
