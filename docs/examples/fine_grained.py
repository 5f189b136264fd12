"""Fine-grained transfer with a model of one's own: trained to see closed loops in digits, then probed for the digit.

The network knows nothing of VCReg; `vc.attach` is the one line that gives it some.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import vcreg_jax as vc

STEPS, BATCH_SIZE = 200, 128


class ResidualBlock(nnx.Module):
    """A plain residual block."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.expand = nnx.Linear(dim, 2 * dim, rngs=rngs)
        self.project = nnx.Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The block's output."""
        return x + self.project(nnx.gelu(self.expand(self.norm(x))))


class Classifier(nnx.Module):
    """A small residual network on the 64 pixels."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.stem = nnx.Linear(64, dim, rngs=rngs)
        self.blocks = nnx.List(ResidualBlock(dim, rngs) for _ in range(2))
        self.head = nnx.Linear(dim, 2, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """What the classifier sees."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return x

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of the two superclasses."""
        return self.head(self.features(images))


def train(model: Classifier, images: np.ndarray, labels: np.ndarray, seed: int) -> Classifier:
    """The model, trained in the usual way: nothing here knows of a regularizer."""
    graphdef, params = nnx.split(model)
    optimizer = optax.adamw(3e-3)

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = nnx.merge(graphdef, params)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(seed), optimizer.init(params)
    for _ in range(STEPS):
        rows = rng.choice(len(images), BATCH_SIZE, replace=False)
        params, state = step(params, state, images[rows], labels[rows])
    return nnx.merge(graphdef, params)


def main() -> dict[str, float]:
    """Prints, and returns, the probe's accuracy (%) without and with VCReg, one seed."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    has_loop = np.isin(digits, (0, 4, 6, 8, 9)).astype(np.int32)
    is_test = np.arange(len(images)) % 5 == 0
    accuracies = {}
    for arm in ("baseline", "VCReg"):
        model = Classifier(32, nnx.Rngs(0))
        if arm == "VCReg":
            vc.attach(model, vc.VCReg(alpha=0.64, beta=0.08), where=ResidualBlock)
        model = train(model, images[~is_test], has_loop[~is_test], seed=0)
        features = np.asarray(model.features(jnp.asarray(images)))
        probe = LogisticRegression(max_iter=2000).fit(features[~is_test], digits[~is_test])
        accuracies[arm] = 100 * probe.score(features[is_test], digits[is_test])
        rank = float(vc.metrics.effective_rank(jnp.asarray(features)))
        print(f"{arm:9} probe of the ten digits {accuracies[arm]:.1f} %, effective rank {rank:.1f} (1 seed)")
    return accuracies


if __name__ == "__main__":
    main()
