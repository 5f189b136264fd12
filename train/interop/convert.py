"""`python -m train convert`: weights between PyTorch's files, safetensors and our checkpoints; no pickle is loaded.

Whatever is read goes through our model of that name: every tensor must have its place and its shape there, and every
place its tensor, before anything is written.
"""

import errno
import importlib
import importlib.util
import math
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import vcreg_jax as vc
from train.files import whole_files
from train.run.checkpoint_format import read_arrays, step_to_use
from vcreg_jax import torch_weights
from vcreg_jax.models.mlp import MLP
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.torch_names import NAMINGS, from_torch
from vcreg_jax.models.vit import ViT

TORCH_SUFFIXES = (".pth", ".th", ".pt")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
_OURS = "vcreg_jax."  # how our entries in a file's metadata begin

Shape = tuple[int, ...]


def convert(source: Path, target: Path, name: str | None = None, num_classes: int | None = None) -> str:
    """Writes the weights in `source` to `target`; returns one line that says what was written.

    The number of input channels, the image size and a CIFAR ResNet's kind of shortcut are the file's. Floating-point
    tensors are written as float32, our models' parameters.

    Args:
      source: a `.pth`, `.th`, `.pt` or `.safetensors` file, the `checkpoints` folder of a run, of which the newest is
        taken, or one of the steps in it.
      target: a file with one of these suffixes. Tensors keep the names they have in `source`; those of a checkpoint
        get the names of the library that has the model, torchvision's where both do.
      name: which model it is, one of `vc.models.names()`; by default what `source` says of itself, as our
        `.safetensors` files and our runs do.
      num_classes: refuse a classifier of another width; by default any is right.

    Raises:
      ValueError: for anything that is not the weights of that model, all of them and nothing else.
    """
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target} must end in {', '.join(SUFFIXES)}.")
    if not target.parent.is_dir():
        raise ValueError(f"There is no folder {target.parent}.")
    name, model, exported = _model_of(source, name)
    classes = 0 if model.head is None else model.head.kernel.shape[-1]
    if num_classes not in (None, classes):
        raise ValueError(f"{source} has {classes} classes, not {num_classes}. Leave --num-classes out to take them.")
    about = {"model": name, "num_classes": classes, "source": source.name, "version": vc.__version__}
    _write(target, exported, {_OURS + key: str(value) for key, value in about.items()})
    count = sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return f"{target}: {name}, {classes or 'no'} classes, {count:,} parameters, {len(exported)} tensors."


def load(source: Path, name: str | None = None) -> tuple[str, Any]:
    """The name of the model whose weights `source` holds, and that model with them; arguments as for `convert`.

    Raises:
      ValueError: as `convert`.
    """
    return _model_of(source, name)[:2]


def _model_of(source: Path, name: str | None) -> tuple[str, Any, dict[str, np.ndarray]]:
    """The name, the model, and its weights as they will be written."""
    tensors, said = _read(source)
    _check_finite(source, tensors)
    name = name or said.get("model")
    if name is None:
        raise ValueError(f"{source} does not say which model it is. Give --model, of {', '.join(vc.models.names())}.")
    headless = said.get("num_classes") == "0"  # as we write the backbone of a self-supervised run
    if source.is_dir():
        return name, *_through_checkpoint(name, tensors)
    return name, *_through_file(source, name, tensors, headless)


def load_checkpoint(directory: Path) -> tuple[str, Any]:
    """The name of a run's model, and that model with the newest weights in its folder `checkpoints`.

    Raises:
      ValueError: for another folder.
    """
    tensors, said = _read(directory)
    _check_finite(directory, tensors)
    if "model" not in said:
        raise ValueError(f"{directory} is not in the folder of a run, whose config.json says which model it is.")
    return said["model"], _fill(said["model"], tensors)


def read_file(source: Path) -> dict[str, Any]:
    """The tensors in a PyTorch or safetensors file, finite all; raises as `convert`."""
    tensors, _ = _read(source)
    _check_finite(source, tensors)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def load_file(source: Path, name: str | None = None) -> tuple[str, Any]:
    """The name of the model whose weights are in a PyTorch or safetensors file, and the model with them.

    Raises:
      ValueError: as `convert`.
    """
    tensors, said = _read(source)
    _check_finite(source, tensors)
    name = name or said.get("model")
    if name is None:
        raise ValueError(f"{source} does not say which model it is. Give --model, of {', '.join(vc.models.names())}.")
    model, _ = _through_file(source, name, tensors, said.get("num_classes") == "0")
    return name, model


