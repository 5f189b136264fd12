from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import vcreg_jax as vc
from train.config import ModelConfig
from train.interop import convert
from train.trainer.model import Architecture
from vcreg_jax import torch_weights
from vcreg_jax.models.mlp import MLP

ALPHA, BETA = 0.64, 0.08


def torchs(depth: int = 4, width: int = 24, side: int = 6, channels: int = 2, classes: int = 5) -> nn.Module:
    """The same network in PyTorch, its first layer a linear one of the flattened image."""
    torch.manual_seed(0)
    hidden = [nn.Linear(width, width) for _ in range(depth - 2)]
    return nn.ModuleDict(
        OrderedDict(
            stem=nn.Linear(channels * side**2, width), layers=nn.ModuleList(hidden), head=nn.Linear(width, classes)
        )
    ).double()


def state(theirs: nn.Module, side: int = 6, channels: int = 2) -> dict[str, np.ndarray]:
    weights = {key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    return weights | {"stem.weight": weights["stem.weight"].reshape(-1, channels, side, side)}


def forward(theirs, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and what every hidden layer gives its ReLU."""
    x, seen = images.flatten(1), []
    for layer in (theirs["stem"], *theirs["layers"]):
        seen.append(layer(x))
        x = torch.relu(seen[-1])
    return theirs["head"](x), seen


def penalty(h: torch.Tensor) -> torch.Tensor:
    """Equations 3 and 4 in PyTorch."""
    d = h.shape[1]
    c = torch.cov(h.T)
    spread = torch.relu(1 - torch.sqrt(torch.diagonal(c) + 1e-5)).sum() / d
    return ALPHA * spread + BETA * (c.square().sum() - torch.diagonal(c).square().sum()) / (d * (d - 1))


def test_values_and_regularized_gradients_are_those_of_pytorchs_linear_layers_on_the_flattened_image():
    theirs, rng = torchs(), np.random.default_rng(0)
    images, labels = rng.normal(size=(16, 6, 6, 2)), rng.integers(5, size=16)
    logits, seen = forward(theirs, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    (nn.functional.cross_entropy(logits, torch.from_numpy(labels)) + sum(map(penalty, seen))).backward()

    sites = vc.Sites(block=vc.VCReg(ALPHA, BETA, eps=1e-5, scale="equation_4"))
    with jax.enable_x64(True):
        model = MLP(4, 24, image_size=6, in_channels=2, num_classes=5, sites=sites, dtype=jnp.float64, rngs=nnx.Rngs(0))
        nnx.update(model, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), nnx.state(model, nnx.Param)))
        torch_weights.load(model, state(theirs))

        def loss(model):
            logits, _ = model(jnp.asarray(images), train=True)
            return vc.losses.cross_entropy(logits, jnp.asarray(labels)).mean(), logits

        (_, ours), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
        np.testing.assert_allclose(ours, logits.detach().numpy(), rtol=1e-10)
        nnx.update(model, gradients)
        mine = torch_weights.export(model)
    for key, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(mine[key].reshape(parameter.shape), parameter.grad.numpy(), rtol=1e-8, atol=1e-12)


def test_weights_start_as_torchs_linear_layers_do():
    model = MLP(3, 400, image_size=6, in_channels=2, num_classes=10, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    for key, value in torch_weights.export(model).items():
        inputs = 72 if key.startswith("stem") else 400
        reference = nn.Linear(inputs, 4000 if value.ndim == 1 else len(value))
        theirs = (reference.weight if value.ndim > 1 else reference.bias).detach().numpy()
        assert np.abs(value).max() <= inputs**-0.5
        np.testing.assert_allclose(value.std(), theirs.std(), rtol=0.03 if value.ndim > 1 else 0.3)


def test_a_checkpoints_weights_tell_the_size_of_its_images_and_its_channels():
    architecture = Architecture(ModelConfig("mlp6_512", image_size=8), 5, (8, 8, 1), vc.Sites())
    model = architecture.create(0)
    logits, features = model(jnp.ones((2, 8, 8, 1)))  # pyright: ignore[reportCallIssue]
    assert (logits.shape, features.shape) == ((2, 5), (2, 512))
    flat = {"/".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model))}
    again, _ = convert._through_checkpoint("mlp6_512", flat)
    np.testing.assert_array_equal(again(jnp.ones((2, 8, 8, 1)))[0], logits)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 2 layers"):
        MLP(1, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no residual blocks"):
        MLP(2, 8, stochastic_depth=0.1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no downsampling layers"):
        MLP(2, 8, sites=vc.Sites(downsample=vc.VCReg()), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="takes images of 32x32, got 16x16"):
        MLP(2, 8, rngs=nnx.Rngs(0))(jnp.ones((1, 16, 16, 3)))
