from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import digits
from train import grid, loop
from train.augment import AugmentConfig
from train.data import pipeline
from vcreg_jax import Sites, VCReg

SETTINGS = [
    grid.Setting(4e-3, 0.0, 0.0, seed=0),
    grid.Setting(4e-3, 1.28, 0.16, seed=0),
    grid.Setting(8e-3, 1.28, 0.16, seed=0),
    grid.Setting(4e-3, 1.28, 0.16, seed=1),
]
STEPS = 5


def recipe(directory, **changes):
    train = digits.get_config().train
    optimizer = replace(train.optimizer, schedule=replace(train.optimizer.schedule, warmup_steps=2))
    augment = AugmentConfig(max_shift=1, flip=0.5)
    data = replace(train.data, directory=str(directory / "data"), augment=augment)
    train = replace(train, data=data, model=replace(train.model, stochastic_depth=0.3))
    return replace(train, optimizer=optimizer, steps=STEPS, batch_size=16, eval_every=STEPS, **changes)


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]).reshape(devices, 1), ("data", "fsdp"))


def trained(config, settings, devices=1, vmapped=None):
    """States and metrics of all steps, and the accuracy on validation images."""
    data, mesh = pipeline.load(config.data, "train"), mesh_of(devices)
    program = grid.make_program(config, Sites(block=VCReg()), data, mesh, vmapped)
    values, images = grid.as_arrays(settings), grid.on_devices(data, mesh)
    draws = grid.drawn(data, config.batch_size, settings, range(STEPS))
    states, metrics = program.train(program.initial(values), values, draws, images)
    held_out = grid.evaluation_batches(pipeline.load(config.data, "validation"), 64)
    sums = program.evaluate(states, values, held_out)
    return jax.device_get((states, metrics, sums))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    config = recipe(tmp_path_factory.mktemp("together"))
    return config, *trained(config, SETTINGS, devices=2)


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_every_setting_is_trained_as_in_a_run_of_its_own(together, index, tmp_path):
    config, states, _, sums = together
    own = SETTINGS[index]
    schedule = replace(config.optimizer.schedule, peak_learning_rate=own.learning_rate)
    alone = replace(config, optimizer=replace(config.optimizer, schedule=schedule))
    sites = Sites(block=VCReg(own.alpha, own.beta)) if own.alpha else Sites()
    run = loop.train(alone, sites, own.seed, tmp_path, "alone")
    for part in ("params", "batch_stats"):
        ours = jax.tree.map(lambda leaf: leaf[index], states[part])
        for (path, mine), theirs in zip(
            jax.tree.leaves_with_path(ours), jax.tree.leaves(jax.device_get(run.state[part])), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-5, err_msg=str(path))
    assert sums["accuracy"][index] / sums["count"][index] == pytest.approx(run.validation_accuracy, abs=1e-6)
