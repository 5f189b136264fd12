"""Mixup, CutMix and labels that are distributions: torchvision's, group by group, wherever the groups lie."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats
from torchvision.transforms import v2

import vcreg_jax as vc
from train.augment import MixConfig, check_mix, mix_pairs
from train.augment.mix import draw
from train.trainer import mesh as meshes

BOTH = MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0, group_size=4)
MIXUP, CUTMIX = MixConfig(mixup_alpha=0.2, group_size=4), MixConfig(cutmix_alpha=1.0, group_size=4)
CLASSES = 7
DRAWS = 4000  # the same everywhere, so that the samplers compile once
LEAST_P = 1e-4  # at a true null one seed in 10,000 fails; the seeds are fixed


_mixed = jax.jit(mix_pairs, static_argnums=0)


def _batch(size=64, height=9, width=12, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, height, width, 3)).astype(np.float32)
    return images, np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=size)]


def _box(kept):
    """(x1, y1, x2, y2) of the zeros in a group's `Mix.pixels`, or None where nothing is cut."""
    rows, columns = np.nonzero(kept == 0)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if rows.size else (0, 0, 0, 0)


def _torchvisions(images, targets, kept):
    """One group as torchvision mixes it with the share or the box of our draw."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(targets)
    if np.unique(kept).size == 1 and kept[0, 0] < 1:
        transform, params = v2.MixUp(num_classes=CLASSES), {"lam": float(kept[0, 0])}
    else:
        x1, y1, x2, y2 = _box(kept)
        left = float(1.0 - (x2 - x1) * (y2 - y1) / kept.size)
        transform, params = v2.CutMix(num_classes=CLASSES), {"box": (x1, y1, x2, y2), "lam_adjusted": left}
    transform.make_params = lambda _: params
    mixed_images, mixed_targets = transform(*batch)
    return mixed_images.numpy().transpose(0, 2, 3, 1), mixed_targets.numpy()


@pytest.mark.parametrize("config", [BOTH, MIXUP, CUTMIX], ids=["both", "mixup", "cutmix"])
def test_every_group_is_mixed_as_torchvision_mixes_a_batch(config):
    images, targets = _batch()
    key = jax.random.key(3)
    ours, labels = _mixed(config, images, targets, key)
    kept = np.asarray(draw(config, key, 16, *images.shape[1:3]).pixels)
    cut = np.zeros(16, bool)
    for group in range(16):
        rows = slice(4 * group, 4 * group + 4)
        expected_images, expected_labels = _torchvisions(images[rows], targets[rows], kept[group])
        np.testing.assert_allclose(ours[rows], expected_images, atol=1e-6)
        np.testing.assert_allclose(labels[rows], expected_labels, atol=1e-6)
        cut[group] = (kept[group] == 0).any()
    assert cut.any() == (config.cutmix_alpha > 0) and not (cut.all() and config.mixup_alpha > 0)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


def test_cut_pixels_are_the_partners_bit_for_bit_and_mixing_nothing_changes_nothing():
    images, targets = _batch()
    key = jax.random.key(0)
    ours, _ = _mixed(CUTMIX, images, targets, key)
    kept = np.asarray(draw(CUTMIX, key, 16, 9, 12).pixels).repeat(4, axis=0)[..., None]
    partners = images.reshape(16, 4, 9, 12, 3)[:, [3, 0, 1, 2]].reshape(images.shape)
    np.testing.assert_array_equal(ours, np.where(kept == 1, images, partners))
    same, labels = mix_pairs(MixConfig(), images, targets, key)
    assert same is images and labels is targets


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_are_distributed_as_torchs_dirichlet(alpha):
    shares = np.asarray(draw(MixConfig(mixup_alpha=alpha), jax.random.key(0), DRAWS, 1, 1).label)
    theirs = torch._sample_dirichlet(torch.full((DRAWS, 2), alpha), torch.Generator().manual_seed(0))[:, 0].numpy()
    # By the bound of Dvoretzky, Kiefer and Wolfowitz; at 0.2, 2 % of the shares round to 1 in float32.
    points = np.linspace(0.001, 0.999, 999)
    reached = np.searchsorted(np.sort(shares), points, side="right") / shares.size
    assert np.abs(reached - stats.beta(alpha, alpha).cdf(points)).max() < np.sqrt(np.log(2 / LEAST_P) / (2 * DRAWS))
    assert stats.ks_2samp(shares, theirs).pvalue > LEAST_P


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cut_boxes_are_distributed_as_torchvisions(alpha):
    height, width = 18, 25
    torch.manual_seed(0)
    theirs = v2.CutMix(alpha=alpha, num_classes=CLASSES)
    image = torch.zeros(1, 3, height, width)
    drawn = [theirs.make_params([image]) for _ in range(DRAWS)]
    # An empty box has no place in `kept`; both sides count it as all zeros.
    boxes = np.array([box if (box := d["box"])[0] < box[2] and box[1] < box[3] else (0, 0, 0, 0) for d in drawn])
    mix = jax.device_get(draw(MixConfig(cutmix_alpha=alpha), jax.random.key(0), DRAWS, height, width))
    ours = np.array([_box(kept) for kept in mix.pixels])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], boxes[:, column]).pvalue > LEAST_P
    pixels = np.rint(height * width * mix.label), np.rint([height * width * d["lam_adjusted"] for d in drawn])
    assert stats.ks_2samp(*pixels).pvalue > LEAST_P
    np.testing.assert_allclose(mix.label, mix.pixels.mean(axis=(1, 2)), atol=1e-6)


def test_half_of_the_groups_are_cut_and_half_mixed_whatever_the_others_do():
    mix = jax.device_get(draw(MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0), jax.random.key(0), DRAWS, 8, 8))
    blended = ((mix.pixels > 0) & (mix.pixels < 1)).any(axis=(1, 2))
    assert stats.binomtest(int(blended.sum()), DRAWS).pvalue > LEAST_P
    assert stats.pearsonr(blended[:-1], blended[1:]).pvalue > LEAST_P


def test_on_eight_devices_the_batch_is_mixed_alike_and_nothing_travels():
    images, targets = _batch()
    key = jax.random.key(3)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    spread = meshes.to_devices({"images": images, "targets": targets}, mesh)
    with jax.set_mesh(mesh):
        rows = meshes.batch_sharding(mesh)
        step = jax.jit(functools.partial(mix_pairs, BOTH), out_shardings=(rows, rows))
        compiled = step.lower(spread["images"], spread["targets"], key).compile()
    collective = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    assert re.findall(collective, compiled.as_text()) == []
    found = compiled(spread["images"], spread["targets"], jax.device_put(key, NamedSharding(mesh, PartitionSpec())))
    for ours, expected in zip(found, _mixed(BOTH, images, targets, key), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_one_group_may_span_all_devices():
    images, targets = _batch()
    key = jax.random.key(5)
    config = MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0)
    mesh = jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    spread = meshes.to_devices({"images": images, "targets": targets}, mesh)
    with jax.set_mesh(mesh):
        found = _mixed(config, spread["images"], spread["targets"], key)
    kept = np.asarray(draw(config, key, 1, 9, 12).pixels[0])
    for ours, expected in zip(found, _torchvisions(images, targets, kept), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_label_distributions_and_its_gradient_are_torchs(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(32, CLASSES)).astype(np.float32) * 3
    labels = rng.dirichlet(np.full(CLASSES, 0.3), size=32).astype(np.float32)
    theirs = torch.from_numpy(logits).requires_grad_()
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    expected = criterion(theirs, torch.from_numpy(labels))
    expected.backward()
    targets = jnp.asarray(labels)
    ours, gradient = jax.value_and_grad(lambda x: vc.losses.cross_entropy(x, targets, smoothing).mean())(logits)
    np.testing.assert_allclose(ours, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-7)


def test_one_hot_labels_and_integer_labels_are_the_same_to_cross_entropy():
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.normal(size=(5, CLASSES)), jnp.bfloat16), jnp.asarray([0, 6, 3, 3, 1])
    for smoothing in (0.0, 0.1):
        ours = vc.losses.cross_entropy(logits, jax.nn.one_hot(labels, CLASSES), smoothing)
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, vc.losses.cross_entropy(logits, labels, smoothing), rtol=1e-6)


def test_a_batch_that_is_not_whole_groups_is_refused():
    check_mix(MixConfig(group_size=5), 64)  # nothing is mixed
    check_mix(BOTH, 64)
    with pytest.raises(ValueError, match="whole groups of two or more, got 66 images in groups of 4"):
        check_mix(BOTH, 66)
    with pytest.raises(ValueError, match="got 64 images in groups of 1"):
        check_mix(MixConfig(cutmix_alpha=1.0, group_size=1), 64)
    with pytest.raises(ValueError, match="mixup_alpha must not be negative, got -0.2"):
        check_mix(MixConfig(mixup_alpha=-0.2), 64)
