"""Weights of any kind as a function from images to features: PyTorch's files, runs, and exported programs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8

from train.augment import EvalTransformConfig
from train.files import json_files
from train.interop import convert, export
from train.trainer.step import Normalize, make_predict, split
from vcreg_jax.models.resnet_cifar import CifarResNet

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's and most of timm's weights want


@dataclass(frozen=True)
class Network:
    """A trained network, and how images come to it."""

    name: str
    evaluation: EvalTransformConfig
    channels: int
    features: Callable[[UInt8[ArrayLike, "b h w c"]], Float[Array, "b d"]]


@dataclass(frozen=True)
class Images:
    """How images come to a network whose file does not say so; None: as its authors have it."""

    size: int | None = None  # pixels of the square in the centre
    resize: int | None = None  # of the shorter side before that
    mean: tuple[float, ...] | None = None  # of each channel, of pixels in 0..1
    std: tuple[float, ...] | None = None


def load(source: Path, model: str | None = None, images: Images = Images()) -> Network:
    """The network in `source`.

    Args:
      source: a `.pth`, `.th`, `.pt` or `.safetensors` file with the names of torchvision, timm or the CIFAR ResNets; a
        run's folder of one arm and seed; or an exported StableHLO program, or its folder.
      model: one of `vc.models.names()`, where the file does not say which it is.
      images: what is to be different. A program has all of it inside.

    Raises:
      ValueError: for anything else, and for statistics of another number of channels than the network takes.
    """
    folder = source if source.is_dir() else source.parent
    if source.suffix == ".stablehlo" or (source.is_dir() and (source / export.PROGRAM).is_file()):
        return _program(folder, images)
    if source.is_dir():
        run = export.load(source.parent if source.name == "checkpoints" else source)
        height, _, _ = export.image_shape(run, images.size)
        data = run.config["train"]["data"]
        known = Images(height, data["evaluation"]["resize"] or height, tuple(data["mean"]), tuple(data["std"]))
        return _network(run.name, run.model, known, images)
    name, network = convert.load_file(source, model)
    square = 32 if isinstance(network, CifarResNet) else getattr(network, "image_size", None) or 224
    resize = square if square <= 64 else round(square * 256 / 224)
    return _network(name, network, Images(square, resize, *IMAGENET), images)


def _network(name: str, model: Any, known: Images, wanted: Images) -> Network:
    size, resize = wanted.size or known.size, wanted.resize or (wanted.size or known.resize)
    mean, std = wanted.mean or known.mean, wanted.std or known.std
    stem = model.patch_conv if hasattr(model, "patch_conv") else model.stem_conv
    channels = stem.kernel.shape[2]
    assert mean is not None and std is not None
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} takes {channels} channels: give --{what} as many values, or one for all.")
    graphdef, params, batch_stats = split(model)
    predict = make_predict(graphdef, Normalize(mean, std))

    def features(images: UInt8[ArrayLike, "b h w c"]) -> Float[Array, "b d"]:
        return predict(params, batch_stats, jnp.asarray(images))[1]

    return Network(name, EvalTransformConfig(resize, size), channels, features)


def _program(folder: Path, images: Images) -> Network:
    if images != Images():
        raise ValueError(f"The program in {folder} has size and statistics of its images inside: leave them out.")
    program = export.read_program(folder)
    _, height, width, channels = json_files.read(folder / export.PROGRAM)["image_shape"]
    if height != width:
        raise ValueError(f"The program in {folder} takes {height}x{width} images: only squares are cut here.")
    call = jax.jit(program.call)
    return Network(
        folder.name, EvalTransformConfig(height, height), channels, lambda pixels: jnp.asarray(call(pixels)[1])
    )
