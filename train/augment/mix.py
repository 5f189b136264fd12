"""What happens to a batch on the device: random erasing, mixup and CutMix, with labels as distributions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from train.augment.config import MixConfig


def erase(images: Array, boxes: Array) -> Array:
    """Normalized `images` (b, h, w, c) with 0 inside each one's box: `boxes` (b, 4) as `erase_box` draws them.

    A batch travels as bytes, and none of them would be normalized to 0.
    """
    top, left, height, width = (edge[:, None] for edge in boxes.T)
    rows, columns = jnp.arange(images.shape[1])[None], jnp.arange(images.shape[2])[None]
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return jnp.where((in_rows[:, :, None] & in_columns[:, None, :])[..., None], 0, images)


class Mix(NamedTuple):
    """How much of every image in a group stays; the rest is its partner's."""

    pixels: Array  # float32 (groups, h, w), between 0 and 1
    label: Array  # float32 (groups,), the mean of `pixels`


def mix_pairs(config: MixConfig, images: Array, targets: Array, key: Array) -> tuple[Array, Array]:
    """Images (b, h, w, c) and label distributions (b, k), each mixed with the one before it in its group.

    Every group of `config.group_size` rows makes its own draws, so that groups which do not straddle devices are mixed
    where they lie; the first of a group is mixed with the last. Torchvision's `RandomMixup` and `RandomCutmix`
    (https://github.com/pytorch/vision, references/classification/transforms.py) do so for each GPU's part of the
    batch. Both alphas 0: images and targets as they are.
    """
    if config.mixup_alpha == config.cutmix_alpha == 0:
        return images, targets
    batch, height, width, _ = images.shape
    groups = 1 if config.group_size is None else batch // config.group_size
    mix = draw(config, key, groups, height, width)
    return _with_partner(images, mix.pixels[:, None, :, :, None]), _with_partner(targets, mix.label[:, None, None])


def draw(config: MixConfig, key: Array, groups: int, height: int, width: int) -> Mix:
    """One mix for each group: mixup's, CutMix's, or either with equal chances where both are on."""
    which, mixup_key, cutmix_key = jax.random.split(key, 3)
    if config.cutmix_alpha == 0:
        return _mixup(config.mixup_alpha, mixup_key, groups, height, width)
    cutmix = _cutmix(config.cutmix_alpha, cutmix_key, groups, height, width)
    if config.mixup_alpha == 0:
        return cutmix
    mixup = _mixup(config.mixup_alpha, mixup_key, groups, height, width)
    cut = jax.random.bernoulli(which, 0.5, (groups,))
    return Mix(
        jnp.where(cut[:, None, None], cutmix.pixels, mixup.pixels),
        jnp.where(cut, cutmix.label, mixup.label),
    )


def _mixup(alpha: float, key: Array, groups: int, height: int, width: int) -> Mix:
    """A share of Beta(alpha, alpha), the same for all pixels. Zhang et al., arXiv 1710.09412."""
    share = _share(alpha, key, groups)
    return Mix(jnp.broadcast_to(share[:, None, None], (groups, height, width)), share)


def _cutmix(alpha: float, key: Array, groups: int, height: int, width: int) -> Mix:
    """All but a box of the image's shape about a uniform centre, cut off at the edges. Yun et al., arXiv 1905.04899.

    Before that and before rounding a Beta(alpha, alpha) share of the image stays; the label's share is what did stay.
    """
    share_key, row_key, column_key = jax.random.split(key, 3)
    share = _share(alpha, share_key, groups)
    rows = _span(jax.random.randint(row_key, (groups,), 0, height), share, height)
    columns = _span(jax.random.randint(column_key, (groups,), 0, width), share, width)
    box = rows[:, :, None] & columns[:, None, :]
    area = rows.sum(axis=1) * columns.sum(axis=1)
    return Mix(1.0 - box.astype(jnp.float32), 1.0 - area.astype(jnp.float32) / (height * width))


def _share(alpha: float, key: Array, groups: int) -> Array:
    """Beta(alpha, alpha), float32 (groups,), drawn on every device alike.

    Left to itself XLA splits the sampler's loop over the devices, and reduces over all of them in each of its turns.
    """
    share = jax.random.beta(key, alpha, alpha, (groups,), jnp.float32)
    if jax.sharding.get_abstract_mesh().empty:
        return share
    return jax.lax.with_sharding_constraint(share, PartitionSpec())


def _span(center: Array, share: Array, length: int) -> Array:
    """Which of `length` pixels lie in the box, bool (groups, length)."""
    half = jnp.floor(0.5 * jnp.sqrt(1.0 - share) * length).astype(jnp.int32)
    pixels = jnp.arange(length)[None]
    return (pixels >= (center - half)[:, None]) & (pixels < (center + half)[:, None])


def _with_partner(rows: Array, kept: Array) -> Array:
    """`rows` (b, ...) with `kept` (groups, 1, ...) of each, and what is missing from the row before it."""
    grouped = rows.reshape(kept.shape[0], -1, *rows.shape[1:])
    together = kept * grouped + (1.0 - kept) * jnp.roll(grouped, 1, axis=1)
    return together.reshape(rows.shape).astype(rows.dtype)
