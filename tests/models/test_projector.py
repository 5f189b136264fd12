"""The projector against the same layers in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vcreg_jax as vc
from train.config import ModelConfig
from train.trainer.model import Architecture
from vcreg_jax.models.projector import Projected, Projector


def torch_projector(projector: Projector) -> torch.nn.Sequential:
    """The layers in PyTorch's terms, in the order of Appendix C.4 and of facebookresearch/vicreg, with our weights."""
    layers: list[torch.nn.Module] = []
    for index, layer in enumerate(projector.layers):
        weight = torch.tensor(np.asarray(layer.kernel[...]).T)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        linear.weight.data = weight
        layers.append(linear)
        if index < len(projector.norms):
            layers.append(torch.nn.BatchNorm1d(weight.shape[0], dtype=weight.dtype))
        if index < len(projector.layers) - 1:
            layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize(("widths", "norm_last"), [((6, 3), True), ((6, 5, 3), False), ((3,), False)], ids=str)
def test_embeddings_gradients_and_running_statistics_are_torchs(widths, norm_last, x64):
    projector = Projector(4, widths, norm_last=norm_last, dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(projector, nnx.Param, nnx.BatchStat)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), nnx.to_pure_dict(params))
    stats = nnx.to_pure_dict(stats)
    projector = nnx.merge(graphdef, params, stats)
    theirs = torch_projector(projector)
    features = np.random.default_rng(0).normal(size=(8, 4))
    leaf = torch.tensor(features, requires_grad=True)
    expected = theirs(leaf)
    (expected**3).sum().backward()

    @jax.jit
    def loss(features):
        model = nnx.merge(graphdef, params, stats)
        embeddings = model(features, True)
        return (embeddings**3).sum(), (embeddings, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    gradient, (embeddings, after) = jax.grad(loss, has_aux=True)(jnp.asarray(features))
    np.testing.assert_allclose(embeddings, expected.detach(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-9, atol=1e-12)
    evaluated = nnx.merge(graphdef, params, after)(jnp.asarray(features), False)
    np.testing.assert_allclose(evaluated, theirs.eval()(leaf).detach(), rtol=1e-5, atol=1e-6)  # float32 statistics


def test_a_projected_backbone_returns_embeddings_of_the_features_it_has_without():
    backbone = vc.models.create("convnext_digits", features_only=True, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    alone = backbone(images)[1]
    projected = Projected(backbone, Projector(64, (8, 5), rngs=nnx.Rngs(1)))
    embeddings, features = projected(images)
    np.testing.assert_array_equal(features, alone)
    np.testing.assert_allclose(
        embeddings, torch_projector(projected.projector).eval()(torch.tensor(np.array(features))).detach(), atol=1e-5
    )


def test_a_classifier_with_a_projector_has_the_features_it_has_without():
    images = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))

    def network(projector):
        return Architecture(ModelConfig("convnext_digits", projector=projector), 3, (8, 8, 1), vc.Sites()).create(7)

    plain, model = network(None), network((6, 4))
    logits, features = model(images)
    np.testing.assert_array_equal(features, plain(images)[1])
    layers = torch_projector(model.projector)
    assert [layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)] == [6, 4, 3]
    assert " ".join(type(layer).__name__ for layer in layers) == " ".join(2 * ["Linear BatchNorm1d ReLU"] + ["Linear"])
    np.testing.assert_allclose(logits, layers.eval()(torch.tensor(np.array(features))).detach(), atol=1e-5)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"at least one layer, all at least 1 wide, got 4 -> \(\)"):
        Projector(4, (), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"takes features 4 wide, got \(2, 5\)"):
        Projector(4, (3,), rngs=nnx.Rngs(0))(jnp.ones((2, 5)), True)
