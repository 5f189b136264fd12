"""Mutual information between inputs and features by a neural lower bound: MINE, with SMILE and InfoNCE beside it.

found = vc.mine.estimate(x, z, held_out_x, held_out_z, key=jax.random.key(0))
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jaxtyping import Float, Int, Key

from vcreg_jax.regularizers.statistics import less, mean_of

Params = dict[str, Any]

_FAR = 5.0  # standard deviations to which inputs are clipped: those never seen in training would decide E[exp T]


@dataclass(frozen=True)
class Settings:
    """The critic and its training. Estimates are comparable only under equal settings.

    Args:
      width: of the two hidden layers of each embedding.
      embedding: dimensions in which the embeddings of x and z meet.
      batch_size: pairs, at least 2; all others in the batch serve as the product of the marginals.
      steps: of training.
      learning_rate: Adam's, falling to 0 as half a cosine.
      average_rate: of the moving average of E[exp T] in the bias-corrected gradient.
      clip: SMILE's tau.
      critics: trained from different keys, for the spread.

    Raises:
      ValueError: for fewer than 2 pairs, 1 step or 1 critic.
    """

    width: int = 128
    embedding: int = 64
    batch_size: int = 512
    steps: int = 2000
    learning_rate: float = 3e-3
    average_rate: float = 0.01
    clip: float = 5.0
    critics: int = 3

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.steps < 1 or self.critics < 1:
            raise ValueError(f"mine needs batch_size >= 2, steps >= 1 and critics >= 1, got {self}.")


class Estimate(NamedTuple):
    """Nats on held-out pairs: means over critics, and their standard deviations (n - 1; NaN for one critic).

    Attributes:
      mine: Donsker and Varadhan's bound, which MINE maximizes.
      mine_std: its deviation.
      smile: SMILE's, with less variance and some bias.
      smile_std: its deviation.
      info_nce: InfoNCE's, which cannot exceed `log_batch_size`.
      info_nce_std: its deviation.
      log_batch_size: of the blocks of held-out pairs in which InfoNCE is taken.
    """

    mine: float
    mine_std: float
    smile: float
    smile_std: float
    info_nce: float
    info_nce_std: float
    log_batch_size: float


def estimate(
    x: Float[Array, "n a"],
    z: Float[Array, "n b"],
    held_out_x: Float[Array, "m a"],
    held_out_z: Float[Array, "m b"],
    *,
    key: Key[Array, ""],
    settings: Settings = Settings(),
) -> Estimate:
    """Bound I(X; Z) from below in nats, by critics trained on the pairs `x, z` and read out on the held-out ones.

    The critic is T(x, z) = a(x)'b(z) + u(x) + v(z), so that a batch's B^2 scores are one product. All four are a
    perceptron's output plus one linear in the inputs, for u and v in their squares (the best critic of jointly Gaussian
    pairs has that form); inputs are standardised by the training pairs and clipped to 5 deviations. It climbs
    E_joint[T] - log E_marginals[exp T] (MINE, Eq. 10) along the gradient whose denominator is a moving average of
    E[exp T], which corrects its bias (Eq. 12), clipped to norm 1. The state with the largest InfoNCE on the last tenth
    of the training pairs, which it does not train on, is read out:

        mine       E_joint[T] - log E_marginals[exp T]
        smile      the same with T clipped to [-clip, clip] in the second term, T being shifted so that that term was 0
                   (MINE leaves its offset free)
        info_nce   E_joint[T] - E log mean_j exp T_ij, the positive pair among the j

    The marginals are all pairs (i, j), i != j, of the held-out set, so m is what bounds precision; m^2 scores are
    taken a row at a time.

    **A comparison, not a measurement.** Features are a deterministic function of the input, so I(X; f(X)) is infinite
    for continuous X, and log m for m distinct images. What is found is how much of it a given critic can see:
    compare two networks under equal settings, data and treatment of x, and nothing else. No bound from m samples
    certifies more than about log m (McAllester & Stratos, arXiv 1811.04251).

    Args:
      x: of the training pairs, such as pixels or a layer's features, `(n, a)`.
      z: of the training pairs, `(n, b)`.
      held_out_x: `(m, a)`.
      held_out_z: `(m, b)`.
      key: draws the critics and their batches.
      settings: of the critics and their training.

    Returns:
      An `Estimate`.

    Raises:
      ValueError: for sets whose rows do not pair up, and for fewer training pairs than 10 or held-out ones than 2.

    Examples:
      >>> import jax
      >>> import vcreg_jax as vc
      >>> x = jax.random.normal(jax.random.key(0), (600, 1))
      >>> z = x + 0.1 * jax.random.normal(jax.random.key(1), (600, 1))
      >>> settings = vc.mine.Settings(steps=10, critics=1, batch_size=64)
      >>> found = vc.mine.estimate(x[:500], z[:500], x[500:], z[500:], key=jax.random.key(2), settings=settings)
      >>> found.info_nce <= found.log_batch_size
      True

    Reference:
      Belghazi et al., "MINE" (arXiv 1801.04062), Eq. 10 and 12; SMILE: Song & Ermon, "Understanding the Limitations of
      Variational Mutual Information Estimators" (arXiv 1910.06222); InfoNCE: van den Oord et al. (arXiv 1807.03748).
    """
    if len(x) != len(z) or len(held_out_x) != len(held_out_z) or len(x) < 10 or len(held_out_x) < 2:
        raise ValueError(
            "mine needs as many rows of x as of z, at least 10 in training and 2 held out, got "
            f"{len(x)} and {len(z)}, {len(held_out_x)} and {len(held_out_z)}."
        )
    (x, held_out_x), (z, held_out_z) = _standardize(x, held_out_x), _standardize(z, held_out_z)
    fit = jax.vmap(functools.partial(_fit, settings), in_axes=(None, None, 0))
    critics = fit(x, z, jax.random.split(key, settings.critics))
    bounds = [_read_out(settings, critic, held_out_x, held_out_z) for critic in _unstack(critics)]
    values = jnp.asarray(bounds)
    spread = values.std(axis=0, ddof=1) if len(bounds) > 1 else jnp.full(3, jnp.nan)
    pairs = zip(values.mean(axis=0).tolist(), spread.tolist(), strict=True)
    log_batch_size = math.log(min(settings.batch_size, len(held_out_x)))
    return Estimate(*(number for pair in pairs for number in pair), log_batch_size=log_batch_size)


def _standardize(train: Array, held_out: Array) -> tuple[Array, Array]:
    mean = mean_of(train)
    std = jnp.sqrt((less(train, mean) ** 2).mean(axis=0, keepdims=True))
    scale = jnp.where(std > 0, std, 1)
    return jnp.clip(less(train, mean) / scale, -_FAR, _FAR), jnp.clip(less(held_out, mean) / scale, -_FAR, _FAR)


def _unstack(critics: Any) -> list[Any]:
    count = len(jax.tree.leaves(critics)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], critics) for i in range(count)]


@functools.partial(jax.jit, static_argnums=0)
def _fit(settings: Settings, x: Array, z: Array, key: Array) -> tuple[Params, Params]:
    """The embeddings of x and of z with the best bound on the last tenth of the pairs."""
    start_key, batch_key = jax.random.split(key)
    sizes = (settings.width, settings.width, settings.embedding)
    critic = tuple(
        _initial((side.shape[1], *sizes), k) for side, k in zip((x, z), jax.random.split(start_key), strict=True)
    )
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    fitting = len(x) - len(x) // 10
    chosen = slice(fitting, fitting + 4 * settings.batch_size)
    blocks = min(50, settings.steps)

    def step(carry: Any, t: Array) -> tuple[Any, None]:
        critic, opt_state, log_average = carry
        rows = jax.random.randint(jax.random.fold_in(batch_key, t), (settings.batch_size,), 0, fitting)
        rate = jnp.where(t == 0, 1.0, settings.average_rate)
        gradients, log_average = jax.grad(_loss, has_aux=True)(critic, x[rows], z[rows], log_average, rate)
        updates, opt_state = optimizer.update(gradients, opt_state, critic)
        return (optax.apply_updates(critic, updates), opt_state, log_average), None

    def block(carry: Any, first: Array) -> tuple[Any, None]:
        training, best, best_bound = carry
        training, _ = lax.scan(step, training, first + jnp.arange(settings.steps // blocks))
        bound = _info_nce(*_sides(training[0], x[chosen], z[chosen]), settings.batch_size)
        best = jax.tree.map(lambda new, old: jnp.where(bound > best_bound, new, old), training[0], best)
        return (training, best, jnp.maximum(bound, best_bound)), None

    start = (critic, optimizer.init(critic), jnp.zeros(()))
    silent = jax.tree.map(jnp.zeros_like, critic)  # T = 0, whose bound is 0: better than any that is below
    firsts = jnp.arange(blocks) * (settings.steps // blocks)
    (_, best, _), _ = lax.scan(block, (start, silent, jnp.zeros(())), firsts)
    return best


def _loss(critic: Any, x: Array, z: Array, log_average: Array, rate: Array) -> tuple[Array, Array]:
    """A function with the gradient E_marginals[exp(T) T'] / average - E_joint[T'], and the logarithm of the average.

    This batch is part of the average, which therefore bounds what one batch can do by 1 / rate.
    """
    joint, log_mean = _bound_parts(critic, x, z)
    log_average = jnp.logaddexp(jnp.log1p(-rate) + log_average, jnp.log(rate) + lax.stop_gradient(log_mean))
    return jnp.exp(log_mean - log_average) - joint, log_average


def _bound_parts(critic: Any, x: Array, z: Array) -> tuple[Array, Array]:
    a, b = _sides(critic, x, z)
    scores = a @ b.T
    n = len(scores)
    apart = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, scores)
    return jnp.diagonal(scores).mean(), jax.nn.logsumexp(apart) - math.log(n * (n - 1))


@functools.partial(jax.jit, static_argnums=0)
def _read_out(settings: Settings, critic: Any, x: Array, z: Array) -> Float[Array, "3"]:
    """MINE's, SMILE's and InfoNCE's bound on all pairs of `x` and `z`."""
    a, b = _sides(critic, x, z)
    n = len(a)

    def log_mean(of_scores: Callable[[Array], Array]) -> Array:
        def of_row(i: Int[Array, ""]) -> Array:
            return jax.nn.logsumexp(jnp.where(jnp.arange(n) == i, -jnp.inf, of_scores(b @ a[i])))

        return jax.nn.logsumexp(lax.map(of_row, jnp.arange(n))) - math.log(n * (n - 1))

    offset = log_mean(lambda scores: scores)
    bound = jnp.sum(a * b, axis=-1).mean() - offset
    clipped = log_mean(lambda scores: jnp.clip(scores - offset, -settings.clip, settings.clip))
    return jnp.stack([bound, bound - clipped, _info_nce(a, b, settings.batch_size)])


