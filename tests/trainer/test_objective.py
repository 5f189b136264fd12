"""Training on the agreement of two views, through the step that every run takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import vcreg_jax as vc
from tests.tiny_network import TWO_STAGES
from train.config import JointEmbedding, ModelConfig
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, create_state, structure
from train.trainer.objective import Agreement
from train.trainer.step import Normalize, make_train_step
from vcreg_jax.losses import NTXent

pytestmark = pytest.mark.usefixtures("smallest")

NORMALIZE = Normalize((0.3,), (0.4,))


def two_views(count: int) -> dict[str, np.ndarray]:
    views = np.random.default_rng(0).integers(0, 256, (2, count, 8, 8, 1), np.uint8)
    return {"image": views[0], "second_image": views[1], "label": np.zeros(count, np.int32)}


def one_step(config: JointEmbedding, batch: dict[str, np.ndarray], devices: int = 1):
    """The network and its weights before a step of plain gradient descent, the state after it, and its metrics."""
    mesh = jax.make_mesh((devices, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:devices])
    sites = vc.Sites(features=vc.VCReg(0.5, 0.5))
    architecture = Architecture(ModelConfig(TWO_STAGES), 2, (8, 8, 1), sites, config)
    optimizer = optax.sgd(0.1)
    graphdef, _ = structure(architecture)
    step = make_train_step(graphdef, optimizer, NORMALIZE, Agreement(config), mesh)
    with jax.set_mesh(mesh):
        state = create_state(architecture, optimizer, mesh, 0)
        before = jax.tree.map(lambda x: jnp.asarray(jax.device_get(x)), (state["params"], state["batch_stats"]))
        return graphdef, before, *step(state, meshes.to_devices(batch, mesh), 0)


def by_hand(model: nnx.Module, batch: dict[str, np.ndarray], together: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both views' embeddings in training: the views one after the other in one batch, or in one each."""
    views = [jnp.asarray(NORMALIZE(batch[name])) for name in ("image", "second_image")]
    if together:
        return tuple(jnp.split(model(jnp.concatenate(views), train=True)[0], 2))
    return tuple(model(view, train=True)[0] for view in views)


@pytest.mark.parametrize(("together", "devices"), [(True, 8), (False, 1)])
def test_the_step_minimises_the_views_loss_with_the_regularizer_in_the_backbone(together, devices):
    config = JointEmbedding(NTXent(0.5), (6, 4), views_together=together)
    batch = two_views(8)
    graphdef, (params, stats), after, metrics = one_step(config, batch, devices)

    @jax.jit
    def written_out(params):
        model = nnx.merge(graphdef, params, stats)
        loss = config.loss(*by_hand(model, batch, together))
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    (loss, moved), gradient = jax.value_and_grad(written_out, has_aux=True)(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    for name, tree in (("params", jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)), ("batch_stats", moved)):
        for ours, expected in zip(jax.tree.leaves(after[name]), jax.tree.leaves(tree), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_halved_weights_make_views_that_go_one_by_one_count_their_mean():
    config = JointEmbedding(NTXent(0.5), (6, 4), views_together=False)
    batch = two_views(8)
    _, (params, stats), after, _ = one_step(config, batch)  # with VCReg(0.5, 0.5) at the features
    plain, _ = structure(Architecture(ModelConfig(TWO_STAGES), 2, (8, 8, 1), vc.Sites(), config))
    whole = vc.VCReg(1.0, 1.0)

    @jax.jit
    def written_out(params):
        model = nnx.merge(plain, params, stats)
        views = [jnp.asarray(NORMALIZE(batch[name])) for name in ("image", "second_image")]
        (first, one), (second, other) = (model(view, train=True) for view in views)
        return config.loss(first, second) + (whole.penalty(one) + whole.penalty(other)) / 2

    gradient = jax.grad(written_out)(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    for ours, wanted in zip(jax.tree.leaves(after["params"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
