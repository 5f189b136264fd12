"""The linear probe of the transfer tables: multinomial logistic regression at all regularization strengths.

For n examples with features x, labels y and logits x W + b, the objective at one strength is

    F(W, b) = sum_i cross_entropy(x_i W + b, y_i) + l2 / 2 |W|^2

a sum and not a mean, the bias unpenalised, so that l2 is scikit-learn's 1 / C. Protocol: Kornblith et al. 2019,
"Do Better ImageNet Models Transfer Better?"; SimCLR, Appendix B.8.1; Appendix C.1 of the VCReg paper.

Shapes: n examples, d features, k classes, s strengths, p strengths being solved at the moment.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from vcreg_jax.probes import lbfgs
from vcreg_jax.probes.lbfgs import Fit
from vcreg_jax.probes.logistic import class_counts, dot
from vcreg_jax.regularizers.statistics import less, mean_of


def l2_grid(low: float, high: float, count: int = 45) -> np.ndarray:
    """Space strengths logarithmically, both ends included.

    Args:
      low: the smallest, above 0.
      high: the largest.
      count: how many.

    Returns:
      `(count,)` in float64.
    """
    return np.geomspace(low, high, count)


TOLERANCE = 1e-4  # of the gradient; see `fit`
L2_GRID = l2_grid(1e-6, 1e5)  # Kornblith et al. 2019, SimCLR, BYOL
Metric = Literal["top1", "mean_per_class"]
PAPER_L2_GRID = l2_grid(1e-5, 1e5)  # Appendix C.1: "between 0.00001 and 100000"


class Split(NamedTuple):
    """Features and labels of one split.

    Attributes:
      features: `(n, d)`.
      labels: class indices, `(n,)`.
      mask: booleans `(n,)`; rows where it is False (padding) do not exist. None: all do.
    """

    features: Float[ArrayLike, "n d"]
    labels: Int[ArrayLike, " n"]
    mask: Bool[ArrayLike, " n"] | None = None


class _Rows(NamedTuple):
    """A split that was found in order."""

    features: Array
    labels: Array
    mask: Array


class Selection(NamedTuple):
    """How strengths fare on validation.

    Attributes:
      l2: the strength chosen.
      validation_accuracy: at each strength, a fraction by the protocol's metric, `(s,)`.
      fit: of train, at every strength.
    """

    l2: float
    validation_accuracy: Float[np.ndarray, " s"]
    fit: Fit


class ProbeResult(NamedTuple):
    """What a table reports, with what is needed to doubt it.

    Attributes:
      protocol: its name and what it was, in words.
      l2: the strength chosen.
      validation_accuracy: at each strength, a fraction by the protocol's metric, `(s,)`.
      test_accuracy: a fraction by the protocol's metric.
      converged: whether every fit did, the final one included.
      worst_gradient_norm: relative, over every fit.
      fit: of train and validation together, at the one strength chosen; on standardized features if asked for.
    """

    protocol: str
    l2: float
    validation_accuracy: Float[np.ndarray, " s"]
    test_accuracy: float
    converged: bool
    worst_gradient_norm: float
    fit: Fit


def fit(
    features: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
    num_classes: int,
    l2: Float[ArrayLike, " s"] | Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = 2000,
    mask: Bool[ArrayLike, " n"] | None = None,
    lanes: int = 1,
    warm_start: bool = True,
) -> Fit:
    """Minimize F at every strength of `l2`, by L-BFGS.

    Converged means |grad F| <= tolerance * (|[x 1]| |r| + l2 |W|): the gradient against the terms that cancel in it,
    x'r and l2 W. Here x are the centred features, r = softmax - onehot, and norms are Frobenius but for the spectral
    |[x 1]|. Neither the features' unit, n nor l2 moves its meaning, and rounding allows about 1e-6 in float32, 1e-14
    in float64. A strength that does not get there reports converged False and how far it got; nothing raises.

    A class without examples would have its bias go to -inf. The fit is that of the other classes, and the class
    has zero weights, bias -inf and is never predicted.

    Arithmetic is float32, or float64 for float64 features under `jax.enable_x64`. Rows may be sharded over a mesh.

    Args:
      features: `(n, d)`, as they come; centring is internal and exact, since the bias absorbs it.
      labels: class indices `(n,)`.
      num_classes: k.
      l2: strengths `(s,)`, above 0, in any order; the result keeps it.
      tolerance: see above. At 1e-4, F of features of trained ResNets lay 4e-6 (the median strength) to 7e-4 (the
        worst) above its minimum, relatively; at 1e-5 at most 8e-7 where 1e-4 left 4e-5.
      max_iterations: per strength.
      mask: False for rows to leave out, such as padding, `(n,)`.
      lanes: p. More of them feed a wide accelerator; one alone needs the fewest iterations.
      warm_start: each strength from what the next stronger ones in its lane have found, and not from zero.

    Returns:
      A `Fit` at each strength: weights `(s, d, k)`, bias `(s, k)`, and how well they were reached.

    Raises:
      ValueError: for empty, mismatched or non-finite data, labels out of range, a single class, or l2 <= 0.

    Examples:
      >>> import jax
      >>> import vcreg_jax as vc
      >>> features = jax.random.normal(jax.random.key(0), (64, 4))
      >>> labels = (features[:, 0] > 0).astype(int)
      >>> found = vc.probes.linear.fit(features, labels, 2, [0.1, 1.0])
      >>> found.weights.shape, bool(found.converged.all())
      ((2, 4, 2), True)
    """
    features, labels, mask = _check("training data", features, labels, mask, num_classes)
    strengths = np.atleast_1d(np.asarray(l2, np.float64))
    if strengths.ndim != 1 or strengths.size == 0 or not (np.isfinite(strengths) & (strengths > 0)).all():
        raise ValueError(
            f"l2 must be a list of finite strengths > 0, got {l2}. Without a penalty separable classes have no optimum."
        )
    if (present := int((class_counts(labels, mask, num_classes) > 0).sum())) < 2:
        raise ValueError(f"training data must have at least 2 classes, got {present}. Check labels and mask.")
    strengths, p = jnp.asarray(strengths, features.dtype), min(lanes, strengths.size)
    how = {"num_classes": num_classes, "p": p, "warm_start": warm_start}
    return lbfgs.solve(features, labels, mask, strengths, tolerance, max_iterations, **how)


def logits(fit: Fit, features: Float[ArrayLike, "n d"]) -> Float[Array, "s n k"]:
    """Compute x W + b at each strength.

    Args:
      fit: of s strengths.
      features: x, `(n, d)`.

    Returns:
      `(s, n, k)`; -inf for a class that had no training examples.
    """
    x = jnp.asarray(features, fit.weights.dtype)
    return dot("nd,sdk->snk", x, fit.weights) + fit.bias[:, None, :]


@jax.jit
def predict(fit: Fit, features: Float[ArrayLike, "n d"]) -> Int[Array, "s n"]:
    """Predict the class with the largest logit at each strength; holds the logits of one strength at a time.

    Args:
      fit: of s strengths.
      features: `(n, d)`.

    Returns:
      Class indices `(s, n)`.
    """
    x = jnp.asarray(features, fit.weights.dtype)
    return lax.map(lambda wb: (dot("nd,dk->nk", x, wb[0]) + wb[1][None]).argmax(axis=-1), (fit.weights, fit.bias))


def select(
    train: Split | tuple[Any, ...],
    val: Split | tuple[Any, ...],
    num_classes: int,
    l2: Float[ArrayLike, " s"] | Sequence[float] = L2_GRID,
    *,
    metric: Metric = "top1",
    standardize: bool = False,
    **solving: Any,
) -> Selection:
    """Choose the strength that is best on validation; of equals the strongest.

    Args:
      train: what the strengths are compared on.
      val: what selects.
      num_classes: k.
      l2: the strengths `(s,)`.
      metric: as for `select_and_test`.
      standardize: as for `select_and_test`.
      **solving: `tolerance`, `max_iterations`, `lanes` and `warm_start` of `fit`.

    Returns:
      A `Selection`.

    Raises:
      ValueError: as `fit`, naming the split.
    """
    rows = _check_splits({"train": train, "val": val}, num_classes, metric)
    return _select(rows, num_classes, np.atleast_1d(np.asarray(l2, np.float64)), metric, standardize, solving)


def select_and_test(
    train: Split | tuple[Any, ...],
    val: Split | tuple[Any, ...],
    test: Split | tuple[Any, ...],
    num_classes: int,
    l2: Float[ArrayLike, " s"] | Sequence[float] = L2_GRID,
    *,
    metric: Metric = "top1",
    standardize: bool = False,
    tolerance: float = TOLERANCE,
    protocol: str = "Kornblith et al.",
    **solving: Any,
) -> ProbeResult:
    """Test the strength that is best on validation, refitted on train and validation together.

    Of strengths with equal validation accuracy the strongest is chosen.

    Args:
      train: what the strengths are compared on.
      val: what selects.
      test: what is reported.
      num_classes: k.
      l2: the strengths `(s,)`.
      metric: for selection and test alike. `mean_per_class` averages the recall of the classes that the split has,
        as is usual for Aircraft, Pets and Flowers (BYOL, Table 10).
      standardize: give each feature mean 0 and variance 1, by train for selection and by train and validation for
        the refit. Off in the paper; others do so (SynCLR).
      tolerance: of `fit`, as the remaining arguments.
      protocol: its name, for the result.
      **solving: `max_iterations`, `lanes` and `warm_start` of `fit`.

    Returns:
      A `ProbeResult`.

    Raises:
      ValueError: as `fit`, naming the split.

    Reference:
      The VCReg paper (arXiv 2306.13292), Appendix C.1; Kornblith et al., "Do Better ImageNet Models Transfer Better?"
      (arXiv 1805.08974).
    """
    rows = _check_splits({"train": train, "val": val, "test": test}, num_classes, metric)
    strengths = np.atleast_1d(np.asarray(l2, np.float64))
    how = {"tolerance": tolerance, **solving}
    selection = _select(rows, num_classes, strengths, metric, standardize, how)
    both = _Rows(*(jnp.concatenate(pair) for pair in zip(rows["train"], rows["val"], strict=True)))
    final, (test_accuracy,) = _fit(both, rows["test"], num_classes, [selection.l2], metric, standardize, how)
    fits = (selection.fit, final)
    return ProbeResult(
        protocol=f"{protocol}: L-BFGS linear probe, sum of cross entropies + l2/2 |W|^2, {strengths.size} strengths in "
        f"{strengths.min():g}..{strengths.max():g} selected by validation {metric}, refit on train+val, test {metric}, "
        f"features {'standardized' if standardize else 'as they come'}, relative gradient <= {tolerance:g}",
        l2=selection.l2,
        validation_accuracy=selection.validation_accuracy,
        test_accuracy=float(test_accuracy),
        converged=all(bool(fit.converged.all()) for fit in fits),
        worst_gradient_norm=max(float(fit.gradient_norm.max()) for fit in fits),
        fit=final,
    )


def _fit(
    on: _Rows, tested: _Rows, num_classes: int, l2: Any, metric: Metric, standardize: bool, solving: dict[str, Any]
) -> tuple[Fit, np.ndarray]:
    """The fits on one split, and the metric of each on another."""
    if standardize:
        on, tested = _standardize(on, by=on), _standardize(tested, by=on)
    found = fit(on.features, on.labels, num_classes, l2, mask=on.mask, **solving)
    return found, np.asarray(_accuracy(predict(found, tested.features), tested, num_classes, metric))


def _select(
    rows: dict[str, _Rows], num_classes: int, l2: np.ndarray, metric: Metric, standardize: bool, solving: dict[str, Any]
) -> Selection:
    found, accuracy = _fit(rows["train"], rows["val"], num_classes, l2, metric, standardize, solving)
    return Selection(float(l2[accuracy == accuracy.max()].max()), accuracy, found)


def _check_splits(named: dict[str, Any], num_classes: int, metric: str) -> dict[str, _Rows]:
    if metric not in ("top1", "mean_per_class"):
        raise ValueError(f"metric must be 'top1' or 'mean_per_class', got {metric!r}.")
    rows = {name: _check(name, *_split_of(name, split), num_classes) for name, split in named.items()}
    if len(widths := {split.features.shape[1] for split in rows.values()}) > 1:
        raise ValueError(f"splits must have the same number of features, got {sorted(widths)}. Use one backbone.")
    return rows


def _split_of(name: str, split: Any) -> Split:
    """The split, which may also be a plain (features, labels) or (features, labels, mask)."""
    if isinstance(split, tuple | list) and len(split) in (2, 3):
        return Split(*split)
    shape = getattr(split, "shape", None)
    got = f"a {type(split).__name__}" if shape is None else f"an array of shape {shape}"
    raise ValueError(f"{name} must be Split(features, labels), got {got}.")


def _check(name: str, features, labels, mask, num_classes: int) -> _Rows:
    """Arrays in the dtypes to compute in; ValueError unless they are a non-empty, consistent, finite split."""
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    mask = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if features.ndim != 2 or labels.shape != features.shape[:1] or mask.shape != labels.shape:
        raise ValueError(
            f"{name}: features must be (n, d), labels and mask (n,), got {features.shape}, {labels.shape} and "
            f"{mask.shape}. Pool feature maps, and take labels in the order of the features."
        )
    if features.shape[1] == 0 or labels.size == 0 or not mask.any():
        raise ValueError(f"{name}: there must be features and examples, got {mask.sum()} rows of {features.shape}.")
    finite, low, high = _extent(features, labels, mask)
    if not finite:
        raise ValueError(f"{name}: features must be finite, got NaN or infinity. Check the checkpoint they come from.")
    if not jnp.issubdtype(labels.dtype, jnp.integer) or low < 0 or high >= num_classes:
        raise ValueError(
            f"{name}: labels must be integers in 0..{num_classes - 1}, got {labels.dtype} in {low}..{high}. "
            "Renumber them, or set num_classes."
        )
    return _Rows(features, labels, mask)


@jax.jit
def _extent(features: Array, labels: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Whether the features are finite, and the lowest and highest label, of unmasked rows."""
    some = labels[jnp.argmax(mask)]
    present = jnp.where(mask, labels, some)
    return jnp.isfinite(jnp.where(mask[:, None], features, 0)).all(), present.min(), present.max()


@functools.partial(jax.jit, static_argnames=("num_classes", "metric"))
def _accuracy(predicted: Array, split: _Rows, num_classes: int, metric: str) -> Array:
    """The metric per strength, `s`."""
    mask, labels = split.mask, jnp.where(split.mask, split.labels, 0)
    hits = (predicted == labels[None]) & mask[None]
    if metric == "top1":
        return hits.sum(axis=1) / mask.sum()
    counts = class_counts(labels, mask, num_classes)
    recall = jnp.zeros((len(predicted), num_classes), int).at[:, labels].add(hits) / jnp.maximum(counts, 1)[None]
    return recall.sum(axis=1) / (counts > 0).sum()


@jax.jit
def _standardize(split: _Rows, by: _Rows) -> _Rows:
    """`split` less the mean of `by` over its standard deviation, or over 1 where a feature is constant."""
    mean = mean_of(by.features, by.mask)
    x = jnp.where(by.mask[:, None], less(by.features, mean), 0)
    std = jnp.sqrt((x**2).sum(axis=0, keepdims=True) / by.mask.sum())
    return split._replace(features=less(split.features, mean) / jnp.where(std > 0, std, 1))
