import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from tests.tiny_network import Tiny, batch
from train.config import EMAConfig, GuardConfig
from train.trainer import guards
from train.trainer import mesh as meshes
from train.trainer.objective import Classification
from train.trainer.step import Normalize, initial_state, make_train_step, split

NORMALIZE = Normalize(mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="module")
def network():
    """The state after some batches, with running statistics, a moving average and an optimizer that counts."""
    graphdef, params, stats = split(Tiny())
    optimizer = optax.adamw(optax.linear_schedule(0.1, 0.0, 5))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    ema = EMAConfig(0.5, steps_per_epoch=9, every_steps=1)
    step = make_train_step(
        graphdef, optimizer, NORMALIZE, Classification(), mesh, ema, guard_config=GuardConfig(stop_after=2)
    )
    start = jax.jit(partial(initial_state, params, stats, optimizer, True))

    def run(batches):
        state, skipped = start(), []
        for each in batches:
            state, metrics = step(state, meshes.to_devices(each, mesh), 0)
            skipped.append(int(metrics["skipped"]))
        return jax.device_get(state), skipped

    return run


def _bits(state):
    return [
        np.asarray(leaf).tobytes()
        for name in sorted(state)
        for leaf in jax.tree.leaves(state[name])
        if name not in ("step", "guard")
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(network, bad):
    before, _ = network([batch(0)])
    after, skipped = network([batch(0), batch(1, bad)])
    assert _bits(after) == _bits(before)
    assert {"params", "batch_stats", "opt_state", "ema"} <= after.keys()
    assert (int(after["step"]), skipped) == (2, [0, 1])


def test_the_steps_after_are_those_of_a_run_that_never_saw_it(network):
    """The network draws nothing at random, so only the moving average's schedule could tell the steps apart."""
    without, _ = network([batch(0), batch(2), batch(3)])
    after, skipped = network([batch(0), batch(1, np.nan), batch(2), batch(3)])
    assert _bits(after) == _bits(without)
    assert skipped == [0, 1, 1, 1]


def test_after_so_many_in_a_row_no_update_is_taken_any_more(network):
    before, _ = network([batch(0)])
    bad = batch(1, np.nan)
    after, skipped = network([batch(0), bad, bad, batch(2), batch(3)])
    assert _bits(after) == _bits(before)
    assert skipped == [0, 1, 2, 3, 4] and int(after["guard"]["in_a_row"]) == 4
    alone, _ = network([batch(0), bad, batch(2), bad, batch(3)])
    assert int(alone["guard"]["in_a_row"]) == 0 and _bits(alone) != _bits(before)


def _decided(values, sigmas, window):
    """Which of (loss, norm) pairs are taken, in float64."""
    known, taken = [], []
    for pair in np.asarray(values, np.float64):
        recent = np.array(known[-window:]).reshape(-1, 2)
        enough = len(recent) >= window // 2
        spike = enough and bool((pair > recent.mean(axis=0) + sigmas * recent.std(axis=0, ddof=1)).any())
        fine = bool(np.isfinite(pair).all())
        taken.append(fine and not spike)
        known += [pair] if fine else []
    return taken


def test_spikes_are_those_of_the_rule_written_out():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, (90, 2)).astype(np.float32)
    values[[3, 20, 60], 0] += 30  # the first when too little is known
    values[40, 1] += 30
    values[[30, 31], 0] = np.nan
    values[77:] += 40  # which is no spike for long
    config = GuardConfig(stop_after=5, spike_sigmas=4.0, spike_window=16)
    guard, taken = guards.initial(config), []
    judged = jax.jit(partial(guards.judge, config))
    for loss, norm in values:
        take, guard = judged(guard, jnp.asarray(loss), jnp.asarray(norm))
        taken.append(bool(take))
    expected = _decided(values, 4.0, 16)
    assert taken == expected
    assert not any(expected[step] for step in (20, 30, 31, 40, 60, 77)) and expected[3] and all(expected[-5:])
    assert int(guard["skipped"]) == expected.count(False)


def test_the_guard_sends_nothing_between_devices():
    """What the compiled step sends: gradients, statistics, loss and norm, as it does without a guard."""
    graphdef, params, stats = split(Tiny())
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    optimizer = optax.sgd(0.1, momentum=0.9)

    def collectives(guard):
        state = jax.eval_shape(partial(initial_state, params, stats, optimizer, guard=guard))
        sharded = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            meshes.state_shardings(state, mesh),
        )
        step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(), mesh, guard_config=guard)
        with jax.set_mesh(mesh):
            text = step.lower(sharded, meshes.to_devices(batch(0), mesh), 0).compile().as_text()
        results = re.findall(r"= (.+) (?:all-reduce|all-gather|reduce-scatter)\(", text)  # some are sent together
        return sum(result.count("[") for result in results)

    always = collectives(GuardConfig())

    def never(config, guard, loss, norm):
        return jnp.asarray(True), guard

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(guards, "judge", never)
        assert collectives(GuardConfig(stop_after=77)) == always > 0
    assert collectives(GuardConfig(spike_sigmas=6.0)) == always
