import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny_network import Tiny, batch
from train.config import GuardConfig
from train.trainer import nonfinite
from train.trainer.objective import Classification
from train.trainer.step import Normalize, initial_state, make_loss, split


@pytest.fixture(scope="module")
def network():
    graphdef, params, stats = split(Tiny(remat=True))
    state = jax.jit(partial(initial_state, params, stats, optax.sgd(0.1)))()
    return make_loss(graphdef, Normalize((0.3,), (0.4,)), Classification()), state


def _explained(network, tmp_path, scaled=None, by=1.0, loss=None):
    """What is said when one parameter is scaled, in the third step of those that were not finite."""
    loss_fn, state = network

    def changed(path, leaf):
        return leaf * by if jax.tree_util.keystr(path, simple=True, separator="/") == scaled else leaf

    params = jax.tree_util.tree_map_with_path(changed, state["params"])
    guard = state["guard"] | {"in_a_row": jnp.int32(3)}
    stuck = state | {"params": params, "guard": guard, "step": jnp.int32(8)}
    assert nonfinite.first_bad_step(GuardConfig(stop_after=3), stuck) == 5
    assert nonfinite.first_bad_step(GuardConfig(stop_after=4), stuck) is None
    message = str(nonfinite.stop(loss or loss_fn, stuck, batch(0), 0, 5, tmp_path))
    return message, json.loads((tmp_path / nonfinite.FILE).read_text())


def test_the_first_layer_is_named_whose_output_is_not_finite(network, tmp_path):
    message, found = _explained(network, tmp_path, "norm/scale", 3e38)
    where = "from step 5 on: the first output that is not finite is that of norm. Details: "
    assert f"3 updates in a row were not finite, {where}{tmp_path / 'nonfinite.json'}" in message
    layers = [(entry["layer"], entry["is_finite"]) for entry in found["outputs"]]
    assert layers == [("stem", True), ("norm", False), ("head", False), ("the network", False)]


def test_what_the_outputs_are_is_what_the_network_gives(network, tmp_path):
    _, found = _explained(network, tmp_path)
    logits, features = Tiny()(jnp.asarray((batch(0)["image"] / 255 - 0.3) / 0.4, jnp.float32), train=True)
    entries = {entry["layer"]: entry["largest"] for entry in found["outputs"]}
    assert entries["head"] == pytest.approx(float(jnp.abs(logits).max()), rel=1e-5)
    assert entries["the network"] == pytest.approx(float(max(jnp.abs(logits).max(), features.max())), rel=1e-5)
    in_order = ["stem/bias", "stem/kernel", "norm/bias", "norm/scale", "head/bias", "head/kernel"]
    assert [entry["parameter"] for entry in found["gradients"]] == in_order


def test_parameters_the_loss_and_gradients_are_named_too(network, tmp_path):
    loss_fn, _ = network
    message, _ = _explained(network, tmp_path, "norm/bias", np.nan)
    assert "the parameter norm/bias is not finite itself" in message

    def with_loss(change, *arguments):
        loss, aux = loss_fn(*arguments)
        return change(loss, arguments[0]), aux

    message, _ = _explained(network, tmp_path, loss=partial(with_loss, lambda loss, _: loss / 0))
    assert "all layers' outputs are finite, the loss is not" in message

    def with_a_bad_gradient(loss, params):
        return loss + jnp.sqrt(params["norm"]["bias"] ** 2).sum() * 0  # 0 / 0 where the bias is 0

    message, _ = _explained(network, tmp_path, loss=partial(with_loss, with_a_bad_gradient))
    assert "on the way back the first gradient that is not finite is that of norm/bias" in message
