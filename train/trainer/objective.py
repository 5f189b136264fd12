"""What a training step minimises: a function of the model and the batch that returns the loss and what is logged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

import vcreg_jax as vc
from train.augment import MixConfig, erase, mix_pairs
from train.config import JointEmbedding, TrainConfig

Batch = dict[str, Array]
Metrics = dict[str, Array]


class Objective(Protocol):
    """`(model, batch, normalize, key) -> (loss, metrics)`; the model's batch statistics move as it is called."""

    def __call__(
        self, model: Any, batch: Batch, normalize: Callable[[Array], Array], key: Array, /
    ) -> tuple[Array, Metrics]:
        """The loss, a scalar to differentiate, and scalars to log."""
        ...


@dataclass(frozen=True)
class Classification:
    """The label's cross-entropy.

    The batch holds `image` (uint8), `label` and, with random erasing, `erase_box`. Accuracy is on the images as they
    were mixed, for the label with the larger share.
    """

    label_smoothing: float = 0.0
    mix: MixConfig = field(default_factory=MixConfig)

    def __call__(
        self, model: Any, batch: Batch, normalize: Callable[[Array], Array], key: Array, /
    ) -> tuple[Array, Metrics]:
        """Loss and accuracy in training mode."""
        dropout_key, mix_key = jax.random.split(key)
        images = normalize(batch["image"])
        if "erase_box" in batch:
            images = erase(images, batch["erase_box"])
        labels = targets = batch["label"]
        if self.mix.mixup_alpha or self.mix.cutmix_alpha:
            images, targets = mix_pairs(self.mix, images, jax.nn.one_hot(labels, model.head.out_features), mix_key)
            labels = targets.argmax(axis=-1)
        logits, _ = model(images, train=True, rngs=nnx.Rngs(dropout=dropout_key))
        loss = vc.losses.cross_entropy(logits, targets, self.label_smoothing).mean()
        return loss, {"accuracy": vc.metrics.correct(logits, labels).mean()}


@dataclass(frozen=True)
class Agreement:
    """The loss of two views' embeddings; the batch holds `image` and `second_image` (uint8), and labels count nothing.

    Views that go through the network together stand side by side in one batch, image by image: an image's two views
    share the statistics of a group of rows, and no row changes its device. Otherwise each view has statistics of its
    own, and the running ones move twice.
    """

    config: JointEmbedding

    def __call__(
        self, model: Any, batch: Batch, normalize: Callable[[Array], Array], key: Array, /
    ) -> tuple[Array, Metrics]:
        """The loss in training mode."""
        views = [normalize(batch[name]) for name in ("image", "second_image")]
        if self.config.views_together:
            pairs = jnp.stack(views, axis=1)
            both, _ = model(pairs.reshape(-1, *pairs.shape[2:]), train=True, rngs=nnx.Rngs(dropout=key))
            first, second = both[0::2], both[1::2]
        else:
            keys = jax.random.split(key)
            first, second = (
                model(view, train=True, rngs=nnx.Rngs(dropout=own))[0] for view, own in zip(views, keys, strict=True)
            )
        return self.config.loss(first, second), {}


def objective(config: TrainConfig) -> Classification | Agreement:
    """What a run of `config` minimises."""
    if config.joint_embedding is not None:
        return Agreement(config.joint_embedding)
    return Classification(config.label_smoothing, config.mix)
