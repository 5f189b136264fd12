"""How long the whole sweep of the linear probe takes, beside scikit-learn's with warm start on the same cores."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from train import probe
from train.timing import Spread, interleaved, ratio

EXAMPLES, FEATURES, CLASSES = 5000, 768, 100
SKLEARN_ITERATIONS = 10_000  # at most; its own stopping rule ends it


@dataclass(frozen=True)
class Sweep:
    """Both ways in every round, and how good an optimum each reached."""

    seconds: dict[str, tuple[float, ...]]  # wall, by way: "ours", "sklearn"
    cpu_seconds: dict[str, tuple[float, ...]]  # of all threads together
    excess: dict[str, tuple[float, ...]]  # by strength: F over the lower F of the two, less 1
    agreement: tuple[float, ...]  # by strength: share of equal predictions on as many other rows
    converged: bool  # ours, at every strength
    sizes: tuple[int, int, int]  # examples, features, classes

    @property
    def ratio(self) -> float:
        """scikit-learn's seconds over ours, the median over the rounds."""
        return self._over(self.seconds).median

    def _over(self, seconds: dict[str, tuple[float, ...]]) -> Spread:
        return ratio(seconds["sklearn"], seconds["ours"])

    def __str__(self) -> str:
        wall, cpu = self._over(self.seconds), self._over(self.cpu_seconds)
        lines = [
            f"{len(self.agreement)} strengths, {self.sizes[0]} examples, {self.sizes[1]} features, {self.sizes[2]} "
            f"classes, float32: scikit-learn with warm start takes {wall.median:.2f} times as long "
            f"(quartiles {wall.low:.2f} and {wall.high:.2f}, n = {wall.n}), {cpu.median:.2f} times in CPU time"
        ]
        for way, values in self.excess.items():
            lines.append(
                f"{way:8} {np.median(self.seconds[way]):6.2f} s; objective above the better one: median "
                f"{np.median(values):.1e}, most {max(values):.1e}"
            )
        lines.append(f"equal predictions: median {np.median(self.agreement):.2%}, least {min(self.agreement):.2%}")
        return "\n".join(lines)


def measure(rounds: int = 3, sizes: tuple[int, int, int] = (EXAMPLES, FEATURES, CLASSES), strengths: int = 45) -> Sweep:
    """The paper's sweep on random classes, ours and scikit-learn's in turn; compilation is not counted."""
    n, d, k = sizes
    (x, y), (unseen, _) = problem(n, d, k, 0), problem(n, d, k, 1)
    l2 = probe.l2_grid(1e-5, 1e5, strengths)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    cpu: dict[str, list[float]] = {"ours": [], "sklearn": []}
    converged = []

    def ours() -> None:
        fit = jax.block_until_ready(probe.fit(x, y, k, l2))
        converged.append(bool(fit.converged.all()))
        found["ours"] = list(zip(np.asarray(fit.weights), np.asarray(fit.bias), strict=True))

    def sklearn() -> None:
        found["sklearn"] = with_sklearn(x, y, l2)

    def timed(way: str, call: Callable[[], None]) -> Callable[[], None]:
        def measured() -> None:
            start = time.process_time()
            call()
            cpu[way].append(time.process_time() - start)

        return measured

    seconds = interleaved({"ours": timed("ours", ours), "sklearn": timed("sklearn", sklearn)}, rounds)
    values = {
        way: [objective(x, y, w, b, strength) for (w, b), strength in zip(fits, l2.tolist(), strict=True)]
        for way, fits in found.items()
    }
    best = [min(pair) for pair in zip(*values.values(), strict=True)]
    excess = {way: tuple(f / low - 1 for f, low in zip(values[way], best, strict=True)) for way in values}
    predicted = {way: [(unseen @ w + b[None]).argmax(axis=1) for w, b in found[way]] for way in found}
    equal = [float((a == b).mean()) for a, b in zip(*predicted.values(), strict=True)]
    after_warm_up = {way: tuple(values[-rounds:]) for way, values in cpu.items()}
    return Sweep(seconds, after_warm_up, excess, tuple(equal), all(converged), sizes)


def problem(n: int, d: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes about random centres, with features as a network has them: some strong, many weak, none negative."""
    centres = np.random.default_rng(99).normal(size=(k, d))
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    mixing = np.random.default_rng(98).normal(size=(d, d)) * np.geomspace(1, 0.05, d)[:, None] / np.sqrt(d)
    rows = (0.5 * centres[labels] + rng.normal(size=(n, d))) @ mixing * 4
    return np.maximum(rows, 0).astype(np.float32), labels


def with_sklearn(x: np.ndarray, y: np.ndarray, l2: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and bias at every strength, by a warm start from the next stronger one, in the order of `l2`."""
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=SKLEARN_ITERATIONS)
    found = []
    for strength in l2[::-1].tolist():
        model.set_params(C=1 / strength).fit(x, y)
        found.append((np.array(model.coef_.T), np.array(model.intercept_)))
    return found[::-1]


def objective(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, l2: float) -> float:
    """F in float64."""
    z = x.astype(np.float64) @ w.astype(np.float64) + b.astype(np.float64)[None]
    top = z.max(axis=1)
    losses = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(y)), y]
    return float(losses.sum() + l2 / 2 * (w.astype(np.float64) ** 2).sum())
