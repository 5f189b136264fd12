"""A self-supervised run goes out as its backbone, and the channels are the network's, whatever the mean has."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import vcreg_jax as vc
from configs import digits
from tests.tiny_network import SMALLEST
from train.__main__ import main
from train.config import CheckpointConfig, Experiment, JointEmbedding
from train.interop import export
from train.run.checkpoints import Checkpoints
from train.run.folder import as_json, claim
from train.trainer.model import Architecture
from train.trainer.step import split
from vcreg_jax.losses import NTXent

pytestmark = pytest.mark.usefixtures("smallest")

COLOUR = (8, 8, 3)


def _run(directory, joint_embedding):
    """As a run on colour images with one mean for all channels leaves it."""
    train = digits.get_config().train
    train = replace(train, model=replace(train.model, name=SMALLEST))
    data = replace(train.data, name="synthetic", mean=(0.5,), std=(0.5,), synthetic_size=8, channels=None)
    train = replace(train, data=replace(data, in_memory=False), joint_embedding=joint_embedding)
    with claim(directory / "net", Experiment("net", "net", train, {"VCReg": vc.Sites()})):
        pass
    folder = directory / "net" / "VCReg" / "seed0"
    model = Architecture(train.model, 5, COLOUR, vc.Sites(), joint_embedding).create(0)
    _, params, batch_stats = split(model)
    folder.mkdir(parents=True)
    with Checkpoints(folder / "checkpoints", CheckpointConfig(), {"train": as_json(train)}) as checkpoints:
        checkpoints.save(7, {"params": params, "batch_stats": batch_stats, "step": jnp.asarray(7)}, {})
    return folder, model


def test_a_self_supervised_run_is_exported_as_its_backbone(tmp_path, capsys):
    folder, model = _run(tmp_path, JointEmbedding(NTXent(), (16, 8)))
    images = np.random.default_rng(0).integers(0, 256, (2, *COLOUR), dtype=np.uint8)
    _, features = model.backbone(jnp.asarray((images / 255 - 0.5) / 0.5, jnp.float32))
    for arguments in (["export", str(folder), "--to", "safetensors"], ["export", str(folder), "--to", "stablehlo"]):
        main([*arguments, "--image-size", "8"])
    assert "smallest, no classes" in capsys.readouterr().out
    logits, exported = export.read_program(folder / "export").call(images)
    assert logits is None
    np.testing.assert_allclose(exported, features, rtol=1e-5, atol=1e-5)
    card = (folder / "export" / "README.md").read_text()
    assert "# smallest, the backbone of a self-supervised run" in card
    (creation,) = [line for line in card.splitlines() if line.startswith("model = ")]
    assert creation == 'model = vc.models.create("smallest", features_only=True, in_channels=3, rngs=nnx.Rngs(0))'
    loaded = vc.models.create("smallest", features_only=True, in_channels=3, rngs=nnx.Rngs(1))
    vc.torch_weights.load(loaded, load_file(folder / "export" / "model.safetensors"))
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(each)) for each in (loaded, model.backbone)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    main(["convert", str(folder / "export" / "model.safetensors"), str(tmp_path / "again.safetensors")])
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(folder / "export/model.safetensors").keys()


def test_a_file_without_a_classifier_that_does_not_say_so_is_still_refused(tmp_path):
    folder, _ = _run(tmp_path, JointEmbedding(NTXent(), (16, 8)))
    main(["convert", str(folder / "checkpoints"), str(tmp_path / "a.safetensors")])
    main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "a.pth")])
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--model", "smallest"])


def test_colour_images_with_one_mean_have_three_channels(tmp_path):
    folder, _ = _run(tmp_path, None)
    run = export.load(folder)
    assert export.image_shape(run, 8) == COLOUR
    assert "in_channels=3" in _card(run, folder)


def _card(run, folder):
    export.export(folder, "safetensors")
    return export.card(run, folder / "export")