def _check_finite(source: Path, tensors: Mapping[str, Any]) -> None:
    """Raises a ValueError for the first tensor that has numbers which are none in float32."""
    for name, value in tensors.items():
        with np.errstate(over="ignore"):
            numbers = value.detach().float().numpy() if hasattr(value, "detach") else np.asarray(value, np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"{source}: {name} must hold finite numbers, got NaN, infinity or more than float32 holds."
            )


def _through_file(
    source: Path, name: str, tensors: dict[str, Any], headless: bool
) -> tuple[Any, dict[str, np.ndarray]]:
    """The model with the file's weights, and those as they will be written."""
    largest = _abstract(name)
    namings = next(namings for kind, namings in NAMINGS.items() if isinstance(largest, kind))
    tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(largest, nnx.Param))]
    naming = max(namings, key=lambda naming: len(tensors.keys() & {namings[naming](path) for path in paths}))
    shapes = {}
    for path in paths:
        if (key := namings[naming](path)) in tensors:
            there = np.broadcast_to(np.float32(0), tuple(tensors[key].shape))
            shapes[_text(path)] = from_torch(path, there).shape if there.ndim else ()
    model = _abstract(name, shapes, headless)
    try:
        torch_weights.load(model, tensors)
    except ValueError as error:
        first, *rest = str(error).splitlines()
        counts = [line.rstrip(":") for line in rest if not line.startswith(" ")]
        raise ValueError(f"{source}: {first} ({'; '.join(counts)}; --traceback lists them)") from error
    counters = {key: np.asarray(value) for key, value in tensors.items() if key.endswith("num_batches_tracked")}
    return model, torch_weights.export(model, naming) | counters


