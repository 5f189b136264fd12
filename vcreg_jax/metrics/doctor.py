"""A check-up of a network's features, block by block: where they collapse, and what a regularizer could keep."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from vcreg_jax import metrics
from vcreg_jax.probes import quick

STRENGTHS = tuple(10.0**power for power in range(-6, 3))  # of the ridge probe, on standardized features, a row
DEAD = 1e-4  # a feature is dead whose standard deviation is this share of the largest one's, or less
SAME = 0.99  # two features are the same whose correlation has this absolute value, or more
LOST = (
    0.02  # a probe that is this far below the best block's has lost something, and more than twice its standard error
)
UNUSED = 0.5  # effective rank over width under which features have room to spread
COLLAPSED = 0.8  # share of variance between classes from which on features are their classes' means and little else


class Block(NamedTuple):
    """What one block's output holds, a row an image: means over positions. Shares are between 0 and 1."""

    name: str  # of the block
    width: int  # d
    probe_accuracy: float  # of a linear probe on the images that it was not fitted on
    effective_rank: float  # between 1 and the width
    cdnv: float  # class-distance normalized variance; 0: every class is one point
    nc1: float  # neural collapse: tr(S_within pinv(S_between)) / classes; 0: every class is one point
    between_classes: float  # share of the variance that lies between the classes' means
    dead: float  # share of features that do not vary
    duplicated: float  # share of living features that repeat another one, or its negative


class Checkup(NamedTuple):
    """What a check-up found of a network's blocks.

    Attributes:
      blocks: what each block's output holds, in the order of computation.
      sentences: where features collapse; what there is to keep; where to begin, and how strong.
    """

    blocks: tuple[Block, ...]
    sentences: tuple[str, str, str]


def doctor(outputs: Mapping[str, Float[ArrayLike, "n ..."]], labels: Int[ArrayLike, " n"], num_classes: int) -> Checkup:
    """Say of a network's blocks, from their outputs for n images with labels, where features collapse.

    The probe is ridge regression on standardized features: fitted on half of the images, its strength chosen on a
    quarter, and its accuracy that on the last quarter. Images are divided in the order in which they come, so shuffle
    them. Everything else is of all images. The limits from which on something is said are this module's constants.

    Args:
      outputs: of each block by its name, `(n, *positions, d)`.
      labels: class indices, `(n,)`.
      num_classes: how many classes there are.

    Returns:
      A `Checkup`.

    Raises:
      ValueError: for no outputs, fewer than 8 images, and for labels that are out of range or all the same.
    """
    labels = np.asarray(labels)
    present = np.unique(labels)
    if not outputs or len(labels) < 8 or len(present) < 2 or present.min() < 0 or present.max() >= num_classes:
        raise ValueError(
            f"doctor needs outputs and at least 8 labels of two or more classes in 0..{num_classes - 1}, got "
            f"{len(outputs)} outputs and {len(labels)} labels of {len(present)} classes."
        )
    blocks = tuple(_examined(name, _pooled(h), labels, num_classes) for name, h in outputs.items())
    return Checkup(blocks, _sentences(blocks, len(labels) - len(labels) * 3 // 4))


def _pooled(h: ArrayLike) -> np.ndarray:
    array = np.asarray(h, np.float32)
    return array.mean(axis=tuple(range(1, array.ndim - 1))) if array.ndim > 2 else array


def _examined(name: str, rows: np.ndarray, labels: np.ndarray, num_classes: int) -> Block:
    wide = rows.astype(np.float64)
    total, within, between = _scatters(wide, labels)
    std = np.sqrt(np.diag(total))
    alive = std > DEAD * max(std.max(), np.finfo(np.float32).tiny)
    duplicated = _duplicated(total[np.ix_(alive, alive)]) if alive.any() else np.zeros(0, bool)
    trace = np.trace(total)
    return Block(
        name=name,
        width=rows.shape[1],
        probe_accuracy=_probe(rows, labels, num_classes),
        effective_rank=float(metrics.effective_rank(jnp.asarray(rows))) if alive.any() else 1.0,
        cdnv=float(metrics.cdnv(jnp.asarray(rows), jnp.asarray(labels), num_classes)),
        nc1=float(np.trace(within @ np.linalg.pinv(between, rcond=1e-6, hermitian=True)) / len(np.unique(labels))),
        between_classes=float(np.trace(between) / trace) if trace > 0 else 1.0,
        dead=float(1 - alive.mean()),
        duplicated=float(duplicated.mean()) if len(duplicated) else 0.0,
    )


def _scatters(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariance (over n) of all rows, of rows around their class's mean, and of those means; it is their sum."""
    centred = rows - rows.mean(axis=0)
    means = np.stack([centred[labels == c].mean(axis=0) for c in np.unique(labels)])
    own = means[np.searchsorted(np.unique(labels), labels)]
    apart = centred - own
    return centred.T @ centred / len(rows), apart.T @ apart / len(rows), own.T @ own / len(rows)


def _duplicated(covariance: np.ndarray) -> np.ndarray:
    """Which features repeat an earlier one."""
    std = np.sqrt(np.diag(covariance))
    repeats = np.abs(covariance / np.outer(std, std)) >= SAME
    return np.asarray(np.triu(repeats, 1).any(axis=0))


def _probe(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    half, last = len(rows) // 2, len(rows) * 3 // 4
    mean, std = rows[:half].mean(axis=0), rows[:half].std(axis=0)
    x = (rows - mean) / np.where(std > 0, std, 1)
    l2 = np.asarray(STRENGTHS, np.float32) * half
    predicted = np.asarray(quick.ridge(x[:half], labels[:half], x[half:], num_classes, l2))
    right = predicted == labels[half:][None]
    best = right[:, : last - half].mean(axis=1).argmax()
    return float(right[best, last - half :].mean())


def _sentences(blocks: Sequence[Block], tested: int) -> tuple[str, str, str]:
    best = max(range(len(blocks)), key=lambda i: blocks[i].probe_accuracy)
    top, end = blocks[best], blocks[-1]
    lost, collapsed = top.probe_accuracy - end.probe_accuracy, end.between_classes >= COLLAPSED
    standard_error = (top.probe_accuracy * (1 - top.probe_accuracy) / tested) ** 0.5
    has_lost = lost >= max(LOST, 2 * standard_error)
    share = f"{end.between_classes:.0%} of the variance between classes"
    found = f"effective rank {end.effective_rank:.1f} of {end.width}, {share}"
    if has_lost:
        where = (
            f"The probe is right on {top.probe_accuracy:.1%} at {top.name} and on {100 * lost:.1f} points less at "
            f"{end.name}: behind {top.name} the network forgets ({found})."
        )
    elif collapsed:
        where = f"No block loses what an earlier one had, but {end.name} hold little else than classes ({found})."
    else:
        where = f"No block loses what an earlier one had, and {end.name} are not collapsed ({found})."
    if has_lost:
        keep = f"A regularizer has something to keep: the {100 * lost:.1f} points that {top.name} has over {end.name}."
    elif end.effective_rank < UNUSED * end.width:
        keep = (
            f"These labels lose nothing, but the last features use {end.effective_rank:.0f} of {end.width} "
            "directions: a regularizer has room to spread them, which finer labels may need."
        )
    else:
        keep = "There is little for a regularizer to keep or to spread: the last features have it all."
    place = f"of the blocks behind {top.name}, or of all" if has_lost else "of all blocks"
    start = (
        f"To try one, begin with VCReg(alpha=0.64, beta=0.08) at the outputs {place}, then beta 1 and 10, and choose "
        "by a probe on validation images of the task that you care about."
    )
    return where, keep, start