def _info_nce(a: Array, b: Array, batch_size: int) -> Array:
    """Over blocks of at most `batch_size` pairs; rows that make no whole block are left out."""
    size = min(batch_size, len(a))
    a, b = (side[: len(side) // size * size].reshape(-1, size, side.shape[-1]) for side in (a, b))
    scores = jnp.einsum("kid,kjd->kij", a, b)
    joint = jnp.diagonal(scores, axis1=1, axis2=2)
    return jnp.mean(joint - jax.nn.logsumexp(scores, axis=-1)) + math.log(size)


def _initial(sizes: tuple[int, ...], key: Array) -> Params:
    keys = jax.random.split(key, len(sizes))
    shapes = [*itertools.pairwise((*sizes[:-1], sizes[-1] + 1)), (sizes[0], sizes[-1])]
    *kernels, linear = [jax.random.normal(k, (a, b)) / math.sqrt(a) for k, (a, b) in zip(keys, shapes, strict=True)]
    biases = [jnp.zeros(kernel.shape[1]) for kernel in kernels]
    return {"kernels": kernels, "biases": biases, "linear": linear, "squares": jnp.zeros(sizes[0])}


def _sides(critic: Any, x: Array, z: Array) -> tuple[Array, Array]:
    """Rows [a(x), u(x), 1] and [b(z), 1, v(z)], whose products are the scores."""
    (a, u), (b, v) = (_embed(params, rows) for params, rows in zip(critic, (x, z), strict=True))
    return jnp.concatenate([a, u, jnp.ones_like(u)], axis=1), jnp.concatenate([b, jnp.ones_like(v), v], axis=1)


def _embed(params: Params, rows: Array) -> tuple[Array, Array]:
    """a and u, or b and v, scaled so that scores start near 1 in size."""
    *hidden, last = zip(params["kernels"], params["biases"], strict=True)
    h = rows
    for kernel, bias in hidden:
        h = math.sqrt(2) * jax.nn.relu(h @ kernel + bias[None])
    h = h @ last[0] + last[1][None]
    potential = h[:, -1:] + rows**2 @ params["squares"][:, None]
    return (h[:, :-1] + rows @ params["linear"]) / (4 * params["linear"].shape[1]) ** 0.25, potential
