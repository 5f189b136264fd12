import json
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec

import vcreg_jax as vc
from configs import digits
from train.__main__ import main
from train.config import Candidate, Experiment
from train.data import pipeline
from train.experiments import experiment
from train.interop import convert
from train.interop.export import read_program
from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.mlp import MLP
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import TIMM, ViT

DIM = 4


def _features(shape=(16, 3, 3, DIM), dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.normal(3.0, 2.0, shape).astype(dtype), rng.normal(size=shape).astype(dtype)


def _step(scope, x, incoming):
    """Output, gradient of the features, and running mean after one training step of VCReg without means."""
    reg = vc.VCReg(alpha=2.0, beta=3.0, scope=scope)

    def loss(x):
        layer = vc.MeanRemoval(DIM, scope=scope)
        y = reg(layer(x, train=True))
        return (y * incoming).sum(), (y, layer.mean[...])

    gradient, (y, running) = jax.grad(loss, has_aux=True)(x)
    return y, gradient, running


@pytest.mark.parametrize("scope", ["global", 4])
def test_a_training_step_equals_pytorch_and_the_written_out_penalty(scope):
    x, incoming = _features()
    with jax.enable_x64():
        y, gradient, running = _step(scope, jnp.asarray(x), jnp.asarray(incoming))
    parts = 1 if scope == "global" else scope
    outputs, gradients, means = [], [], []
    for rows, grad in zip(np.split(x, parts), np.split(incoming, parts), strict=True):
        norm = torch.nn.BatchNorm2d(DIM, affine=False, dtype=torch.float64)  # its running mean alone is used
        there = torch.from_numpy(rows).requires_grad_()
        norm(there.detach().permute(0, 3, 1, 2))
        centred = there - there.mean(dim=(0, 1, 2))
        flat = centred.reshape(-1, DIM)
        covariance = flat.T @ flat / (len(flat) - 1)
        std = torch.sqrt(covariance.diagonal() + 1e-4)
        off = covariance - torch.diag(covariance.diagonal())
        penalty = 2.0 / DIM * torch.relu(1 - std).sum() + 3.0 / (DIM * (DIM - 1)) * off.square().sum()
        ((centred * torch.from_numpy(grad)).sum() + penalty / parts).backward()
        assert there.grad is not None and norm.running_mean is not None
        outputs.append(centred.detach().numpy())
        gradients.append(there.grad.numpy())
        means.append(norm.running_mean.numpy())
    chex.assert_trees_all_close(np.asarray(y), np.concatenate(outputs), rtol=0, atol=1e-12)
    chex.assert_trees_all_close(np.asarray(gradient), np.concatenate(gradients), rtol=0, atol=1e-10)
    chex.assert_trees_all_close(np.asarray(running), np.mean(means, axis=0), rtol=1e-6)


def test_without_a_penalty_the_gradient_has_no_mean_as_numpy_says():
    x, incoming = _features((8, DIM))
    with jax.enable_x64():
        gradient = jax.grad(lambda x: (vc.MeanRemoval(DIM)(x, train=True) * incoming).sum())(jnp.asarray(x))
    chex.assert_trees_all_close(np.asarray(gradient), incoming - incoming.mean(axis=0), rtol=0, atol=1e-14)


def test_inference_takes_the_running_mean_off_and_changes_nothing():
    x, _ = _features((8, DIM), np.float32)
    layer = vc.MeanRemoval(DIM)
    for _ in range(3):
        layer(jnp.asarray(x), train=True)
    running = np.asarray(layer.mean[...])
    np.testing.assert_allclose(running, (1 - 0.9**3) * x.mean(axis=0), rtol=1e-5)
    one = layer(jnp.asarray(x[:1]), train=False)  # a batch of one image has its own mean, which is not used
    np.testing.assert_allclose(one, x[:1] - running, rtol=1e-6)
    np.testing.assert_array_equal(layer.mean[...], running)


def test_bfloat16_features_keep_their_dtype_and_lose_a_mean_far_above_their_spread():
    x = (1000 + np.arange(8.0)[:, None] * 8).astype(jnp.bfloat16) * np.ones((1, DIM), jnp.bfloat16)
    y = vc.MeanRemoval(DIM)(jnp.asarray(x), train=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float32), x.astype(np.float32) - x.astype(np.float32).mean(0), rtol=1e-2
    )


