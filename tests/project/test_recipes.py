"""Each recipe against the numbers of torchvision's scripts and of the paper, worked out by hand or by PyTorch."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from configs import recipes
from train.augment import AugmentConfig, EvalTransformConfig, MixConfig
from train.config import DataConfig
from train.trainer.model import Architecture, structure
from train.trainer.optim import learning_rate, make_optimizer
from train.trainer.prepare import prepare
from vcreg_jax import Sites


def rates(train, epoch_steps, epochs):
    schedule = learning_rate(train.optimizer.schedule, train.steps)
    return [float(schedule(epoch * epoch_steps)) for epoch in epochs]


def decayed_elements(train, classes=1000, size=224):
    """How many elements and tensors move under zero gradients from a state without momentum."""
    architecture = Architecture(train.model, classes, (size, size, 3), Sites())
    _, norms = structure(architecture)
    optimizer = make_optimizer(train.optimizer, train.steps, norms)
    state = jax.eval_shape(lambda: architecture.create(0))

    shapes = nnx.to_pure_dict(nnx.state(state, nnx.Param))
    # Parameters of one element each carry the same mask.
    tiny = jax.tree.map(lambda leaf: np.ones((1,) * leaf.ndim, np.float32), shapes)
    warm = train.optimizer.schedule.warmup_steps if hasattr(train.optimizer.schedule, "warmup_steps") else 0
    counted = jax.tree.map(lambda leaf: np.int32(warm) if np.ndim(leaf) == 0 else leaf, optimizer.init(tiny))
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, tiny), counted, tiny)
    moved = jax.tree.map(lambda update: bool(np.any(np.asarray(update) != 0)), updates)
    pairs = list(zip(jax.tree.leaves(moved), jax.tree.leaves(shapes), strict=True))
    still = [leaf for is_moved, leaf in pairs if not is_moved]
    return sum(leaf.size for leaf in still), len(still), len(pairs)


def test_resnet50():
    train = recipes.resnet50()
    assert (train.steps, train.batch_size, train.model.norm_scope) == (450_450, 256, 8)
    np.testing.assert_allclose(
        rates(train, 5005, (0, 29, 30, 59, 60, 89)), [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3], rtol=1e-6
    )
    assert decayed_elements(train) == (0, 0, 161)  # all tensors, those of norms too
    assert (train.optimizer.rule.momentum, train.optimizer.rule.weight_decay) == (0.9, 1e-4)
    assert train.data.augment == AugmentConfig(crop_size=224, flip=0.5)
    assert train.data.evaluation == EvalTransformConfig(256, 224)
    assert (train.label_smoothing, train.mix, train.ema, train.optimizer.clip_norm) == (0.0, MixConfig(), None, None)


def test_convnext_tiny():
    train = recipes.convnext_tiny()
    assert (train.steps, train.batch_size, train.data.repeats) == (750_600, 1024, 4)
    expected = [1e-5, 2.08e-4, 4.06e-4, 6.04e-4, 8.02e-4, 1e-3, 9.99993e-4, 6.9696e-9]
    np.testing.assert_allclose(rates(train, 1251, (0, 1, 2, 3, 4, 5, 6, 599)), expected, rtol=1e-5)
    assert decayed_elements(train) == (16_320, 46, 182)
    assert train.ema is not None
    np.testing.assert_allclose(train.ema.decay, 0.9989077, atol=1e-7)
    assert (train.ema.steps_per_epoch, train.ema.every_steps, train.ema.copy_steps) == (1251, 32, 6255)
    assert train.data.augment == AugmentConfig(crop_size=176, flip=0.5, auto_augment="ta_wide", random_erase=0.1)
    assert train.data.evaluation == EvalTransformConfig(236, 224)
    assert (train.label_smoothing, train.mix) == (0.1, MixConfig(0.2, 1.0, 64))
    assert train.model.stochastic_depth == 0.1


def test_vit_b_32():
    train = recipes.vit_b_32()
    assert (train.steps, train.batch_size, train.data.repeats) == (93_900, 4096, 3)
    expected = [9.9e-5, 1.957e-4, 2.924e-4, 2.9033e-3, 3e-3, 1.0154e-7]
    np.testing.assert_allclose(rates(train, 313, (0, 1, 2, 29, 30, 299)), expected, rtol=1e-4)
    assert decayed_elements(train) == (0, 0, 152)
    assert train.ema is not None
    np.testing.assert_allclose(train.ema.decay, 0.9912619, atol=1e-7)
    assert (train.ema.steps_per_epoch, train.ema.every_steps, train.ema.copy_steps) == (313, 32, 9390)
    assert train.data.augment == AugmentConfig(crop_size=224, flip=0.5, auto_augment="imagenet")
    assert train.data.evaluation == EvalTransformConfig(256, 224)
    assert (train.label_smoothing, train.mix) == (0.11, MixConfig(0.2, 1.0, 256))
    assert (train.optimizer.rule.weight_decay, train.optimizer.clip_norm) == (0.3, 1.0)


@pytest.mark.parametrize(("epochs", "peak"), [(90, 0.016), (200, 0.008)])
def test_convnext_atto(epochs, peak):
    train = recipes.convnext_atto(epochs, peak)
    assert (train.steps, train.batch_size) == (313 * epochs, 4096)
    np.testing.assert_allclose(rates(train, 313, (0, 1, 5, epochs)), [0, peak / 5, peak, 0], rtol=1e-5, atol=1e-12)
    assert decayed_elements(train) == (4_960, 34, 128)
    assert train.optimizer.rule.weight_decay == 0.05


def test_cifar10_long_tail():
    train = recipes.resnet32_long_tail(replace(recipes.CIFAR10, long_tail=100.0), recipes.long_tail_images(10, 5000))
    assert (train.steps, train.batch_size, train.data.long_tail) == (4900, 256, 100.0)  # 12,406 images
    np.testing.assert_allclose(rates(train, 49, (0, 5, 10, 55, 100)), [0, 0.008, 0.016, 0.008, 0], rtol=1e-5, atol=1e-9)
    assert decayed_elements(train, classes=10, size=32) == (2_272, 62, 95)


def test_superclasses():
    train = recipes.superclasses(recipes.CIFAR100_SUPERCLASSES, images=50_000)
    assert (train.steps, train.batch_size, train.data.label) == (2600, 4096, "coarse_label")  # 13 steps an epoch
    np.testing.assert_allclose(rates(train, 13, (0, 1, 5, 200)), [0, 0.0032, 0.016, 0], rtol=1e-5, atol=1e-12)
    assert train.model.name == "convnext_atto" and train.optimizer.rule.weight_decay == 0.05


@pytest.mark.parametrize(("recipe", "base_rate"), [(recipes.simclr, 0.3), (recipes.vicreg, 0.2)])
def test_two_views(recipe, base_rate):
    """Appendix C.4, and for the rest the main.py of Barlow Twins, with its rates at a batch of 4,096."""
    train = recipe()
    assert (train.steps, train.batch_size) == (31_300, 4096)
    peak = base_rate * 16
    np.testing.assert_allclose(rates(train, 313, (0, 1, 5, 100)), [0, peak / 5, peak, peak / 1000], rtol=1e-6)
    optimizer = make_optimizer(train.optimizer, train.steps, frozenset())
    params = {"kernel": np.full((2, 2), 2.0, np.float32), "bias": np.ones(2, np.float32)}
    warm = jax.tree.map(lambda leaf: np.int32(5 * 313) if np.ndim(leaf) == 0 else leaf, optimizer.init(params))
    updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), warm, params)
    np.testing.assert_allclose(updates["bias"], -0.0048 * 16, rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], -peak * 1e-3 * 2, rtol=1e-5)  # both norms are of equal entries
    assert train.optimizer.rule.weight_decay == 1e-6

    architecture = Architecture(train.model, 1000, (224, 224, 3), Sites(), train.joint_embedding)
    model = nnx.eval_shape(lambda: architecture.create(0))
    assert [layer.kernel.shape for layer in model.projector.layers] == [
        (2048, train.joint_embedding.projector[0]),
        train.joint_embedding.projector,
    ]
    assert train.joint_embedding.projector == ((2048, 256) if recipe is recipes.simclr else (8192, 8192))
    small = Architecture(replace(train.model, name="resnet20"), 10, (32, 32, 3), Sites()).create(0)
    assert not any(block.norms[-1].scale[...].any() for blocks in small.stages for block in blocks)


def test_the_sweep_is_the_papers_grid():
    arms = recipes.sweep()
    assert arms.pop("baseline") == Sites()
    points = {(arm.block.alpha, arm.block.beta) for arm in arms.values()}
    assert len(arms) == len(points) == 20
    assert {alpha for alpha, _ in points} == {1.28, 0.64, 0.32, 0.16}
    assert {beta for _, beta in points} == {0.16, 0.08, 0.04, 0.02, 0.01}


@pytest.mark.parametrize("recipe", [recipes.resnet50, recipes.convnext_tiny, recipes.vit_b_32, recipes.convnext_atto])
def test_the_recipe_is_one_that_can_run(recipe):
    train = recipe()
    data = train.data
    synthetic = DataConfig(
        "synthetic", "label", data.mean, data.std, data.augment, data.evaluation, data.repeats, synthetic_images=5000
    )

    prepared = prepare(replace(train, data=synthetic), Sites())
    batch = next(prepared.data.train_batches(64, 0, 0))
    assert batch["image"].shape == (64, data.augment.crop_size, data.augment.crop_size, 3)
