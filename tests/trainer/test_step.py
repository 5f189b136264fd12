from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

import vcreg_jax as vc
from tests.tiny_network import TWO_STAGES
from train.augment import MixConfig, mix
from train.config import EMAConfig
from train.trainer import mesh as meshes
from train.trainer.objective import Classification
from train.trainer.step import Normalize, eval_sums, initial_state, make_predict, make_train_step, split, weights_to_use

pytestmark = pytest.mark.usefixtures("smallest")

NORMALIZE = Normalize(mean=(0.3,), std=(0.4,))
REG = vc.VCReg(alpha=2.0, beta=5.0)


def _model(sites, **options):
    model = vc.models.create(TWO_STAGES, num_classes=2, in_channels=1, sites=sites, rngs=nnx.Rngs(0), **options)
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "layer_scale"):  # at its initial 1e-6 the blocks would hardly matter
            module.layer_scale[...] = jnp.ones_like(module.layer_scale[...])
    return model


def _batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (size, 8, 8, 1), np.uint8), "label": rng.integers(0, 2, size, np.int32)}


def _mesh(data=1, fsdp=1):
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


def _one_step(sites, batch, seed=3, steps=1, **options):
    """State and metrics after steps of plain SGD at rate 1, and the state before."""
    mesh = _mesh()
    optimizer = optax.sgd(0.1)
    graphdef, params, stats = split(_model(sites, **options))
    state = initial_state(params, stats, optimizer)
    before = jax.device_get(state)
    state = jax.device_put(state, meshes.state_shardings(state, mesh))
    train_step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(0.1), mesh)
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = train_step(state, meshes.to_devices(batch, mesh), seed)
    return before, jax.device_get(state), jax.device_get(metrics), train_step


class Recording:
    """The identity, keeping what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, h):
        self.shown.append(h)
        return h


def test_a_step_descends_the_task_loss_plus_the_written_out_penalty_of_every_block():
    batch = _batch()
    before, after, metrics, _ = _one_step(vc.Sites(block=REG, features=REG), batch)

    def objective(params):
        recording = Recording()
        graphdef, _, stats = split(_model(vc.Sites(block=recording, features=recording)))
        logits, _ = nnx.merge(graphdef, params, stats)(jnp.asarray((batch["image"] / 255.0 - 0.3) / 0.4, jnp.float32))
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 2), 0.1)
        task = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
        return task + sum(REG.penalty(h) for h in recording.shown), (task, len(recording.shown))

    gradient, (task, sites) = jax.jit(jax.grad(objective, has_aux=True))(before["params"])
    assert sites == 3
    moved = jax.tree.map(lambda a, b: (a - b) / 0.1, before["params"], after["params"])
    for ours, expected in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        # Differences of float32 parameters, over the rate: 6e-8 / 0.1 at best.
        np.testing.assert_allclose(ours, expected, atol=2e-6 + 3e-5 * float(jnp.abs(expected).max()))
    np.testing.assert_allclose(metrics["loss"], task, rtol=1e-5)  # the task's alone


def test_the_step_is_compiled_once_and_donates_its_state():
    _, _, _, train_step = _one_step(vc.Sites(), _batch(8), steps=1, seed=11)
    compiled = train_step._cache_size()
    _one_step(vc.Sites(), _batch(8, seed=1), steps=3, seed=12)
    assert train_step._cache_size() == compiled

    mesh = _mesh()
    optimizer = optax.sgd(0.1)
    graphdef, params, stats = split(_model(vc.Sites()))
    state = initial_state(params, stats, optimizer)
    state = jax.device_put(state, meshes.state_shardings(state, mesh))
    step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(0.1), mesh)
    step(state, meshes.to_devices(_batch(8), mesh), 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_randomness_is_a_function_of_seed_and_step():
    mesh, optimizer = _mesh(), optax.sgd(0.0)  # the same parameters at every step
    graphdef, params, stats = split(_model(vc.Sites(), stochastic_depth=0.5))
    step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(), mesh)

    def losses(seed):
        state, found = initial_state(*jax.tree.map(jnp.copy, (params, stats)), optimizer), []
        for _ in range(3):
            state, metrics = step(state, meshes.to_devices(_batch(), mesh), seed)
            found.append(float(metrics["loss"]))
        return found

    first = losses(0)
    assert len(set(first)) == 3  # another mask at every step
    assert losses(0) == first
    assert set(losses(1)).isdisjoint(first)


def test_prediction_normalises_bytes_as_torchvision_does():
    graphdef, params, stats = split(_model(vc.Sites()))
    pixels = _batch(4)["image"]
    logits, features = make_predict(graphdef, NORMALIZE)(params, stats, jnp.asarray(pixels))
    expected = _model(vc.Sites())(jnp.asarray((pixels.astype(np.float64) / 255 - 0.3) / 0.4, jnp.float32))
    np.testing.assert_allclose(logits, expected[0], atol=1e-5)
    np.testing.assert_allclose(features, expected[1], atol=1e-5)


def test_evaluation_sums_leave_padding_out():
    logits = jnp.asarray([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    sums = eval_sums(logits, jnp.asarray([0, 0, 1]), jnp.asarray([True, True, False]))
    expected_loss = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))
    np.testing.assert_allclose([sums["loss"], sums["accuracy"], sums["count"]], [expected_loss, 1.0, 2.0], rtol=1e-6)


def test_the_step_keeps_the_moving_average_of_parameters_and_batch_statistics():
    """By hand from the weights of a run without one; updates at steps 0 (a copy), 2, 3 (an epoch's first) and 5."""
    model = vc.models.create("resnet20", num_classes=2, in_channels=1, rngs=nnx.Rngs(0))
    graphdef, params, stats = split(model)
    optimizer, mesh, history = optax.sgd(0.1), _mesh(), []
    config = EMAConfig(0.9, steps_per_epoch=3, every_steps=2)
    for ema_config in (None, config):
        state = jax.jit(partial(initial_state, params, stats, optimizer, ema_config is not None))()
        step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(), mesh, ema_config)
        for seed in range(6):
            state, _ = step(state, meshes.to_devices(_batch(8, seed), mesh), 0)
            if ema_config is None:
                history.append(jax.device_get(weights_to_use(state)))
    average = history[0]
    for index in (2, 3, 5):
        average = jax.tree.map(lambda a, w: 0.9 * np.float64(a) + 0.1 * w, average, history[index])
    assert len(jax.tree.leaves(average)) == len(jax.tree.leaves((params, stats)))
    for ours, expected in zip(jax.tree.leaves(weights_to_use(state)), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)  # the programs with and without round apart