@pytest.mark.parametrize("scope", ["global", 8])
@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_eight_devices_do_what_one_does(scope, how):
    x, incoming = _features()
    with jax.enable_x64():
        alone = _step(scope, jnp.asarray(x), jnp.asarray(incoming))
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = jax.NamedSharding(mesh, PartitionSpec("data"))
        placed = jax.device_put((x, incoming), rows)
        if how == "jit":
            together = jax.jit(lambda x, incoming: _step(scope, x, incoming))(*placed)
        else:
            specs = (PartitionSpec("data"), PartitionSpec("data"))
            out = (*specs, PartitionSpec())
            step = jax.shard_map(lambda x, g: _step(scope, x, g), mesh=mesh, in_specs=specs, out_specs=out)
            together = jax.jit(step)(*placed)
    chex.assert_trees_all_close(jax.device_get(together), jax.device_get(alone), rtol=0, atol=1e-12)


MODELS = {
    "resnet8": (partial(CifarResNet, 1), 32, {"block": 3, "downsample": 2, "features": 1}),
    "resnet": (partial(ResNet, (1, 1, 1, 1), False), 32, {"block": 4, "downsample": 3, "features": 1}),
    "convnext": (partial(ConvNeXt, (1, 1), (32, 64), 2), 8, {"block": 2, "downsample": 1, "features": 1}),
    "vit": (partial(ViT, 48, 2, 3, 8, TIMM, image_size=32), 32, {"block": 2, "features": 1}),
    "mlp": (partial(MLP, 4, 16), 32, {"block": 3, "features": 1}),
}


def _create(name, sites):
    return MODELS[name][0](num_classes=3, sites=sites, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_removes_means_where_its_sites_say(name):
    """Each site's features have mean zero in training: seen by a regularizer that records what it gets."""
    seen = []

    def record(h):
        seen.append(h)
        return h

    _, side, sites = MODELS[name]
    images = jax.random.normal(jax.random.key(1), (4, side, side, 3)) + 2.0
    before = nnx.to_pure_dict(nnx.state(_create(name, vc.Sites()), nnx.Param))
    for site, count in sites.items():
        seen.clear()
        model = _create(name, vc.Sites(**{site: vc.RemoveMean(record)}))
        chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), before)
        model(images, train=True)
        assert len(seen) == count
        for h in seen:
            np.testing.assert_allclose(h.mean(axis=tuple(range(h.ndim - 1))), 0, atol=1e-4)
        layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, vc.MeanRemoval)]
        assert len(layers) == count and all(float(jnp.abs(layer.mean[...]).max()) > 0 for layer in layers)


@pytest.mark.parametrize("name", MODELS)
def test_the_sites_are_found_again_in_the_weights_alone(name):
    for site in MODELS[name][2]:
        model = _create(name, vc.Sites(**{site: vc.RemoveMean(vc.VCReg())}))
        paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.BatchStat))]
        assert convert._sites(paths) == vc.Sites(**{site: vc.RemoveMean()})


def test_weights_for_pytorch_are_refused():
    model = _create("resnet8", vc.Sites(block=vc.RemoveMean()))
    with pytest.raises(ValueError, match=r"no layer that removes means, this one has 3"):
        vc.torch_weights.export(model)


def test_called_without_a_model_it_says_what_to_use():
    with pytest.raises(ValueError, match=r"vc\.MeanRemoval\(dim\)"):
        vc.RemoveMean(vc.VCReg())(jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"Write VCReg\(\.\.\.\)"):
        vc.RemoveMean(vc.VCReg)


