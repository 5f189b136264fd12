"""Networks that compile in no time and have what matters: layers in an order, running statistics, remat."""

from functools import partial

import numpy as np
from flax import nnx

from vcreg_jax import models
from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.resnet_cifar import CifarResNet

SMALLEST, TWO_STAGES, SMALLEST_RESNET = "smallest", "two_stages", "smallest_resnet"


def add_smallest() -> None:
    """Give `create` networks for tests of whole runs: of one block, of two stages, and a ResNet with its three."""
    models._MODELS[SMALLEST] = partial(ConvNeXt, (1,), (32,), 2)
    models._MODELS[TWO_STAGES] = partial(ConvNeXt, (1, 1), (32, 64), 2)
    models._MODELS[SMALLEST_RESNET] = partial(CifarResNet, 1)


def remove_smallest() -> None:
    """Take them away again."""
    for name in (SMALLEST, TWO_STAGES, SMALLEST_RESNET):
        del models._MODELS[name]


class Tiny(nnx.Module):
    """Two linear layers with a batch norm between them; (logits, features) like every network here."""

    def __init__(self, remat: bool = False):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 2, rngs=rngs)
        self.remat = remat

    def __call__(self, images, *, train=False, rngs=None):
        call = nnx.remat(lambda layer, x: layer(x)) if self.remat else lambda layer, x: layer(x)
        x = call(self.stem, images.reshape(len(images), -1))
        features = nnx.relu(self.norm(x, use_running_average=not train))
        return self.head(features), features


def batch(seed, bad=None):
    """Eight images of 8 x 8, as floats so that a pixel may be `bad`, and labels of two classes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (8, 8, 8, 1)).astype(np.float32)
    image[3, 2, 2] = image[3, 2, 2] if bad is None else bad
    return {"image": image, "label": rng.integers(0, 2, 8).astype(np.int32)}
