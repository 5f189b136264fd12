"""`python -m train export`: a trained network as a file that others read, with a card that says what it is.

Weights go the way of `train.interop.convert`; this adds the program itself, as StableHLO, and the card.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from train.files import json_files, whole_files
from train.interop.convert import convert, load_checkpoint
from train.run.folder import versions, write_json
from train.trainer.step import Normalize, split

FORMATS = ("safetensors", "torchvision", "stablehlo")
FILES = {"safetensors": "model.safetensors", "torchvision": "model.pth", "stablehlo": "model.stablehlo"}
PROGRAM = "program.json"  # what the file of the StableHLO program does not say of itself
PLATFORMS = ("cpu", "cuda", "tpu")
TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "convnext_tiny", "convnext_small", "convnext_base"),
    *("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"),
)

_HOW_TO_LOAD = {
    "safetensors": """import vcreg_jax as vc
from flax import nnx
from safetensors.numpy import load_file

model = vc.models.create("{name}", {options}, rngs=nnx.Rngs(0))
vc.torch_weights.load(model, load_file("model.safetensors"))""",
    "torchvision": """import torch, torchvision

model = torchvision.models.{name}(num_classes={classes})
model.load_state_dict(torch.load("model.pth", weights_only=True), strict=True)""",
    "stablehlo": """import pathlib
import jax

# Written by jax {jax}. An older jax may refuse it, as may one that is newer by more than half a year.
program = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
logits, features = program.call(images)  # uint8, of shape {shape}""",
}


@dataclass(frozen=True)
class Run:
    """A finished run of one arm and one seed: its network, and what its folder says about it."""

    folder: Path
    name: str  # of the model
    model: Any
    config: dict[str, Any]  # of the experiment, from JSON
    about: dict[str, Any]  # experiment.json; empty while other seeds are still going on


def export(folder: Path, to: str, target: Path | None = None, image_size: int | None = None) -> str:
    """Writes one file and the card, README.md, beside it; returns a line that says what was written.

    Args:
      folder: of a run's arm and seed, such as `runs/digits/VCReg/seed0`.
      to: "safetensors" and "torchvision" write the weights under PyTorch's names; "stablehlo" the program from uint8
        images `(b, height, width, channels)`, any b, to `(logits, features)`, weights and normalization in it, in
        float32, for CPU, CUDA and TPU.
      target: the folder to write to; by default `export` in the run's.
      image_size: side of the images that the program takes; by default that of the run's evaluation.

    Raises:
      ValueError: for a folder that is no run of one seed, and for "torchvision" with a model that it does not have.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"The images' side must be at least 1, got {image_size}.")
    run = load(folder)
    if to == "torchvision" and run.name not in TORCHVISION:
        raise ValueError(
            f"torchvision has no {run.name}. Use --to safetensors, whose names are timm's or the authors'."
        )
    if to == "torchvision" and run.model.head is None:
        raise ValueError(
            f"{folder} is self-supervised: it has no classifier, as torchvision wants. Use --to safetensors."
        )
    target = target or folder / "export"
    shape = image_shape(run, image_size) if to == "stablehlo" else None
    target.mkdir(parents=True, exist_ok=True)
    path = target / FILES[to]
    if to == "stablehlo":
        assert shape is not None
        whole_files.write(path, program(run, shape))
        about = {"image_shape": ["b", *shape], "dtype": "uint8", "platforms": PLATFORMS, "jax": jax.__version__}
        write_json(target / PROGRAM, about)
        read_program(target)
        said = f"{path}: {run.name} from uint8 images of {shape} on {', '.join(PLATFORMS)}."
    else:
        said = convert(folder / "checkpoints", path)
    whole_files.write(target / "README.md", card(run, target))
    return said


def load(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
      ValueError: for another folder, naming the runs in it.
    """
    if not (folder / "checkpoints").is_dir():
        inside = ", ".join(sorted(str(path.parent) for path in folder.glob("*/seed*/checkpoints")))
        raise ValueError(f"{folder} is no run of one arm and seed." + (f" It holds {inside}." if inside else ""))
    name, model = load_checkpoint(folder / "checkpoints")
    top = folder.absolute().parents[1]
    about = top / "experiment.json"
    config = json_files.read(top / "config.json")
    return Run(folder, name, model, config, json_files.read(about) if about.is_file() else {})


def image_shape(run: Run, size: int | None = None) -> tuple[int, int, int]:
    """Height, width and channels of the images that the network was evaluated on.

    Raises:
      ValueError: when neither the config nor the data set, if it is there, tells.
    """
    data = run.config["train"]["data"]
    channels = _channels(run.model)
    known = size or getattr(run.model, "image_size", None) or data["evaluation"]["crop"]
    if known:
        return known, known, channels
    from train.data import pipeline
    from train.interop import saved_config

    try:
        config = saved_config.load(run.folder.absolute().parents[1])
        return pipeline.load(config.train.data, "test").eval_shape
    except (ValueError, OSError) as error:
        raise ValueError(
            f"How large are the images? Give --image-size: the run's data set does not say ({error})"
        ) from error


