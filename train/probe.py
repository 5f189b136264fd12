"""The linear probe of the transfer tables: multinomial logistic regression at all regularization strengths.

For n examples with features x, labels y and logits x W + b, the objective at one strength is

    F(W, b) = sum_i cross_entropy(x_i W + b, y_i) + l2 / 2 |W|^2

a sum and not a mean, the bias unpenalised, so that l2 is scikit-learn's 1 / C. Protocol: Kornblith et al. 2019,
"Do Better ImageNet Models Transfer Better?"; SimCLR, Appendix B.8.1; Appendix C.1 of the VCReg paper.

Shapes: n examples, d features, k classes, s strengths, p strengths being solved at the moment.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

MEMORY = 10  # steps, with their gradient differences, that L-BFGS remembers
BLOCK_LOGITS = 2**21  # logits in memory at once while solving

_dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # accelerators would otherwise round operands


def l2_grid(low: float, high: float, count: int = 45) -> np.ndarray:
    """`count` logarithmically spaced strengths from `low` to `high`, both included."""
    return np.geomspace(low, high, count)


L2_GRID = l2_grid(1e-6, 1e5)  # Kornblith et al. 2019, SimCLR, BYOL
PAPER_L2_GRID = l2_grid(1e-5, 1e5)  # Appendix C.1: "between 0.00001 and 100000"


class Fit(NamedTuple):
    """The optimum at each strength, and how well it was reached."""

    weights: Float[Array, "s d k"]
    bias: Float[Array, "s k"]  # sums to 0 over the classes present; -inf for a class without examples
    objective: Float[Array, " s"]  # F in nats, summed over examples
    gradient_norm: Float[Array, " s"]  # relative: what `tolerance` bounds
    iterations: Int[Array, " s"]  # accepted steps
    converged: Bool[Array, " s"]


class Split(NamedTuple):
    """Features and labels of one split; rows where the mask is False (padding) do not exist."""

    features: Float[ArrayLike, "n d"]
    labels: Int[ArrayLike, " n"]
    mask: Bool[ArrayLike, " n"] | None = None


class _Rows(NamedTuple):
    """A split that was found in order."""

    features: Array
    labels: Array
    mask: Array


class ProbeResult(NamedTuple):
    """What a table reports, with what is needed to doubt it."""

    protocol: str
    l2: float  # the strength chosen
    validation_accuracy: Float[np.ndarray, " s"]  # fraction, by the protocol's metric
    test_accuracy: float  # fraction, by the protocol's metric
    converged: bool  # every fit, the final one included
    worst_gradient_norm: float  # relative, over every fit
    fit: Fit  # of train and validation together, at the one strength chosen; on standardized features if asked for


def fit(
    features: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
    num_classes: int,
    l2: Float[ArrayLike, " s"] | Sequence[float],
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    mask: Bool[ArrayLike, " n"] | None = None,
    lanes: int = 5,
) -> Fit:
    """The minimizer of F at every strength of `l2`, by L-BFGS.

    Converged means |grad F| <= tolerance * (|[x 1]| |r| + l2 |W|): the gradient against the terms that cancel in it,
    x'r and l2 W. Here x are the centred features, r = softmax - onehot, and norms are Frobenius but for the spectral
    |[x 1]|. Neither the features' unit, n nor l2 moves its meaning, and rounding allows about 1e-6 in float32, 1e-14
    in float64. A strength that does not get there reports converged False and how far it got; nothing raises.

    A class without examples would have its bias go to -inf. The fit is that of the other classes, and the class
    has zero weights, bias -inf and is never predicted.

    Arithmetic is float32, or float64 for float64 features under `jax.enable_x64`. Rows may be sharded over a mesh.

    Args:
      features: as they come; centring is internal and exact, since the bias absorbs it.
      labels: class indices.
      num_classes: k.
      l2: strengths, in any order; the result keeps it.
      tolerance: see above. At 1e-4, F is typically within 1e-5 of its minimum, relatively.
      max_iterations: per strength.
      mask: False for rows to leave out, such as padding.
      lanes: p. More of them feed a wide accelerator; fewer need fewer iterations, as a lane starts from its previous
        optimum.

    Raises:
      ValueError: for empty, mismatched or non-finite data, labels out of range, a single class, or l2 <= 0.
    """
    features, labels, mask = _checked("training data", features, labels, mask, num_classes)
    strengths = np.atleast_1d(np.asarray(l2, np.float64))
    if strengths.ndim != 1 or strengths.size == 0 or not (np.isfinite(strengths) & (strengths > 0)).all():
        raise ValueError(
            f"l2 must be a list of finite strengths > 0, got {l2}. Without a penalty separable classes have no optimum."
        )
    if (present := int((_class_counts(labels, mask, num_classes) > 0).sum())) < 2:
        raise ValueError(f"training data must have at least 2 classes, got {present}. Check labels and mask.")
    strengths, p = jnp.asarray(strengths, features.dtype), min(lanes, strengths.size)
    return _solve(features, labels, mask, strengths, tolerance, max_iterations, num_classes=num_classes, p=p)


def logits(fit: Fit, features: Float[ArrayLike, "n d"]) -> Float[Array, "s n k"]:
    """x W + b at each strength; -inf for a class that had no training examples."""
    x = jnp.asarray(features, fit.weights.dtype)
    return _dot("nd,sdk->snk", x, fit.weights) + fit.bias[:, None, :]


@jax.jit
def predict(fit: Fit, features: Float[ArrayLike, "n d"]) -> Int[Array, "s n"]:
    """The class with the largest logit at each strength; holds the logits of one strength at a time."""
    x = jnp.asarray(features, fit.weights.dtype)
    return lax.map(lambda wb: (_dot("nd,dk->nk", x, wb[0]) + wb[1][None]).argmax(axis=-1), (fit.weights, fit.bias))


def select_and_test(
    train: Split,
    val: Split,
    test: Split,
    num_classes: int,
    l2: Float[ArrayLike, " s"] | Sequence[float] = L2_GRID,
    *,
    metric: Literal["top1", "mean_per_class"] = "top1",
    standardize: bool = False,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    lanes: int = 5,
) -> ProbeResult:
    """Test accuracy of the strength that is best on validation, refitted on train and validation together.

    Of strengths with equal validation accuracy the strongest is chosen.

    Args:
      train: what the strengths are compared on.
      val: what selects.
      test: what is reported.
      num_classes: k.
      l2: the strengths.
      metric: for selection and test alike. `mean_per_class` averages the recall of the classes that the split has,
        as is usual for Aircraft, Pets and Flowers (BYOL, Table 10).
      standardize: give each feature mean 0 and variance 1, by train for selection and by train and validation for
        the refit. Off in the paper; others do so (SynCLR).
      tolerance: of `fit`, as the remaining arguments.
      max_iterations: of `fit`.
      lanes: of `fit`.

    Raises:
      ValueError: as `fit`, naming the split.
    """
    if metric not in ("top1", "mean_per_class"):
        raise ValueError(f"metric must be 'top1' or 'mean_per_class', got {metric!r}.")
    named = {"train": train, "val": val, "test": test}
    rows = {name: _checked(name, *split, num_classes) for name, split in named.items()}
    if len(widths := {split.features.shape[1] for split in rows.values()}) > 1:
        raise ValueError(f"splits must have the same number of features, got {sorted(widths)}. Use one backbone.")
    how = {"tolerance": tolerance, "max_iterations": max_iterations, "lanes": lanes}

    def accuracies(fitted_on: _Rows, strengths, tested_on: _Rows) -> tuple[Fit, np.ndarray]:
        if standardize:
            fitted_on, tested_on = (_standardized(split, by=fitted_on) for split in (fitted_on, tested_on))
        found = fit(fitted_on.features, fitted_on.labels, num_classes, strengths, mask=fitted_on.mask, **how)
        return found, np.asarray(_accuracy(predict(found, tested_on.features), tested_on, num_classes, metric))

    strengths = np.atleast_1d(np.asarray(l2, np.float64))
    selection, validation_accuracy = accuracies(rows["train"], strengths, rows["val"])
    chosen = float(strengths[validation_accuracy == validation_accuracy.max()].max())
    both = _Rows(*(jnp.concatenate(pair) for pair in zip(rows["train"], rows["val"], strict=True)))
    final, (test_accuracy,) = accuracies(both, [chosen], rows["test"])
    return ProbeResult(
        protocol=f"L-BFGS linear probe, sum of cross entropies + l2/2 |W|^2, {strengths.size} strengths in "
        f"{strengths.min():g}..{strengths.max():g} selected by validation {metric}, refit on train+val, test {metric}, "
        f"features {'standardized' if standardize else 'as they come'}, relative gradient <= {tolerance:g}",
        l2=chosen,
        validation_accuracy=validation_accuracy,
        test_accuracy=float(test_accuracy),
        converged=bool(selection.converged.all() & final.converged.all()),
        worst_gradient_norm=max(float(selection.gradient_norm.max()), float(final.gradient_norm.max())),
        fit=final,
    )


def _checked(name: str, features, labels, mask, num_classes: int) -> _Rows:
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


@functools.partial(jax.jit, static_argnames="num_classes")
def _class_counts(labels: Array, mask: Array, num_classes: int) -> Array:
    return jnp.zeros(num_classes, int).at[jnp.where(mask, labels, 0)].add(mask)


@functools.partial(jax.jit, static_argnames=("num_classes", "metric"))
def _accuracy(predicted: Array, split: _Rows, num_classes: int, metric: str) -> Array:
    """The metric per strength, `s`."""
    mask, labels = split.mask, jnp.where(split.mask, split.labels, 0)
    hits = (predicted == labels[None]) & mask[None]
    if metric == "top1":
        return hits.sum(axis=1) / mask.sum()
    counts = _class_counts(labels, mask, num_classes)
    recall = jnp.zeros((len(predicted), num_classes), int).at[:, labels].add(hits) / jnp.maximum(counts, 1)[None]
    return recall.sum(axis=1) / (counts > 0).sum()


@jax.jit
def _standardized(split: _Rows, by: _Rows) -> _Rows:
    """`split` less the mean of `by` over its standard deviation, or over 1 where a feature is constant."""
    rows, count = by.mask[:, None], by.mask.sum()
    mean = jnp.where(rows, by.features, 0).sum(axis=0, keepdims=True) / count
    std = jnp.sqrt((jnp.where(rows, by.features - mean, 0) ** 2).sum(axis=0, keepdims=True) / count)
    return split._replace(features=(split.features - mean) / jnp.where(std > 0, std, 1))


class _Problem(NamedTuple):
    """Blocks of rows of [x 1], x centred and rotated to the principal axes, in which x'x is diagonal."""

    x: Array  # blocks rows d+1
    labels: Array  # blocks rows
    weight: Array  # blocks rows; 1, or 0 for padding
    absent: Array  # k; classes without examples
    eigenvalues: Array  # d+1; the diagonal of [x 1]'[x 1]
    basis: Array  # features d; principal axes
    mean: Array  # features


