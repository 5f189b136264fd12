"""A small world model: a digit moves over a canvas, and the next frame's features are predicted from the last two.

Nothing but the prediction is asked for, so features that are the same for all frames are perfect: they collapse. With a
regularizer in the encoder they cannot, and a linear probe reads from them where the digit is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge

import vcreg_jax as vc

SIDE, FRAMES, WIDTH = 16, 5, 32
STEPS, BATCH_SIZE, LEARNING_RATE = 800, 128, 1e-3


def sequences(images: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each 8 x 8 image moving straight over a canvas: frames (n, time, pixels), and where it is, (n, time, 2)."""
    n, free = len(images), SIDE - 8
    velocity = rng.integers(-1, 2, (n, 1, 2))
    travel = velocity * (FRAMES - 1)
    start = rng.integers(np.maximum(0, -travel), free - np.maximum(0, travel) + 1)
    places = start + velocity * np.arange(FRAMES)[None, :, None]
    frames = np.zeros((n, FRAMES, SIDE, SIDE), np.float32)
    rows, columns = places[..., 0, None, None], places[..., 1, None, None]
    sequence, time = np.arange(n)[:, None, None, None], np.arange(FRAMES)[None, :, None, None]
    frames[sequence, time, rows + np.arange(8)[:, None], columns + np.arange(8)] = images[:, None]
    return frames.reshape(n, FRAMES, -1), places


class WorldModel(nnx.Module):
    """An encoder of frames, and a predictor of the next frame's features from those of two frames."""

    def __init__(self, rngs: nnx.Rngs):
        self.encoder = nnx.Sequential(
            nnx.Linear(SIDE**2, 256, rngs=rngs),
            nnx.gelu,
            nnx.Linear(256, 128, rngs=rngs),
            nnx.gelu,
            nnx.Linear(128, WIDTH, rngs=rngs),
        )
        self.predictor = nnx.Sequential(
            nnx.Linear(2 * WIDTH, 128, rngs=rngs), nnx.gelu, nnx.Linear(128, WIDTH, rngs=rngs)
        )

    def __call__(self, frames: jax.Array) -> jax.Array:
        """The mean squared error of predicting frames 3, 4, ... of every sequence, in features."""
        z = self.encoder(frames)
        predicted = self.predictor(jnp.concatenate([z[:, :-2], z[:, 1:-1]], axis=-1))
        return ((predicted - z[:, 2:]) ** 2).mean()


def train(model: WorldModel, images: np.ndarray) -> WorldModel:
    """The model, trained on new sequences at every step; no target network, no stop-gradient."""
    graphdef, params = nnx.split(model)
    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(params, state, frames):
        def loss(params):
            return vc.at_step(nnx.merge(graphdef, params), state[0].count)(frames)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(0), optimizer.init(params)
    for _ in range(STEPS):
        frames, _ = sequences(images[rng.integers(0, len(images), BATCH_SIZE)], rng)
        params, state = step(params, state, frames)
    return nnx.merge(graphdef, params)


def main() -> dict[str, dict[str, float]]:
    """Prints, and returns, what held-out frames' features hold without a regularizer and with two, one seed."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    is_test = np.arange(len(images)) % 5 == 0
    frames, places = sequences(images, np.random.default_rng(1))
    arms = {
        "none": vc.identity,
        "VCReg": vc.VCReg(alpha=10.0, beta=1.0),
        "SIGReg, every step": vc.over_time(vc.SIGReg(weight=0.1), "per_step"),
    }
    found = {}
    for arm, reg in arms.items():
        model = WorldModel(nnx.Rngs(0))
        if reg is not vc.identity:
            vc.attach(model, reg, where="encoder")
        z = np.asarray(jax.jit(train(model, images[~is_test]).encoder)(frames))
        where = Ridge(1e-3).fit(z[~is_test, -1], places[~is_test, -1])
        which = LogisticRegression(max_iter=1000).fit(z[~is_test, -1], digits[~is_test])
        last = z[is_test, -1]
        found[arm] = {
            "spread": float(last.std(axis=0).mean()),
            "effective rank": float(vc.metrics.effective_rank(jnp.asarray(last))),
            "position, R^2": float(where.score(last, places[is_test, -1])),
            "digit (%)": 100 * float(which.score(last, digits[is_test])),
        }
        print(f"{arm:18}", ", ".join(f"{name} {value:.3g}" for name, value in found[arm].items()), flush=True)
    return found


if __name__ == "__main__":
    main()