def test_map_changes_regularizers_and_keeps_the_removal():
    sites = vc.Sites(block=vc.RemoveMean(vc.VCReg()), features=vc.DeCov())
    assert sites.regularizers == {"block": vc.VCReg(), "downsample": vc.identity, "features": vc.DeCov()}
    assert sites.map(lambda name, reg: vc.identity) == vc.Sites(block=vc.RemoveMean())


def test_candidates_of_one_arm_share_a_network():
    with pytest.raises(ValueError, match="must remove means at the same sites"):
        Experiment(
            name="x",
            title="x",
            train=digits.get_config().train,
            arms={
                "none": (Candidate(), Candidate()),
                "VCReg": (Candidate(vc.Sites(block=vc.VCReg())), Candidate(vc.Sites(block=vc.RemoveMean(vc.VCReg())))),
            },
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps of the digits' network, which removes means before VCReg."""
    whole, folder = digits.get_config(), tmp_path_factory.mktemp("runs")
    schedule = replace(whole.train.optimizer.schedule, warmup_steps=1)
    train = replace(
        whole.train,
        data=replace(whole.train.data, directory=str(folder / "data")),
        optimizer=replace(whole.train.optimizer, schedule=schedule),
        steps=3,
        batch_size=64,
        diagnose_every=2,
    )
    arms = {"removed": vc.Sites(block=vc.RemoveMean(vc.VCReg(alpha=2.56, beta=40.0)))}
    config = replace(whole, train=train, arms=arms, targets={}, seeds=(0,), runs_directory=str(folder))
    return experiment.run(config, "python -m train run configs/digits.py")


def _test_images():
    """scikit-learn's digits that are kept for the test, normalized as the config says."""
    data = pipeline.load(replace(digits.get_config().train.data, in_memory=True), "test")
    rows = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in data.eval_batches(128)]
    images, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    return images, labels


def test_the_weights_of_a_run_give_its_test_accuracy_and_the_running_means_count(run):
    _, model = convert.load_checkpoint(run / "removed" / "seed0" / "checkpoints")
    images, labels = _test_images()
    x = jnp.asarray((images / 255 - 0.3060) / 0.3764, jnp.float32)
    logits = np.asarray(model(x)[0])
    reported = json.loads((run / "removed" / "seed0" / "result.json").read_text())["accuracy"]
    assert np.mean(logits.argmax(axis=1) == labels) == pytest.approx(reported, abs=1e-6)
    nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.BatchStat)))
    assert np.abs(np.asarray(model(x)[0]) - logits).max() > 1e-3


def test_the_exported_program_is_that_network_and_pytorchs_names_are_refused(run, capsys):
    seed = run / "removed" / "seed0"
    main(["export", str(seed), "--to", "stablehlo"])
    images, _ = _test_images()
    _, model = convert.load_checkpoint(seed / "checkpoints")
    x = jnp.asarray((images[:8] / 255 - 0.3060) / 0.3764, jnp.float32)
    logits, _ = read_program(seed / "export").call(images[:8].astype(np.uint8))
    np.testing.assert_allclose(logits, model(x)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(SystemExit):
        main(["export", str(seed), "--to", "safetensors"])
    assert "no layer that removes means" in capsys.readouterr().err


def test_the_run_can_be_analysed_and_its_layers_were_diagnosed(run):
    main(["analyse", str(run), "--critic-steps", "2"])
    (found,) = json.loads((run / "analysis.json").read_text())["analyses"]
    assert len(found["layers"]) == 5
    lines = [json.loads(line) for line in (run / "removed" / "seed0" / "metrics.jsonl").read_text().splitlines()]
    (layers,) = [line for line in lines if line.get("split") == "layers" and line["step"] == 2] or [None]
    assert layers is not None and layers["block 1/gradient_ratio"] > 0
