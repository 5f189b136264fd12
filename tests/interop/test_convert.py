import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vcreg_jax as vc
from tests.torch_models import CifarNet
from train.__main__ import main
from train.config import CheckpointConfig
from train.interop.convert import convert
from train.interop.crosscheck.torch_networks import perturbed
from train.run.checkpoints import Checkpoints
from train.run.folder import write_json
from train.trainer.step import split
from vcreg_jax import torch_weights

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared/weights/resnet32-d509ac18.th"


def net(n=3, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    module = perturbed(CifarNet(n, **options))
    module.bn1.num_batches_tracked += 7
    return module


@pytest.fixture
def saved(tmp_path) -> Path:
    """A file as akamaster writes them."""
    state = {f"module.{name}": value for name, value in net().state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 12.5}, tmp_path / "resnet20.th")
    return tmp_path / "resnet20.th"


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name


def test_there_and_back_again_every_bit_is_the_same_and_pytorch_takes_it(saved, tmp_path, capsys):
    main(["convert", str(saved), str(tmp_path / "a.safetensors"), "--model", "resnet20", "--num-classes", "10"])
    main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth")])  # it says itself what it is
    assert "resnet20, 10 classes, 269,722 parameters" in capsys.readouterr().out
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert_same(load_file(tmp_path / "a.safetensors"), net().state_dict())
    assert_same(back, net().state_dict())
    CifarNet(3).load_state_dict(back, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.pth", "resnet20.th"]


def test_a_safetensors_file_says_what_it_is(saved, tmp_path):
    convert(saved, tmp_path / "a.safetensors", "resnet20")
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        about = file.metadata()
    assert about == {
        "vcreg_jax.version": vc.__version__,
        "vcreg_jax.model": "resnet20",
        "vcreg_jax.num_classes": "10",
        "vcreg_jax.source": "resnet20.th",
    }


def test_channels_classes_and_kind_of_shortcut_are_the_files(tmp_path):
    theirs = net(option="B", num_classes=7, in_channels=1)
    torch.save(theirs.state_dict(), tmp_path / "b.pt")
    convert(tmp_path / "b.pt", tmp_path / "b.safetensors", "resnet20", 7)
    assert_same(load_file(tmp_path / "b.safetensors"), theirs.state_dict())


def test_the_names_and_the_image_size_of_a_vit_are_kept(tmp_path):
    name = "vit_tiny_patch16_224"
    state = timm.create_model(name, img_size=48, num_classes=3).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", name)
    assert_same(torch.load(tmp_path / "b.pth", weights_only=True), state)


def test_bfloat16_is_widened_to_float32(tmp_path):
    state = {key: value.bfloat16() if value.is_floating_point() else value for key, value in net().state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "resnet20")
    widened = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    assert_same(torch.load(tmp_path / "b.pth", weights_only=True), widened)


def test_a_runs_newest_checkpoint_is_a_source_too_or_the_one_that_was_tested(tmp_path):
    model = vc.models.create("resnet20", num_classes=4, rngs=nnx.Rngs(0))
    _, params, batch_stats = split(model)
    state = {"step": jnp.int32(3), "params": params, "batch_stats": batch_stats, "opt_state": {"count": jnp.ones(2)}}
    folder = tmp_path / "run" / "arm" / "seed0" / "checkpoints"
    with Checkpoints(folder, CheckpointConfig(), {"train": {"model": {"name": "resnet20"}}}) as checkpoints:
        checkpoints.save(2, jax.tree.map(jnp.zeros_like, state), {})
        checkpoints.save(3, state, {})
    convert(folder, tmp_path / "a.pth")
    exported = {key: torch.from_numpy(value) for key, value in torch_weights.export(model).items()}
    assert_same(torch.load(tmp_path / "a.pth", weights_only=True), exported)
    write_json(folder.parent / "result.json", {"step": 2})  # that was tested
    convert(folder, tmp_path / "d.safetensors")
    assert all(not value.any() for value in load_file(tmp_path / "d.safetensors").values())
    convert(folder / "2", tmp_path / "c.safetensors")  # one step of them
    assert all(not value.any() for value in load_file(tmp_path / "c.safetensors").values())
    with pytest.raises(ValueError, match="another model than resnet32"):
        convert(folder, tmp_path / "b.pth", "resnet32")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        convert(tmp_path, tmp_path / "b.pth", "resnet32")


def test_of_a_run_with_a_moving_average_the_average_is_taken(tmp_path):
    model = vc.models.create("resnet20", num_classes=4, rngs=nnx.Rngs(0))
    _, params, batch_stats = split(model)
    last = jax.tree.map(jnp.zeros_like, {"params": params, "batch_stats": batch_stats})
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), {}) as checkpoints:
        checkpoints.save(1, last | {"ema": {"params": params, "batch_stats": batch_stats}}, {})
    convert(tmp_path / "checkpoints", tmp_path / "a.pth", "resnet20")
    exported = {key: torch.from_numpy(value) for key, value in torch_weights.export(model).items()}
    assert_same(torch.load(tmp_path / "a.pth", weights_only=True), exported)


