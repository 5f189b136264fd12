"""`vc.doctor` of a trained network: its weights from wherever they are, images of a prepared data set through it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

import vcreg_jax as vc
from train.config import DataConfig, EvalTransformConfig
from train.data import pipeline
from train.experiments.analyse import Remember
from train.interop import convert, saved_config
from train.trainer.step import Normalize

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's and timm's weights expect
BATCH_SIZE = 64


@dataclass(frozen=True)
class Patient:
    """A network and the images that it is examined on."""

    model_name: str
    model: Any
    data: DataConfig
    split: str
    images: int  # at most; chosen by `seed`
    seed: int = 0


def patient(
    weights: Path, data: str, label: str | None, model: str | None, split: str, images: int, directory: Path
) -> Patient:
    """The network whose weights these are, with the images' normalization: its run's, or ImageNet's.

    Args:
      weights: a `.pth`, `.th`, `.pt` or `.safetensors` file, or the folder of a run's seed or of its checkpoints.
      data: the name of a prepared data set.
      label: which of its labels; default: the run's.
      model: the network's name, where the weights do not say it.
      split: of the data set.
      images: how many of its images at most.
      directory: where prepared data sets lie.

    Raises:
      ValueError: for weights, data or labels that are none, and for images that the network cannot take.
    """
    weights = weights / "checkpoints" if (weights / "checkpoints").is_dir() else weights
    name, network = convert.load(weights, model)
    of_run = saved_config.load(weights.parents[2]).train.data if weights.is_dir() else None
    if of_run is not None:
        config = replace(of_run, name=data, label=label or of_run.label, directory=str(directory), in_memory=False)
    else:
        channels = network.stem_conv.kernel.shape[2] if hasattr(network, "stem_conv") else 3
        if channels != 3:
            raise ValueError(
                f"{weights} is of a network of {channels} channels; only a run says how to normalize them."
            )
        if label is None:
            raise ValueError("--label says which label of the data set is the class, such as label.")
        config = DataConfig(data, label, *IMAGENET, evaluation=EvalTransformConfig(), directory=str(directory))
    return Patient(name, network, config, split, images)


def examine(who: Patient) -> tuple[vc.Checkup, dict[str, Any]]:
    """The check-up of every block's output, and what was looked at."""
    split = pipeline.load(who.data, who.split)
    remember = Remember()
    vc.attach(who.model, remember, where=lambda path, module: type(module).__name__ == "Block")
    normalize = Normalize(who.data.mean, who.data.std)

    @jax.jit
    def outputs(pixels: Array) -> list[Array]:
        remember.seen.clear()
        _, features = who.model(normalize(pixels))
        seen = [*remember.seen, features]
        remember.seen.clear()
        return [h.mean(axis=tuple(range(1, h.ndim - 1))) if h.ndim > 2 else h for h in seen]

    chosen = np.random.default_rng(who.seed).permutation(len(split))[: who.images]
    rows, labels = [], []
    for batch, keep in _batches(split, chosen):
        rows.append([h[keep] for h in jax.device_get(outputs(batch["image"]))])
        labels.append(batch["label"][keep])
    shown = [np.concatenate(part) for part in zip(*rows, strict=True)]
    order = np.random.default_rng(who.seed).permutation(len(chosen))
    names = [*(f"block {i + 1}" for i in range(len(shown) - 1)), "features"]
    found = vc.doctor(
        {name: h[order] for name, h in zip(names, shown, strict=True)},
        np.concatenate(labels)[order],
        split.num_classes,
    )
    about = {"model": who.model_name, "data": who.data.name, "label": who.data.label, "split": who.split}
    return found, about | {"images": len(chosen), "classes": split.num_classes}


def _batches(split: pipeline.Split, chosen: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches in which there are chosen images, and which of their rows those are."""
    is_chosen, position = np.isin(np.arange(len(split)), chosen), 0
    for batch in split.eval_batches(BATCH_SIZE):
        keep = np.zeros(len(batch["mask"]), bool)
        own = is_chosen[position : position + BATCH_SIZE]
        keep[: len(own)] = own
        position += BATCH_SIZE
        if keep.any():
            yield batch, keep