class _Value(NamedTuple):
    """The sum of cross entropies at one point per lane."""

    loss: Array  # p
    gradient: Array  # p d+1 k
    residual: Array  # p; |r|^2
    curvature: Array  # p; mean p (1 - p), the second derivative by a logit


class _Lanes(NamedTuple):
    """Where each lane stands. A lane solves one strength at a time and then takes the next one from the queue."""

    strength: Array  # p; rank among the strengths, strongest first; s or more when idle
    w: Array  # p d+1 k; the last row is the bias
    value: _Value  # at w
    direction: Array  # p d+1 k
    step: Array  # p; along the direction, to be tried next
    steps: Array  # memory p d+1 k
    differences: Array  # memory p d+1 k; of gradients
    rho: Array  # memory p; 1 / (step . difference), or 0 for an empty slot
    iterations: Array  # p
    rejected: Array  # p; trials since the last accepted one
    turn: Array


def _problem(features, labels, mask, num_classes: int, columns: int) -> _Problem:
    """Exact changes of variable: the bias absorbs the centring, and |W| is the same in any orthonormal basis.

    With fewer rows than features the optimum lies in the span of the rows, whose basis QR gives.
    """
    n, d = features.shape
    weight, labels = mask.astype(features.dtype), jnp.where(mask, labels, 0)
    mean = jnp.where(mask[:, None], features, 0).sum(axis=0) / weight.sum()
    x = jnp.where(mask[:, None], features - mean[None], 0)
    basis = jnp.linalg.qr(x.T)[0] if n < d else jnp.eye(d, dtype=x.dtype)
    reduced = _dot("nd,de->ne", x, basis) if n < d else x
    basis = _dot("de,ef->df", basis, jnp.linalg.eigh(_dot("nd,ne->de", reduced, reduced))[1])
    x = jnp.concatenate([_dot("nd,de->ne", x, basis), weight[:, None]], axis=1)
    blocks = -(-n * columns // BLOCK_LOGITS)
    rows = n if blocks == 1 else -(-n // (128 * blocks)) * 128  # a multiple of what rows are sharded over

    def in_blocks(a: Array) -> Array:
        # Every block takes rows from everywhere, so that a block of sharded rows is sharded as well.
        a = jnp.pad(a, [(0, blocks * rows - n)] + [(0, 0)] * (a.ndim - 1))
        return jnp.moveaxis(a.reshape(rows, blocks, *a.shape[1:]), 1, 0)

    absent = _class_counts(labels, mask, num_classes) == 0
    return _Problem(in_blocks(x), in_blocks(labels), in_blocks(weight), absent, (x * x).sum(axis=0), basis, mean)


def _evaluate(problem: _Problem, w: Array) -> _Value:
    """Loss and derivatives by the margins z - z_own, to full relative precision even where every example is right."""
    k = w.shape[-1]

    def add_block(total, block):
        x, labels, weight = block
        z = _dot("nd,pdk->npk", x, w)
        own = (labels[:, None] == jnp.arange(k)[None])[:, None, :]
        margins = z - jnp.where(own, z, 0).sum(axis=2, keepdims=True)
        margins = jnp.where(own | problem.absent[None, None, :], -jnp.inf, margins)
        top = jnp.maximum(margins.max(axis=2, keepdims=True), 0)
        others = jnp.exp(margins - top)
        sum_others = others.sum(axis=2, keepdims=True)
        loss = (top + jnp.log1p(sum_others + jnp.expm1(-top)))[:, :, 0]  # log(1 + sum exp margins)
        r = jnp.where(own, -sum_others, others) * (weight[:, None, None] / (sum_others + jnp.exp(-top)))
        curvature = (jnp.abs(r) * (1 - jnp.abs(r))).mean(axis=2).sum(axis=0)
        block = _Value(_dot("np,n->p", loss, weight), _dot("nd,npk->pdk", x, r), (r * r).sum(axis=(0, 2)), curvature)
        return jax.tree.map(jnp.add, total, block), None

    zeros = jnp.zeros(len(w), w.dtype)
    blocks = (problem.x, problem.labels, problem.weight)
    total, _ = lax.scan(add_block, _Value(zeros, jnp.zeros_like(w), zeros, zeros), blocks)
    return total._replace(curvature=total.curvature / problem.weight.sum())


def _objective(l2: Array, w: Array, value: _Value) -> tuple[Array, Array]:
    """F and its gradient; `l2` is `p d+1 1`, with zeros for the bias."""
    return value.loss + 0.5 * _inner(l2 * w, w), value.gradient + l2 * w


def _inner(a: Array, b: Array) -> Array:
    return _dot("pdk,pdk->p", a, b)


def _norm(a: Array) -> Array:
    return jnp.sqrt(_inner(a, a))


def _try_step(problem: _Problem, l2: Array, lanes: _Lanes) -> tuple[_Lanes, Array]:
    """The lanes after one trial, and which moved. A lane that did not will try a shorter step.

    Accepted is what decreases F enough (Armijo) or, where rounding hides the decrease, does not go past the minimum
    along the direction by much (the approximate Wolfe condition of Hager & Zhang 2005, Eq. 4.1).
    """
    eps, step = jnp.finfo(lanes.w.dtype).eps, lanes.step[:, None, None] * lanes.direction
    trial = lanes.w + step
    value = _evaluate(problem, trial)
    (f, g), (f_trial, g_trial) = _objective(l2, lanes.w, lanes.value), _objective(l2, trial, value)
    slope, slope_trial = _inner(g, lanes.direction), _inner(g_trial, lanes.direction)
    moved = f_trial <= f + 1e-4 * lanes.step * slope
    moved |= (f_trial <= f + 8 * eps * f) & (slope_trial <= -0.8 * slope)
    difference = g_trial - g
    curved = _inner(step, difference)  # > 0 by convexity, if rounding permits
    remember = moved & (curved > eps * _norm(step) * _norm(difference))
    slot = lanes.turn % MEMORY
    lack = f_trial - f - lanes.step * slope
    shorter = jnp.where(lack > 0, jnp.clip(-0.5 * lanes.step * slope / lack, 0.1, 0.5), 0.1)  # minimum of the parabola
    lanes = lanes._replace(
        w=_where(moved, trial, lanes.w),
        value=jax.tree.map(functools.partial(_where, moved), value, lanes.value),
        step=jnp.where(moved, 1, lanes.step * shorter),
        steps=lanes.steps.at[slot].set(step),
        differences=lanes.differences.at[slot].set(difference),
        rho=lanes.rho.at[slot].set(jnp.where(remember, 1 / jnp.where(remember, curved, 1), 0)),
        iterations=lanes.iterations + moved,
        rejected=jnp.where(moved, 0, lanes.rejected + 1),
    )
    return lanes, moved


def _where(lanes: Array, a: Array, b: Array) -> Array:
    return jnp.where(jnp.expand_dims(lanes, tuple(range(1, a.ndim))), a, b)


def _aim(problem: _Problem, l2: Array, lanes: _Lanes, moved: Array) -> _Lanes:
    """New directions -H grad F for the lanes that moved, H by the two-loop recursion (Nocedal & Wright, Alg. 7.4).

    Its initial matrix is a multiple of the inverse of (curvature * eigenvalues + l2), in these coordinates the
    Hessian if the curvature were the same for all logits.
    """
    _, g = _objective(l2, lanes.w, lanes.value)
    hessian = lanes.value.curvature[:, None, None] * problem.eigenvalues[None, :, None] + l2
    inverse = 1 / jnp.maximum(hessian, jnp.finfo(g.dtype).tiny)
    newest = lanes.turn % MEMORY
    y, rho = lanes.differences[newest], lanes.rho[newest]
    inverse *= jnp.where(rho > 0, 1 / jnp.where(rho > 0, rho * _inner(y, inverse * y), 1), 1)[:, None, None]

    def backward(i, carry):
        q, alphas = carry
        j = (newest - i) % MEMORY
        alpha = lanes.rho[j] * _inner(lanes.steps[j], q)
        return q - alpha[:, None, None] * lanes.differences[j], alphas.at[j].set(alpha)

    def forward(i, q):
        j = (newest + 1 + i) % MEMORY
        beta = lanes.rho[j] * _inner(lanes.differences[j], q)
        return q + (alphas[j] - beta)[:, None, None] * lanes.steps[j]

    q, alphas = lax.fori_loop(0, MEMORY, backward, (g, jnp.zeros_like(lanes.rho)))
    direction = -lax.fori_loop(0, MEMORY, forward, inverse * q)
    descends = _inner(direction, g) < 0
    direction = _where(descends, direction, -inverse * g)
    rho = jnp.where(descends[None], lanes.rho, 0)  # what rounding has spoilt is forgotten
    return lanes._replace(direction=_where(moved, direction, lanes.direction), rho=rho, turn=lanes.turn + 1)


@functools.partial(jax.jit, static_argnames=("num_classes", "p"))
def _solve(features, labels, mask, strengths, tolerance, max_iterations, *, num_classes: int, p: int) -> Fit:
    """`fit`, the strongest penalty first: along the path that a lane follows the penalty weakens."""
    problem = _problem(features, labels, mask, num_classes, p * num_classes)
    d, s, dtype = problem.x.shape[-1], len(strengths), features.dtype
    spectral = jnp.sqrt(problem.eigenvalues.max())
    order = jnp.argsort(-strengths)
    penalised = (jnp.arange(d) < d - 1).astype(dtype)[None, :, None]

    def l2_of(lanes: _Lanes) -> Array:
        return strengths[order[jnp.minimum(lanes.strength, s - 1)]][:, None, None] * penalised

    def turn(carry):
        lanes, found = carry
        l2 = l2_of(lanes)
        lanes, moved = _try_step(problem, l2, lanes)
        f, g = _objective(l2, lanes.w, lanes.value)
        scale = spectral * jnp.sqrt(lanes.value.residual) + _norm(l2 * lanes.w)
        relative = _norm(g) / jnp.maximum(scale, jnp.finfo(dtype).tiny)
        ended = (relative <= tolerance) | (lanes.iterations >= max_iterations) | (lanes.rejected > 30)
        ended &= lanes.strength < s
        now = Fit(lanes.w[:, :-1], lanes.w[:, -1], f, relative, lanes.iterations, relative <= tolerance)
        rows = jnp.where(ended, order[jnp.minimum(lanes.strength, s - 1)], s)  # row s does not exist: dropped
        found = jax.tree.map(lambda to, of: to.at[rows].set(of, mode="drop"), found, now)
        lanes = lanes._replace(
            strength=jnp.where(ended, lanes.strength.max() + jnp.cumsum(ended), lanes.strength),
            step=jnp.where(ended, 1, lanes.step),
            rho=jnp.where(ended[None], 0, lanes.rho),
            iterations=jnp.where(ended, 0, lanes.iterations),
            rejected=jnp.where(ended, 0, lanes.rejected),
        )
        return _aim(problem, l2_of(lanes), lanes, moved | ended), found

    w = jnp.zeros((p, d, num_classes), dtype)
    memory, ones, counts = jnp.zeros((MEMORY, *w.shape), dtype), jnp.ones(p, dtype), jnp.zeros(p, int)
    empty = jnp.zeros((MEMORY, p), dtype)
    # The first turn steps from nowhere to w = 0: it is accepted, as any loss is below infinity, and not counted.
    nowhere = _Value(jnp.inf * ones, w, ones, ones)
    lanes = _Lanes(jnp.arange(p), w, nowhere, w, ones, memory, memory, empty, counts - 1, counts, jnp.asarray(0))
    found = Fit(*(jnp.zeros((s, *a.shape[1:]), a.dtype) for a in (w[:, :-1], w[:, -1], ones, ones, counts, ones > 0)))
    _, found = lax.while_loop(lambda carry: (carry[0].strength < s).any(), turn, (lanes, found))
    weights = _dot("de,sek->sdk", problem.basis, found.weights)
    bias = found.bias - _dot("d,sdk->sk", problem.mean, weights)
    return found._replace(weights=weights, bias=jnp.where(problem.absent[None], -jnp.inf, bias))