@pytest.mark.parametrize("devices", [1, 8])
def test_images_are_erased_and_mixed_by_groups_before_the_network_sees_them(devices):
    """The loss by hand, from the step's own draw: mixing is linear, and the first of a group takes from its last."""
    batch = _batch(16) | {"erase_box": np.tile(np.array([[1, 2, 3, 4]], np.int32), (16, 1))}
    config = MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0, group_size=2)
    graphdef, params, stats = split(_model(vc.Sites()))
    optimizer, mesh = optax.sgd(0.0), _mesh(devices)
    state = jax.device_put(initial_state(params, stats, optimizer), jax.devices()[0])
    state = jax.device_put(state, meshes.state_shardings(state, mesh))
    step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(0.1, config), mesh)
    with jax.set_mesh(mesh):
        _, metrics = step(state, meshes.to_devices(batch, mesh), 5)

    images = (batch["image"] / np.float64(255) - 0.3) / 0.4
    images[:, 1:4, 2:6] = 0
    _, key = jax.random.split(jax.random.fold_in(jax.random.key(5), 0))
    drawn = mix.draw(config, key, 8, 8, 8)
    assert 0 < float(np.mean(drawn.label)) < 1
    partner = [index + 1 if index % 2 == 0 else index - 1 for index in range(16)]
    kept = np.repeat(drawn.pixels, 2, axis=0)[..., None]
    seen = kept * images + (1 - kept) * images[partner]
    log_p = np.asarray(jax.nn.log_softmax(_model(vc.Sites())(jnp.asarray(seen, jnp.float32))[0]), np.float64)
    share = np.repeat(drawn.label, 2)[:, None]
    shares = share * np.eye(2)[batch["label"]] + (1 - share) * np.eye(2)[batch["label"][partner]]
    np.testing.assert_allclose(metrics["loss"], -((0.9 * shares + 0.05) * log_p).sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (log_p.argmax(1) == shares.argmax(1)).mean(), atol=1e-6)


def test_regularizers_with_directions_have_those_of_the_step():
    """Against the written-out penalty with the directions that the step before this one has counted to."""
    batch, reg = _batch(), vc.SIGReg(weight=1.0, slices=3)
    first, one, _, _ = _one_step(vc.Sites(features=reg), batch, steps=1)
    _, two, _, _ = _one_step(vc.Sites(features=reg), batch, steps=2)

    def objective(params, step, weight):
        graphdef, _, stats = split(_model(vc.Sites()))
        logits, features = nnx.merge(graphdef, params, stats)(jnp.asarray((batch["image"] / 255.0 - 0.3) / 0.4))
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 2), 0.1)
        task = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
        return task + weight * reg.at_step(step).penalty(features)

    for before, after, step in ((first, one, 0), (one, two, 1)):
        expected, with_others, without = (
            jax.grad(objective)(before["params"], s, w) for s, w in ((step, 1.0), (1 - step, 1.0), (step, 0.0))
        )
        moved = jax.tree.map(lambda a, b: (a - b) / 0.1, before["params"], after["params"])
        norm = optax.tree.norm(optax.tree.sub(expected, without))
        assert optax.tree.norm(optax.tree.sub(moved, expected)) < 1e-3 * norm
        assert optax.tree.norm(optax.tree.sub(moved, with_others)) > 0.1 * norm
