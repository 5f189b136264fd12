"""L-BFGS along the regularization path of multinomial logistic regression: all strengths as one program.

The solver behind `linear`, where the objective F is stated. From each strength to the next it takes three things:
the optimum; the direction in which optima have moved so far, as the first one to step along; and all pairs of steps
and gradient differences, which are kept without the penalty's part, exact at every strength. Together they save three
quarters of the iterations.

Shapes: n examples, d features, k classes, s strengths, p strengths being solved at the moment ("lanes").
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from vcreg_jax.probes.logistic import Problem, Value, dot, evaluate, make_problem

MEMORY = 10  # steps, with their gradient differences, that L-BFGS remembers


class Fit(NamedTuple):
    """The optimum at each strength, and how well it was reached.

    Attributes:
      weights: `(s, d, k)`.
      bias: `(s, k)`; sums to 0 over the classes present, and is -inf for a class without examples.
      objective: F in nats, summed over examples, `(s,)`.
      gradient_norm: relative, what `tolerance` bounds, `(s,)`.
      iterations: accepted steps, `(s,)`.
      converged: whether `gradient_norm` came under `tolerance`, `(s,)`.
    """

    weights: Float[Array, "s d k"]
    bias: Float[Array, "s k"]
    objective: Float[Array, " s"]
    gradient_norm: Float[Array, " s"]
    iterations: Int[Array, " s"]
    converged: Bool[Array, " s"]


class _Lanes(NamedTuple):
    """Where each lane stands. A lane solves one strength at a time and then takes the next one from the queue."""

    strength: Array  # p; rank among the strengths, strongest first; s or more when idle
    w: Array  # p k d+1; the last row is the bias
    value: Value  # at w
    direction: Array  # p k d+1
    step: Array  # p; along the direction, to be tried next
    steps: Array  # memory p k d+1
    differences: Array  # memory p k d+1; of the loss's gradients
    curved: Array  # memory p; step . difference, or -inf for an empty slot
    lengths: Array  # memory p; |step|^2, penalised parameters only
    optima: Array  # 3 p k d+1; newest first
    places: Array  # 3 p; the logarithms of their strengths, or inf where there are not so many yet
    iterations: Array  # p
    rejected: Array  # p; trials since the last accepted one
    turn: Array


def _objective(l2: Array, w: Array, value: Value) -> tuple[Array, Array]:
    """F and its gradient; `l2` is `p 1 d+1`, with zeros for the bias."""
    return value.loss + 0.5 * _inner(l2 * w, w), value.gradient + l2 * w


def _inner(a: Array, b: Array) -> Array:
    return dot("pkd,pkd->p", a, b)


def _norm(a: Array) -> Array:
    return jnp.sqrt(_inner(a, a))


def _try_step(problem: Problem, l2: Array, lanes: _Lanes) -> tuple[_Lanes, Array]:
    """The lanes after one trial, and which moved. A lane that did not will try a shorter step.

    Accepted is what decreases F enough (Armijo) or, where rounding hides the decrease, does not go past the minimum
    along the direction by much (the approximate Wolfe condition of Hager & Zhang 2005, Eq. 4.1).
    """
    eps, step = jnp.finfo(lanes.w.dtype).eps, lanes.step[:, None, None] * lanes.direction
    trial = lanes.w + step
    value = evaluate(problem, trial)
    (f, g), (f_trial, g_trial) = _objective(l2, lanes.w, lanes.value), _objective(l2, trial, value)
    slope, slope_trial = _inner(g, lanes.direction), _inner(g_trial, lanes.direction)
    moved = f_trial <= f + 1e-4 * lanes.step * slope
    moved |= (f_trial <= f + 8 * eps * f) & (slope_trial <= -0.8 * slope)
    difference = value.gradient - lanes.value.gradient
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
        curved=lanes.curved.at[slot].set(jnp.where(remember, curved, -jnp.inf)),
        lengths=lanes.lengths.at[slot].set(_inner(step[:, :, :-1], step[:, :, :-1])),
        iterations=lanes.iterations + moved,
        rejected=jnp.where(moved, 0, lanes.rejected + 1),
    )
    return lanes, moved


def _push(lanes: Array, newest_first: Array, a: Array) -> Array:
    return jax.vmap(functools.partial(_where, lanes))(jnp.concatenate([a[None], newest_first[:-1]]), newest_first)


def _where(lanes: Array, a: Array, b: Array) -> Array:
    return jnp.where(jnp.expand_dims(lanes, tuple(range(1, a.ndim))), a, b)


def _aim(problem: Problem, l2: Array, lanes: _Lanes, moved: Array) -> _Lanes:
    """New directions -H grad F for the lanes that moved, H by the two-loop recursion (Nocedal & Wright, Alg. 7.4).

    Its initial matrix is a multiple of the inverse of (curvature * eigenvalues + l2), in these coordinates the
    Hessian if the curvature were the same for all logits.
    """
    _, g = _objective(l2, lanes.w, lanes.value)
    hessian = lanes.value.curvature[:, None, None] * problem.eigenvalues[None, None, :] + l2
    inverse = 1 / jnp.maximum(hessian, jnp.finfo(g.dtype).tiny)
    kept = lanes.curved > 0
    rho = jnp.where(kept, 1 / jnp.where(kept, lanes.curved + l2[None, :, 0, 0] * lanes.lengths, 1), 0)
    newest = lanes.turn % MEMORY

    def difference(j) -> Array:
        return lanes.differences[j] + l2 * lanes.steps[j]

    y = difference(newest)
    by_newest = 1 / jnp.where(kept[newest], rho[newest] * _inner(y, inverse * y), 1)
    inverse *= by_newest[:, None, None]

    def backward(i, carry):
        q, alphas = carry
        j = (newest - i) % MEMORY
        alpha = rho[j] * _inner(lanes.steps[j], q)
        return q - alpha[:, None, None] * difference(j), alphas.at[j].set(alpha)

    def forward(i, q):
        j = (newest + 1 + i) % MEMORY
        beta = rho[j] * _inner(difference(j), q)
        return q + (alphas[j] - beta)[:, None, None] * lanes.steps[j]

    q, alphas = lax.fori_loop(0, MEMORY, backward, (g, jnp.zeros_like(rho)))
    direction = -lax.fori_loop(0, MEMORY, forward, inverse * q)
    descends = _inner(direction, g) < 0
    direction = _where(descends, direction, -inverse * g)
    curved = jnp.where(descends[None], lanes.curved, -jnp.inf)  # what rounding has spoilt is forgotten
    return lanes._replace(
        direction=_where(moved, direction, lanes.direction), curved=curved, turn=lanes.turn + moved.any()
    )


def _aim_onward(l2: Array, lanes: _Lanes, ended: Array) -> _Lanes:
    """Where lanes that took a new strength have optima to go by, the direction to where the next one should lie.

    That is on the parabola through the last three, over the logarithm of the strength.
    """
    newer = jnp.concatenate([jnp.full_like(lanes.places[:1], -jnp.inf), lanes.places[:-1]])
    known = (lanes.places > newer) & (lanes.places < jnp.inf)  # equal strengths are one place
    gaps = lanes.places[:, None] - lanes.places[None]
    pairs = known[:, None] & known[None] & ~jnp.eye(len(known), dtype=bool)[:, :, None]
    factors = (jnp.log(l2[:, 0, 0])[None, None] - lanes.places[None]) / jnp.where(pairs, gaps, 1)
    weights = jnp.where(known, jnp.where(pairs, factors, 1).prod(axis=1), 0)  # Lagrange's
    onward = dot("op,opkd->pkd", weights, lanes.optima) - lanes.w
    _, g = _objective(l2, lanes.w, lanes.value)
    descends = ended & (known.sum(axis=0) > 1) & (_inner(onward, g) < 0)
    return lanes._replace(direction=_where(descends, onward, lanes.direction))


def _start(w: Array) -> _Lanes:
    """The first turn steps from nowhere to w = 0: it is accepted, as any loss is below infinity, and not counted."""
    p, dtype = len(w), w.dtype
    ones, memory, empty = (
        jnp.ones(p, dtype),
        jnp.zeros((MEMORY, *w.shape), dtype),
        jnp.full((MEMORY, p), -jnp.inf, dtype),
    )
    return _Lanes(
        strength=jnp.arange(p),
        w=w,
        value=Value(jnp.inf * ones, w, ones, ones),
        direction=w,
        step=ones,
        steps=memory,
        differences=memory,
        curved=empty,
        lengths=empty,
        optima=jnp.zeros((3, *w.shape), dtype),
        places=jnp.full((3, p), jnp.inf, dtype),
        iterations=jnp.full(p, -1),
        rejected=jnp.zeros(p, int),
        turn=jnp.asarray(0),
    )


@functools.partial(jax.jit, static_argnames=("num_classes", "p", "warm_start"))
def solve(
    features, labels, mask, strengths, tolerance, max_iterations, *, num_classes: int, p: int, warm_start: bool = True
) -> Fit:
    """`fit`, the strongest penalty first: along the path that a lane follows the penalty weakens."""
    problem = make_problem(features, labels, mask, num_classes, p * num_classes)
    d, s, dtype = problem.x.shape[-1], len(strengths), features.dtype
    spectral = jnp.sqrt(problem.eigenvalues.max())
    order = jnp.argsort(-strengths)
    penalised = (jnp.arange(d) < d - 1).astype(dtype)[None, None, :]

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
        now = Fit(lanes.w[:, :, :-1], lanes.w[:, :, -1], f, relative, lanes.iterations, relative <= tolerance)
        rows = jnp.where(ended, order[jnp.minimum(lanes.strength, s - 1)], s)  # row s does not exist: dropped
        found = jax.tree.map(lambda to, of: to.at[rows].set(of, mode="drop"), found, now)
        lanes = lanes._replace(
            strength=jnp.where(ended, lanes.strength.max() + jnp.cumsum(ended), lanes.strength),
            step=jnp.where(ended, 1, lanes.step),
            optima=_push(ended, lanes.optima, lanes.w),
            places=_push(ended, lanes.places, jnp.log(l2[:, 0, 0])),
            iterations=jnp.where(ended, 0, lanes.iterations),
            rejected=jnp.where(ended, 0, lanes.rejected),
        )
        if not warm_start:
            lanes = lanes._replace(
                w=_where(ended, w, lanes.w),
                value=jax.tree.map(functools.partial(_where, ended), nowhere, lanes.value),
                curved=jnp.where(ended[None], -jnp.inf, lanes.curved),
                iterations=lanes.iterations - ended,
            )
        lanes = _aim(problem, l2_of(lanes), lanes, moved | ended)
        return (_aim_onward(l2_of(lanes), lanes, ended) if warm_start else lanes), found

    lanes = _start(jnp.zeros((p, num_classes, d), dtype))
    w, nowhere = lanes.w, lanes.value
    ones, counts = jnp.ones(p, dtype), jnp.zeros(p, int)
    found = Fit(
        *(jnp.zeros((s, *a.shape[1:]), a.dtype) for a in (w[:, :, :-1], w[:, :, -1], ones, ones, counts, ones > 0))
    )
    _, found = lax.while_loop(lambda carry: (carry[0].strength < s).any(), turn, (lanes, found))
    weights = dot("de,ske->sdk", problem.basis, found.weights)
    bias = found.bias - dot("d,sdk->sk", problem.mean, weights)
    return found._replace(weights=weights, bias=jnp.where(problem.absent[None], -jnp.inf, bias))
