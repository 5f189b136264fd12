"""What `export` writes, read by those it is for: torchvision, safetensors and jax.export; torchvision is the oracle."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from flax import nnx

import vcreg_jax as vc
from configs import digits
from train.__main__ import main
from train.config import CheckpointConfig, Experiment
from train.files import json_files
from train.interop.crosscheck.torch_networks import perturbed
from train.interop.export import read_program
from train.run.checkpoints import Checkpoints
from train.run.folder import as_json, claim, write_json
from train.trainer.step import split

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def theirs() -> torch.nn.Module:
    torch.manual_seed(0)
    return perturbed(torchvision.models.resnet18(num_classes=5)).eval()


def run_folder(directory, name: str, **options):
    """As a finished run leaves it, the weights being PyTorch's."""
    train = digits.get_config().train
    data = replace(train.data, name="synthetic", mean=MEAN, std=STD, synthetic_size=24, channels=None, in_memory=False)
    train = replace(train, data=data, model=replace(train.model, name=name, **options))
    with claim(directory / "net", Experiment("net", "net", train, {"VCReg": vc.Sites(block=vc.VCReg(0.5))})):
        pass
    folder = directory / "net" / "VCReg" / "seed0"
    folder.mkdir(parents=True)
    model = nnx.eval_shape(lambda: vc.models.create(name, num_classes=5, rngs=nnx.Rngs(0), **options))
    if name == "resnet18":
        vc.torch_weights.load(model, theirs().state_dict())
    else:
        nnx.update(model, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), nnx.state(model)))
    _, params, batch_stats = split(model)
    with Checkpoints(folder / "checkpoints", CheckpointConfig(), {"train": as_json(train)}) as checkpoints:
        checkpoints.save(7, {"params": params, "batch_stats": batch_stats, "step": jnp.asarray(7)}, {})
    write_json(folder / "result.json", {"accuracy": 0.912345678, "targets": {}})
    write_json(directory / "net" / "experiment.json", {"commit": "0123abc", "command": "python -m train run net.py"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("runs"), "resnet18")


def test_torchvision_takes_every_tensor(folder, capsys):
    main(["export", str(folder), "--to", "torchvision"])
    assert "resnet18, 5 classes" in capsys.readouterr().out
    state = torch.load(folder / "export" / "model.pth", weights_only=True)
    torchvision.models.resnet18(num_classes=5).load_state_dict(state, strict=True)
    for key, value in theirs().state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(state[key], value), key


@pytest.mark.usefixtures("one_torch_thread")
def test_the_program_has_torchvisions_logits_for_pixels_of_any_number_of_images(folder, tmp_path):
    main(["export", str(folder), "--to", "stablehlo", "--out", str(tmp_path)])
    program = read_program(tmp_path)
    assert program.platforms == ("cpu", "cuda", "tpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    logits, features = program.call(pixels)
    normalized = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        expected = theirs()(torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert features.shape == (3, 512)
    card = (tmp_path / "README.md").read_text()
    assert "('b', 24, 24, 3)" in card and "model.pth" not in card


@pytest.mark.parametrize(("name", "options"), [("convnext_digits", {}), ("mlp6_512", {"image_size": 24})])
def test_the_card_says_what_it_is_and_its_code_runs(name, options, tmp_path, monkeypatch):
    folder = run_folder(tmp_path, name, **options)
    main(["export", str(folder), "--to", "safetensors"])
    card = (folder / "export" / "README.md").read_text()
    about = ("0123abc", "python -m train run net.py", "synthetic", '"alpha": 0.5', f"jax | {jax.__version__} |")
    for said in (f"{name}, 5 classes", "accuracy | 0.91235 |", *about):
        assert said in card
    monkeypatch.chdir(folder / "export")
    names: dict = {}
    exec(card.split("## model.safetensors\n\n```python\n")[1].split("```")[0], names)
    np.testing.assert_array_equal(names["model"].head.kernel[...], 0.5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = run_folder(tmp_path_factory.mktemp("exported"), "convnext_digits")
    main(["export", str(folder), "--to", "stablehlo", "--image-size", "8"])
    return folder / "export"


def of_another_calling_convention(content: bytes) -> bytes:
    return bytes(replace(jax.export.deserialize(bytearray(content)), calling_convention_version=8).serialize())


def of_another_bytecode(content: bytes) -> bytes:
    start = content.index(b"ML\xefR") + 4  # MLIR's mark, then its version: 2 n + 1
    return content[:start] + b"\x7f" + content[start + 1 :]


def truncated(content: bytes) -> bytes:
    return content[:300]


REFUSED = [
    (of_another_calling_convention, "its calling convention is 8, not 9 to"),
    (of_another_bytecode, "Failed to deserialize StableHLO"),
    (truncated, "requires a buffer of"),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSED)
def test_a_program_that_this_jax_refuses_is_one_line_with_the_version_that_wrote_it(exported, tmp_path, damage, reason):
    about = json.loads((exported / "program.json").read_text())
    assert (
        about["jax"] == jax.__version__ and f"Written by jax {jax.__version__}." in (exported / "README.md").read_text()
    )
    json_files.write(
        tmp_path / "program.json", {key: about[key] for key in about if key != "sha256"} | {"jax": "0.1.2"}
    )
    (tmp_path / "model.stablehlo").write_bytes(damage((exported / "model.stablehlo").read_bytes()))
    with pytest.raises(ValueError, match=f"jax {jax.__version__} cannot run .*, written by jax 0.1.2 ") as refused:
        read_program(tmp_path)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx"], "invalid choice 'onnx'"),
        ([], "Missing from python -m train export: --to"),
    ],
)
def test_what_cannot_be_written_is_said(folder, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(folder), *arguments])
    assert message in capsys.readouterr().err


def test_another_folder_and_another_model_are_said(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(folder.parents[1]), "--to", "safetensors"])
    assert f"no run of one arm and seed. It holds {folder}." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(run_folder(tmp_path, "resnet20")), "--to", "torchvision"])
    assert "torchvision has no resnet20. Use --to safetensors" in capsys.readouterr().err
