"""Batched L-BFGS for multinomial logistic regression: many regularization strengths as one program.

The solver behind `train.probe`, where the objective F is stated. Shapes: n examples, d features, k classes,
s strengths, p strengths being solved at the moment ("lanes").
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

MEMORY = 10  # steps, with their gradient differences, that L-BFGS remembers
BLOCK_LOGITS = 2**21  # logits in memory at once while solving

dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # accelerators would otherwise round operands


class Fit(NamedTuple):
    """The optimum at each strength, and how well it was reached."""

    weights: Float[Array, "s d k"]
    bias: Float[Array, "s k"]  # sums to 0 over the classes present; -inf for a class without examples
    objective: Float[Array, " s"]  # F in nats, summed over examples
    gradient_norm: Float[Array, " s"]  # relative: what `tolerance` bounds
    iterations: Int[Array, " s"]  # accepted steps
    converged: Bool[Array, " s"]


@functools.partial(jax.jit, static_argnames="num_classes")
def class_counts(labels: Array, mask: Array, num_classes: int) -> Array:
    """How many unmasked examples each class has."""
    return jnp.zeros(num_classes, int).at[jnp.where(mask, labels, 0)].add(mask)


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
    reduced = dot("nd,de->ne", x, basis) if n < d else x
    basis = dot("de,ef->df", basis, jnp.linalg.eigh(dot("nd,ne->de", reduced, reduced))[1])
    x = jnp.concatenate([dot("nd,de->ne", x, basis), weight[:, None]], axis=1)
    blocks = -(-n * columns // BLOCK_LOGITS)
    rows = n if blocks == 1 else -(-n // (128 * blocks)) * 128  # a multiple of what rows are sharded over

    def in_blocks(a: Array) -> Array:
        # Every block takes rows from everywhere, so that a block of sharded rows is sharded as well.
        a = jnp.pad(a, [(0, blocks * rows - n)] + [(0, 0)] * (a.ndim - 1))
        return jnp.moveaxis(a.reshape(rows, blocks, *a.shape[1:]), 1, 0)

    absent = class_counts(labels, mask, num_classes) == 0
    return _Problem(in_blocks(x), in_blocks(labels), in_blocks(weight), absent, (x * x).sum(axis=0), basis, mean)


def _evaluate(problem: _Problem, w: Array) -> _Value:
    """Loss and derivatives by the margins z - z_own, to full relative precision even where every example is right."""
    k = w.shape[-1]

    def add_block(total, block):
        x, labels, weight = block
        z = dot("nd,pdk->npk", x, w)
        own = (labels[:, None] == jnp.arange(k)[None])[:, None, :]
        margins = z - jnp.where(own, z, 0).sum(axis=2, keepdims=True)
        margins = jnp.where(own | problem.absent[None, None, :], -jnp.inf, margins)
        top = jnp.maximum(margins.max(axis=2, keepdims=True), 0)
        others = jnp.exp(margins - top)
        sum_others = others.sum(axis=2, keepdims=True)
        loss = (top + jnp.log1p(sum_others + jnp.expm1(-top)))[:, :, 0]  # log(1 + sum exp margins)
        r = jnp.where(own, -sum_others, others) * (weight[:, None, None] / (sum_others + jnp.exp(-top)))
        curvature = (jnp.abs(r) * (1 - jnp.abs(r))).mean(axis=2).sum(axis=0)
        block = _Value(dot("np,n->p", loss, weight), dot("nd,npk->pdk", x, r), (r * r).sum(axis=(0, 2)), curvature)
        return jax.tree.map(jnp.add, total, block), None

    zeros = jnp.zeros(len(w), w.dtype)
    blocks = (problem.x, problem.labels, problem.weight)
    total, _ = lax.scan(add_block, _Value(zeros, jnp.zeros_like(w), zeros, zeros), blocks)
    return total._replace(curvature=total.curvature / problem.weight.sum())


def _objective(l2: Array, w: Array, value: _Value) -> tuple[Array, Array]:
    """F and its gradient; `l2` is `p d+1 1`, with zeros for the bias."""
    return value.loss + 0.5 * _inner(l2 * w, w), value.gradient + l2 * w


def _inner(a: Array, b: Array) -> Array:
    return dot("pdk,pdk->p", a, b)


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


@functools.partial(jax.jit, static_argnames=("num_classes", "p", "warm_start"))
def solve(
    features, labels, mask, strengths, tolerance, max_iterations, *, num_classes: int, p: int, warm_start: bool = True
) -> Fit:
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
        if not warm_start:
            lanes = lanes._replace(
                w=_where(ended, w, lanes.w),
                value=jax.tree.map(functools.partial(_where, ended), nowhere, lanes.value),
                iterations=lanes.iterations - ended,
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
    weights = dot("de,sek->sdk", problem.basis, found.weights)
    bias = found.bias - dot("d,sdk->sk", problem.mean, weights)
    return found._replace(weights=weights, bias=jnp.where(problem.absent[None], -jnp.inf, bias))
