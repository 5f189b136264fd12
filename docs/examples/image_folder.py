"""A folder of images, from nothing to a probe table: prepare it, train with and without VCReg, probe, report.

The same by hand is a config file and two commands:

    python -m train prepare shapes --from FOLDER     # FOLDER/train/<class>/*.png, validation/..., test/...
    python -m train run my_config.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # `train` is run from the repository, it is not installed

import vcreg_jax as vc
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import (
    AdamW,
    Cosine,
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    Target,
    TrainConfig,
)
from train.data import builders
from train.experiments import experiment
from train.reports import report, report_page


def draw(folder: Path) -> None:
    """Writes noisy 8x8 images of bars and crosses, as one's own images would lie there."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 16), ("test", 16)):
        for name in ("bar", "cross"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (8, 8), np.uint8)
                pixels[rng.integers(8)] = 255
                if name == "cross":
                    pixels[:, rng.integers(8)] = 255
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


def config(directory: Path) -> Experiment:
    """What would stand in `my_config.py` as `get_config()`."""
    data = DataConfig(
        "shapes",
        label="label",
        mean=(0.3,),
        std=(0.3,),
        channels=1,
        evaluation=EvalTransformConfig(resize=8, crop=8),  # a folder's images may have any sizes
        augment=AugmentConfig(crop_size=8, crop_scale=(0.8, 1.0)),
        directory=str(directory / "data"),
    )
    optimizer = OptimizerConfig(AdamW(weight_decay=0.05), Cosine(peak_learning_rate=4e-3, warmup_steps=5))
    model = ModelConfig("convnext_digits")
    return Experiment(
        name="shapes",
        title="Bars and crosses",
        train=TrainConfig(data, model, optimizer, steps=20, batch_size=32, eval_every=20, save_every=20),
        arms={"baseline": vc.Sites(), "VCReg": vc.Sites(block=vc.VCReg(alpha=0.64, beta=0.08))},
        targets={"shapes": Target(ProbeConfig(label="label", l2_count=3, max_iterations=200))},
        seeds=(0,),
        runs_directory=str(directory / "runs"),
    )


def main(directory: Path) -> str:
    """Prints, and returns, the table of both arms."""
    draw(directory / "images")
    builders.prepare("shapes", directory / "images", directory / "data")
    folder = experiment.run(config(directory), "python docs/examples/image_folder.py")
    table = report.text(report.load(folder))
    print(f"{table}\n\nReport: {report_page.write(folder)}")
    return table


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()))