def program(run: Run, shape: tuple[int, int, int]) -> bytes:
    """The serialized `jax.export` of images to (logits, features)."""
    data = run.config["train"]["data"]
    normalize = Normalize(tuple(data["mean"]), tuple(data["std"]))
    graphdef, params, batch_stats = split(run.model)

    def predict(images: jax.Array) -> Any:
        return nnx.merge(graphdef, params, batch_stats)(normalize(images))

    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("Writing StableHLO needs flatbuffers: pip install -e '.[train]'.")
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    return bytes(jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize())


def read_program(folder: Path) -> jax.export.Exported:
    """Reads the program that `export` wrote to `folder`; its `call` takes images to (logits, features).

    Raises:
      ValueError: where the present jax cannot run it, with the version that wrote it.
    """
    about, path = json_files.read(folder / PROGRAM), folder / FILES["stablehlo"]
    try:
        program = jax.export.deserialize(bytearray(path.read_bytes()))
        version = program.calling_convention_version  # jax itself does not look at it
        oldest = jax.export.minimum_supported_calling_convention_version
        newest = jax.export.maximum_supported_calling_convention_version
        if not oldest <= version <= newest:
            raise ValueError(f"its calling convention is {version}, not {oldest} to {newest}")
        one = jax.ShapeDtypeStruct((1, *about["image_shape"][1:]), about["dtype"])
        jax.jit(program.call).lower(one)  # only this reads the StableHLO
    except Exception as error:  # by what is new, gone or damaged: struct.error, JaxRuntimeError, KeyError, ...
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"jax {jax.__version__} cannot run {path}, written by jax {about.get('jax', 'of an unknown version')} "
            f"({reason}). Export it again with this jax, or run it with that one."
        ) from error
    return program


def card(run: Run, target: Path) -> str:
    """The README.md that tells what the files in `target` are, how they came about, and how to load them."""
    train, arm = run.config["train"], run.folder.absolute().parent.name
    data, result = train["data"], run.folder / "result.json"
    classes, channels = 0 if run.model.head is None else run.model.head.kernel.shape[-1], _channels(run.model)
    about = json_files.read(found) if (found := target / PROGRAM).is_file() else {}
    options = [f"num_classes={classes}" if classes else "features_only=True", f"in_channels={channels}"]
    if side := train["model"].get("image_size"):
        options.append(f"image_size={side}")
    words = {"name": run.name, "classes": classes, "options": ", ".join(options)}
    words |= {"shape": tuple(about.get("image_shape", ())), "jax": about.get("jax", "of an unknown version")}
    loading = [
        f"## {file}\n\n```python\n{_HOW_TO_LOAD[to].format(**words)}\n```"
        for to, file in FILES.items()
        if (target / file).is_file()
    ]
    made = {"run": f"{run.config['name']}, {arm}, {run.folder.name}", "steps": train["steps"]}
    made |= {key: run.about[key] for key in ("command", "commit", "hardware") if key in run.about}
    made |= run.about.get("versions", {})
    normalization = f"(pixels / 255 - {data['mean']}) / {data['std']}, in the StableHLO program already"
    about_data = {"name": data["name"], "label": data["label"], "training split": data["train_split"]}
    return "\n\n".join(
        [
            "---\nlibrary_name: vcreg_jax\ntags: [jax, flax, vcreg]\n---",
            f"# {run.name}, {f'{classes} classes' if classes else 'the backbone of a self-supervised run'}",
            "## Metrics\n\n" + _table(_metrics(json_files.read(result) if result.is_file() else {})),
            "## Data\n\n" + _table(about_data | {"normalization": normalization}),
            *loading,
            "## How it was made\n\n"
            + _table(made | {f"exported with {key}": value for key, value in versions().items()}),
            f"Regularizers of this arm:\n\n```json\n{json.dumps(run.config['arms'][arm], indent=2)}\n```",
            f"Training:\n\n```json\n{json.dumps(train, indent=2)}\n```\n",
        ]
    )


def _channels(model: Any) -> int:
    """Of the images that the network takes; mean and std may be one number for all."""
    stem = model.patch_conv if hasattr(model, "patch_conv") else model.stem_conv
    return stem.kernel.shape[2]


def _table(values: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())])


def _metrics(result: dict[str, Any]) -> dict[str, str]:
    """Test accuracy, and each target's."""
    found = {"accuracy": result["accuracy"]} if "accuracy" in result else {}
    found |= {f"{name}, probe accuracy": own["accuracy"] for name, own in result.get("targets", {}).items()}
    return {name: f"{value:.5g}" for name, value in found.items()}