class Malicious:
    """Runs a command wherever it is unpickled without care."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_object_is_refused_and_not_executed(tmp_path, zipped, capsys):
    mark, file = tmp_path / "executed", tmp_path / "bad.pth"
    torch.save({"state_dict": net().state_dict(), "args": Malicious(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(file), str(tmp_path / "a.safetensors"), "--model", "resnet20"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a pickled object" in error and "nothing in it was executed" in error
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert mark.exists()


def bad(kind: str, folder: Path) -> list[str]:
    """The arguments of a conversion that cannot be."""
    good, out = folder / "resnet20.th", str(folder / "out.safetensors")
    named = ["--model", "resnet20"]
    content = good.read_bytes()
    (folder / "half.pth").write_bytes(content[: len(content) // 2])
    (folder / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "weights.npz").write_bytes(content)
    torch.save(torch.zeros(3), folder / "tensor.pt")
    return {
        "missing": ["nothing.pth", out, *named],
        "truncated": [str(folder / "half.pth"), out, *named],
        "truncated safetensors": [str(folder / "half.safetensors"), out, *named],
        "empty": [str(folder / "empty.pt"), out, *named],
        "no state_dict": [str(folder / "tensor.pt"), out, *named],
        "other architecture": [str(good), out, "--model", "vit_b_16"],
        "other depth": [str(good), out, "--model", "resnet32"],
        "classes": [str(good), out, *named, "--num-classes", "100"],
        "suffix in": [str(folder / "weights.npz"), out, *named],
        "suffix out": [str(good), str(folder / "out.onnx"), *named],
        "folder": [str(good), str(folder / "nowhere" / "a.pth"), *named],
        "no name": [str(good), out],
        "unknown name": [str(good), out, "--model", "resnet21"],
        "option": [str(good), out, "--modle", "resnet20"],
        "nothing": [],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "There is no file nothing.pth."),
        ("truncated", "half.pth is truncated, damaged or not a file of PyTorch."),
        ("truncated safetensors", "half.safetensors is truncated, damaged or not a safetensors file"),
        ("empty", "empty.pt is truncated"),
        ("no state_dict", "tensor.pt holds no state_dict"),
        ("other architecture", "These are not the weights of a ViT but of a CifarResNet. ("),
        ("other depth", "has it the depth and the width that they were trained with?"),
        ("classes", "resnet20.th has 10 classes, not 100."),
        ("suffix in", "weights.npz must end in .pth, .th, .pt, .safetensors"),
        ("suffix out", "out.onnx must end in .pth, .th, .pt, .safetensors."),
        ("folder", "There is no folder"),
        ("no name", "resnet20.th does not say which model it is. Give --model, of resnet18, "),
        ("unknown name", "Unknown model 'resnet21'. Did you mean"),
        ("option", "Unrecognized options: --modle"),
        ("nothing", "Missing from python -m train convert: IN"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(saved, tmp_path, capsys, kind, message):
    arguments = bad(kind, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["convert", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 1000
    assert message in error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("missing", "suffix"), [("torch", ".pth"), ("safetensors", ".safetensors")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, missing, suffix):
    (tmp_path / f"a{suffix}").touch()
    program = f"""
import sys

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(name, name={missing!r})

sys.meta_path.insert(0, Missing())
from train.__main__ import main
main(sys.argv[1:])
"""
    arguments = ["convert", str(tmp_path / f"a{suffix}"), str(tmp_path / "b.pth"), "--model", "resnet20"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"error: Converting this file needs {missing}: pip install -e '.[torch]'.\n"


def test_a_checkout_that_was_never_installed_converts(saved, tmp_path):
    """All other packages, without what installing ours leaves beside them; -S: no others than those on the path."""
    (tmp_path / "packages").mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "vcreg_jax" not in package.name:
            (tmp_path / "packages" / package.name).symlink_to(package)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'packages'}"}
    command = [sys.executable, "-S", "-m", "train", "convert", str(saved), str(tmp_path / "a.safetensors")]
    subprocess.run([*command, "--model", "resnet20"], check=True, cwd=tmp_path, env=environment)
    assert_same(load_file(tmp_path / "a.safetensors"), net().state_dict())


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="needs ../shared beside a development checkout")
def test_the_published_resnet32_is_converted_bit_for_bit(tmp_path):
    said = convert(PUBLISHED, tmp_path / "a.safetensors", "resnet32")
    assert "resnet32, 10 classes, 464,154 parameters" in said
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    state = torch.load(PUBLISHED, map_location="cpu", weights_only=True)["state_dict"]
    converted = torch.load(tmp_path / "b.pth", weights_only=True)
    for name, value in state.items():
        np.testing.assert_array_equal(converted[name.removeprefix("module.")].numpy(), value.numpy(), strict=True)
    CifarNet(5).load_state_dict(converted, strict=True)