def _through_checkpoint(name: str, tensors: dict[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """The same for parameters and statistics by their paths in our model."""
    model = _fill(name, tensors)
    of_timm = getattr(model, "timm_conv_mlp", False) or "_patch" in name
    return model, torch_weights.export(model, "timm" if of_timm else None)


def _fill(name: str, tensors: dict[str, Any]) -> Any:
    headless = not any(path.startswith("head/") for path in tensors)
    model = _abstract(name, {path: value.shape for path, value in tensors.items()}, headless)
    variables = dict(nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    wanted = {_text(path): variable.shape for path, variable in variables.items()}
    if wanted != {path: value.shape for path, value in tensors.items()}:
        raise ValueError(f"The checkpoint is of another model than {name}.")
    filled = [(path, variable.replace(tensors[_text(path)])) for path, variable in variables.items()]
    nnx.update(model, nnx.from_flat_state(filled))
    return model


def _abstract(name: str, shapes: Mapping[str, Shape] | None = None, headless: bool = False) -> Any:
    """The model without values: with the options that `shapes` (in our layout) tell, or with all it can have."""
    model: Any = nnx.eval_shape(lambda: vc.models.create(name, rngs=nnx.Rngs(0)))
    options: dict[str, Any] = {"features_only": True} if headless else {}
    if isinstance(model, CifarResNet):
        options["shortcut"] = "B" if shapes is None or any("/shortcut/" in path for path in shapes) else "A"
    shapes = shapes or {}
    if bias := shapes.get("head/bias"):
        options["num_classes"] = bias[0]
    stem = "patch_conv" if isinstance(model, ViT | MLP) else "stem_conv"
    if len(kernel := shapes.get(f"{stem}/kernel", ())) == 4:
        options["in_channels"] = kernel[2]
        if isinstance(model, MLP):
            options["image_size"] = kernel[0]
    if isinstance(model, ViT) and len(positions := shapes.get("positions", ())) == 3:
        patch = model.patch_conv.kernel.shape[0]
        options["image_size"] = patch * max(math.isqrt(positions[1] - 1), 1)
    options["sites"] = _sites(shapes)
    return nnx.eval_shape(lambda: vc.models.create(name, rngs=nnx.Rngs(0), **options))


def _sites(paths: Iterable[str]) -> vc.Sites:
    """Where the network removes means: of all that `Sites` say, this alone can be seen in the weights."""
    sites = {}
    for path in paths:
        module, found, _ = path.rpartition("site/mean_removal/")
        if found:
            downsamples = "shortcut/" in module or module.startswith("downsamples/")
            sites["downsample" if downsamples else "block" if module else "features"] = vc.RemoveMean()
    return vc.Sites(**sites)


def _read(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Names to tensors, and what the source says of itself."""
    if source.is_dir():
        return _read_checkpoint(source)
    if not source.is_file():
        raise ValueError(f"There is no file {source}.")
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    if source.suffix in TORCH_SUFFIXES:
        return _read_torch(source), {}
    raise ValueError(f"{source} must end in {', '.join(SUFFIXES)}, or be the checkpoints folder of a run.")


def _read_torch(source: Path) -> dict[str, Any]:
    torch = _import("torch")
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as packed:
                if sum(each.file_size for each in packed.infolist()) > 2 * source.stat().st_size:
                    raise ValueError("more is packed in it than torch.save packs")
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols, before it is refused
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        what = f"a pickled object ({found[1]})" if found else "something pickled"
        raise ValueError(
            f"{source} holds {what}, not weights alone: refused, and nothing in it was executed. "
            "Where it comes from, save the model's state_dict()."
        ) from error
    except Exception as error:  # by where the file breaks off: OSError, RuntimeError, EOFError, KeyError, ...
        raise ValueError(f"{source} is truncated, damaged or not a file of PyTorch.") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{source} holds no state_dict, which has a tensor for each name.")
    _check_dense(source, content.values(), torch)
    return {str(key): value for key, value in content.items()}


def _check_dense(source: Path, tensors: Iterable[Any], torch: Any) -> None:
    """Raises a ValueError for tensors of which the file has not every number: sparse, on no device, one for many."""
    plain = all(
        each.layout == torch.strided and each.device.type == "cpu" and not each.is_quantized for each in tensors
    )
    if not plain or sum(each.numel() * each.element_size() for each in tensors) > 4 * source.stat().st_size:
        raise ValueError(f"{source} claims more numbers than it holds, or holds other than dense tensors: refused.")


def _read_safetensors(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    safetensors = _import("safetensors")
    framework = "pt" if importlib.util.find_spec("torch") else "np"  # NumPy has no bfloat16
    try:
        with safetensors.safe_open(source, framework=framework) as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    except safetensors.SafetensorError as error:
        raise ValueError(f"{source} is truncated, damaged or not a safetensors file: {error}.") from error
    return tensors, {key.removeprefix(_OURS): value for key, value in about.items() if key.startswith(_OURS)}


def _read_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters and statistics, by their paths in our model."""
    step = step_to_use(directory)
    one = directory if (directory / "about").is_dir() else None
    if one is None and step is None:
        raise ValueError(f"{directory} holds no checkpoint. Give the folder `checkpoints` of a run, or a file.")
    state, about = read_arrays(one or directory / str(step))
    average = "ema/" if any(path.startswith("ema/") for path in state) else ""
    groups = (f"{average}params/", f"{average}batch_stats/")
    tensors = {
        path.removeprefix(average).split("/", 1)[1]: value for path, value in state.items() if path.startswith(groups)
    }
    backbone = {
        path.removeprefix("backbone/"): value for path, value in tensors.items() if path.startswith("backbone/")
    }
    tensors = backbone or tensors  # the projector is what self-supervised learning throws away
    run = about["run"]
    return tensors, {"model": run["train"]["model"]["name"]} if run else {}


def _write(target: Path, tensors: dict[str, np.ndarray], about: dict[str, str]) -> None:
    library = _import("safetensors.numpy" if target.suffix == ".safetensors" else "torch")
    with whole_files.replace(target) as partial:
        try:
            if target.suffix == ".safetensors":
                library.save_file(tensors, partial, about)
            else:
                library.save({key: library.from_numpy(value) for key, value in tensors.items()}, partial)
        except Exception as error:  # of a full disk: OSError, SafetensorError, or a RuntimeError of "unexpected pos"
            full = shutil.disk_usage(target.parent).free < sum(each.nbytes for each in tensors.values())
            raise OSError(errno.ENOSPC if full else None, os.strerror(errno.ENOSPC) if full else str(error)) from error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0]
        raise ValueError(f"Converting this file needs {package}: pip install -e '.[torch]'.") from None


def _text(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
