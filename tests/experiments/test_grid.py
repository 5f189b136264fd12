from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import digits
from tests.tiny_network import SMALLEST
from train.augment import AugmentConfig, move
from train.data import pipeline
from train.experiments import grid
from train.trainer.model import Architecture, create_state, structure
from train.trainer.objective import objective
from train.trainer.optim import make_optimizer
from train.trainer.step import Normalize, make_predict, make_train_step
from vcreg_jax import SIGReg, Sites, VCReg, WLDReg

pytestmark = pytest.mark.usefixtures("smallest")

SETTINGS = [
    grid.Setting(4e-3, 0.0, 0.0, seed=0),
    grid.Setting(4e-3, 1.28, 0.16, seed=0),
    grid.Setting(8e-3, 1.28, 0.16, seed=0),
    grid.Setting(8e-3, 0.64, 0.16, seed=1),
]
STEPS = 5


def recipe(directory, **changes):
    train = digits.get_config().train
    optimizer = replace(train.optimizer, schedule=replace(train.optimizer.schedule, warmup_steps=2))
    augment = AugmentConfig(max_shift=1, flip=0.5)
    data = replace(train.data, directory=str(directory / "data"), augment=augment)
    train = replace(train, data=data, model=replace(train.model, name=SMALLEST, stochastic_depth=0.3))
    return replace(train, optimizer=optimizer, steps=STEPS, batch_size=16, eval_every=STEPS, **changes)


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]).reshape(devices, 1), ("data", "fsdp"))


def trained(config, settings, devices=1, vmapped=None):
    """States and metrics of all steps, and the accuracy on validation images."""
    data, mesh = pipeline.load(config.data, "train"), mesh_of(devices)
    plain = grid.without_regularizers(config, data)
    program = grid.make_program(config, plain, Sites(block=VCReg()), mesh, vmapped)
    values, images = grid.as_arrays(settings), grid.on_devices(data, mesh)
    draws = grid.draw(data, config.batch_size, settings, range(STEPS))
    states, metrics = program.train(program.initial(values), values, draws, images)
    held_out = grid.evaluation_batches(pipeline.load(config.data, "validation"), 64)
    sums = program.evaluate(states, values, held_out)
    return jax.device_get((states, metrics, sums))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    config = recipe(tmp_path_factory.mktemp("together"))
    # On each of two devices two after two.
    return config, *trained(config, SETTINGS * 2, devices=2, vmapped=2)


def alone(config, setting):
    """The state after the ordinary training step on the ordinary batches."""
    data, mesh = pipeline.load(config.data, "train"), mesh_of(1)
    schedule = replace(config.optimizer.schedule, peak_learning_rate=setting.learning_rate)
    sites = Sites(block=VCReg(setting.alpha, setting.beta)) if setting.alpha else Sites()
    architecture = Architecture(config.model, data.num_classes, data.image_shape, sites)
    graphdef, norms = structure(architecture)
    optimizer = make_optimizer(replace(config.optimizer, schedule=schedule), config.steps, norms)
    normalize = Normalize(config.data.mean, config.data.std)
    step = make_train_step(graphdef, optimizer, normalize, objective(config), mesh)
    state = create_state(architecture, optimizer, mesh, setting.seed)
    for _, batch in zip(range(STEPS), data.train_batches(16, setting.seed, 0), strict=False):
        state, _ = step(state, batch, setting.seed)
    return jax.device_get(state)


@pytest.mark.parametrize("index", [0, 3])
def test_every_setting_is_trained_as_in_a_run_of_its_own(together, index):
    config, states, _, _ = together
    state = alone(config, SETTINGS[index])
    for part in ("params", "batch_stats"):
        ours = jax.tree.map(lambda leaf: leaf[index], states[part])
        for (path, mine), theirs in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(state[part]), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-5, err_msg=str(path))


def test_accuracies_are_those_of_each_network_on_every_image_once(together):
    config, states, _, sums = together
    data = pipeline.load(config.data, "validation")
    images, labels = data.memory
    graphdef, _ = structure(grid.without_regularizers(config, data))
    predict = make_predict(graphdef, Normalize(config.data.mean, config.data.std))
    for index in (0, 3):
        own = (jax.tree.map(lambda leaf, k=index: leaf[k], states[part]) for part in ("params", "batch_stats"))
        correct = (np.asarray(predict(*own, images)[0]).argmax(axis=1) == labels).sum()
        assert (sums["accuracy"][index], sums["count"][index]) == (correct, len(labels))


def test_settings_that_differ_end_as_different_networks(together):
    _, states, _, _ = together
    ends = np.stack([np.ravel(leaf) for leaf in states["params"]["head"]["kernel"]])
    np.testing.assert_array_equal(ends[:4], ends[4:])
    assert all(np.abs(one - other).max() > 1e-4 for k, one in enumerate(ends[:4]) for other in ends[:k])


def test_images_are_moved_on_the_device_as_on_the_host(tmp_path):
    config = recipe(tmp_path)
    data = pipeline.load(config.data, "train")
    draws = grid.draw(data, 16, SETTINGS[-2:], range(3, 5))
    for setting, step in ((0, 0), (1, 1)):
        own = jax.tree.map(lambda leaf, k=setting, t=step: leaf[k, t], draws)
        batch = grid.batch_of(grid.on_devices(data, mesh_of(1)), own, data.image_shape)
        positions, moves = data.drawn(16, SETTINGS[-2:][setting].seed, 3 + step)
        np.testing.assert_array_equal(batch["image"], move(data.memory[0][positions], moves, 1))
        np.testing.assert_array_equal(batch["label"], data.labels()[positions])


def test_every_epoch_of_every_seed_shows_each_image_once_in_an_order_of_its_own(tmp_path):
    data = pipeline.load(recipe(tmp_path).data, "train")
    steps = len(data) // 16 + 1
    positions = np.asarray(grid.draw(data, 16, SETTINGS, range(steps)).positions).reshape(4, -1)[:, : len(data)]
    for own in positions:
        np.testing.assert_array_equal(np.sort(own), np.arange(len(data)))
    np.testing.assert_array_equal(positions[0], positions[2])  # of the same seed
    assert (positions[0] != positions[3]).mean() > 0.9


def test_a_strength_is_a_weight_of_vcreg_and_a_factor_of_the_others():
    sites = Sites(block=VCReg(eps=1e-3), downsample=SIGReg(2.0, slices=3), features=WLDReg(0.5, 0.25))
    expected = Sites(block=VCReg(0.5, 0.1, eps=1e-3), downsample=SIGReg(1.0, slices=3), features=WLDReg(0.25, 0.125))
    assert grid.with_weights(sites, 0.5, 0.1) == expected and grid.with_weights(Sites(), 0.5, 0.1) == Sites()
