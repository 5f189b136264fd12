"""How much of bare Pillow's speed the input pipeline keeps: images per second of one core's time, side by side."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from train.augment import AugmentConfig, EvalTransformConfig, train_transform
from train.config import DataConfig
from train.data import builders, pipeline
from train.data.sources import in_memory

WIDTH, HEIGHT, SIZE = 500, 375, 224  # ImageNet's usual photograph, and what a network sees of it
AUGMENT = AugmentConfig(crop_size=SIZE, flip=0.5)


@dataclass(frozen=True)
class Throughput:
    """Images per second of CPU time, a value for each round; both ways took turns."""

    bare: tuple[float, ...]  # decode, random crop, flip: a loop and Pillow, nothing else
    through_pipeline: tuple[float, ...]  # the same from prepared records to batches

    @property
    def ratio(self) -> float:
        """The pipeline's speed over bare Pillow's, median over the rounds."""
        return statistics.median(ours / bare for ours, bare in zip(self.through_pipeline, self.bare, strict=True))

    def __str__(self) -> str:
        ratios = sorted(ours / bare for ours, bare in zip(self.through_pipeline, self.bare, strict=True))
        bare, ours = statistics.median(self.bare), statistics.median(self.through_pipeline)
        return (
            f"{WIDTH}x{HEIGHT} JPEG to {SIZE}x{SIZE}, images/s per core: bare Pillow {bare:,.0f}, "
            f"pipeline {ours:,.0f}; ratio {self.ratio:.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}, n = {len(ratios)})"
        )


def measure(rounds: int = 5, batches: int = 4, batch_size: int = 64) -> Throughput:
    """Both ways over the same photographs, `batches` at a time."""
    encoded, crop_and_flip = photographs(256), train_transform(AUGMENT)
    rng = np.random.default_rng(0)

    def bare() -> None:
        for index in rng.integers(len(encoded), size=batch_size).tolist():
            crop_and_flip(Image.open(io.BytesIO(encoded[index])).convert("RGB"), rng)

    with tempfile.TemporaryDirectory() as folder:
        contents = in_memory({"label": ["none"]}, {"train": (encoded, {"label": np.zeros(len(encoded), int)})})
        builders.write("photographs", contents, "", Path(folder), "raise")
        # No reader threads: they would work ahead while the other way is timed.
        square = EvalTransformConfig(SIZE, SIZE)
        config = DataConfig("photographs", "label", (0.0,), (1.0,), AUGMENT, square, directory=folder, reader_threads=0)
        stream = pipeline.load(config, "train").train_batches(batch_size, 0, 0)
        speeds = [
            tuple(batches * batch_size / _cpu_seconds(way, batches) for way in (bare, lambda: next(stream)))
            for _ in range(rounds + 1)
        ][1:]  # the first warms up
    return Throughput(tuple(bare for bare, _ in speeds), tuple(ours for _, ours in speeds))


def photographs(count: int) -> list[bytes]:
    """Windows of two real photographs, which scikit-learn carries, as JPEG files."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    originals, files = load_sample_images().images, []
    for index in range(count):
        image = originals[index % len(originals)]
        top, left = rng.integers(image.shape[0] - HEIGHT), rng.integers(image.shape[1] - WIDTH)
        buffer = io.BytesIO()
        Image.fromarray(image[top : top + HEIGHT, left : left + WIDTH]).save(buffer, format="jpeg", quality=90)
        files.append(buffer.getvalue())
    return files


def _cpu_seconds(way: Callable[[], object], times: int) -> float:
    """Of all threads together, so that a busy machine and threads beside this one do not matter."""
    start = time.process_time()
    for _ in range(times):
        way()
    return time.process_time() - start
