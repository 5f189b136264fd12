"""How long the whole sweep of the linear probe takes, beside scikit-learn's with warm start on the same cores."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from train.benchmarks.timing import interleave, ratio
from vcreg_jax.probes import linear as probe

EXAMPLES, FEATURES, CLASSES = 5000, 768, 100
SKLEARN_ITERATIONS = 10_000  # at most; its own stopping rule ends it
GOAL = 1e-6  # of F above its minimum, relatively
TIGHT_TOLERANCE = 1e-8  # scikit-learn's default is 1e-4
OURS, DEFAULT, TIGHT = "ours", "scikit-learn", f"scikit-learn at {TIGHT_TOLERANCE:.0e}"


@dataclass(frozen=True)
class Sweep:
    """Three ways in every round, and how good an optimum each reached.

    `OURS` and `DEFAULT` stop where they do by default, `TIGHT` where every entry of the gradient is below
    `TIGHT_TOLERANCE`: at their defaults scikit-learn is by far the less exact.
    """

    seconds: dict[str, tuple[float, ...]]  # wall, by way
    cpu_seconds: dict[str, tuple[float, ...]]  # of all threads together
    excess: dict[str, tuple[float, ...]]  # by strength: F over the lowest known, less 1
    agreement: dict[str, tuple[float, ...]]  # by strength: share of predictions equal to ours, on as many other rows
    converged: bool  # ours, at every strength
    sizes: tuple[int, int, int]  # examples, features, classes

    @property
    def ratio(self) -> float:
        """Seconds of scikit-learn over ours, each at its default tolerance, the median over the rounds."""
        return ratio(self.seconds[DEFAULT], self.seconds[OURS]).median

    def __str__(self) -> str:
        n, d, k = self.sizes
        strengths = len(self.excess[OURS])
        lines = [f"{strengths} strengths with warm start, {n} examples, {d} features, {k} classes, float32"]
        for way, excess in self.excess.items():
            within = sum(value <= GOAL for value in excess)
            lines.append(
                f"{way:22} {np.median(self.seconds[way]):6.2f} s, {np.median(self.cpu_seconds[way]):6.2f} s of "
                f"CPU; F above the lowest: median {np.median(excess):.1e}, most {max(excess):.1e}, within {GOAL:.0e} "
                f"at {within} of {strengths}"
            )
        for way in (DEFAULT, TIGHT):
            wall, cpu = (
                ratio(self.seconds[way], self.seconds[OURS]),
                ratio(self.cpu_seconds[way], self.cpu_seconds[OURS]),
            )
            same = self.agreement[way]
            lines.append(
                f"{way} takes {wall.median:.2f} times as long (quartiles {wall.low:.2f} and {wall.high:.2f}, n = "
                f"{wall.n}), {cpu.median:.2f} times in CPU time; equal predictions: median "
                f"{np.median(same):.2%}, least {min(same):.2%}"
            )
        return "\n".join(lines)


def measure(rounds: int = 3, sizes: tuple[int, int, int] = (EXAMPLES, FEATURES, CLASSES), strengths: int = 45) -> Sweep:
    """The paper's sweep on random classes, ours and scikit-learn's in turn; compilation is not counted."""
    n, d, k = sizes
    (x, y), (unseen, _) = problem(n, d, k, 0), problem(n, d, k, 1)
    l2 = probe.l2_grid(1e-5, 1e5, strengths)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    converged = []

    def ours(tolerance: float = probe.TOLERANCE) -> list[tuple[np.ndarray, np.ndarray]]:
        fit = jax.block_until_ready(probe.fit(x, y, k, l2, tolerance=tolerance))
        converged.append(bool(fit.converged.all()))
        return list(zip(np.asarray(fit.weights), np.asarray(fit.bias), strict=True))

    def objectives(fits: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.array([objective(x, y, w, b, strength) for (w, b), strength in zip(fits, l2.tolist(), strict=True)])

    tightest = objectives(ours(probe.TOLERANCE / 10))
    calls = {
        OURS: ours,
        DEFAULT: lambda: with_sklearn(x, y, l2),
        TIGHT: lambda: with_sklearn(x, y, l2, TIGHT_TOLERANCE),
    }
    cpu: dict[str, list[float]] = {way: [] for way in calls}

    def timed(way: str) -> Callable[[], None]:
        def measured() -> None:
            start = time.process_time()
            found[way] = calls[way]()
            cpu[way].append(time.process_time() - start)

        return measured

    converged.clear()
    seconds = interleave({way: timed(way) for way in calls}, rounds)
    values = {way: objectives(found[way]) for way in calls}
    lowest = np.min([tightest, *values.values()], axis=0)
    predicted = {way: [(unseen @ w + b[None]).argmax(axis=1) for w, b in found[way]] for way in calls}
    agreement = {
        way: tuple(float((a == b).mean()) for a, b in zip(predicted[way], predicted[OURS], strict=True))
        for way in (DEFAULT, TIGHT)
    }
    excess = {way: tuple((values[way] / lowest - 1).tolist()) for way in calls}
    after_warm_up = {way: tuple(own[-rounds:]) for way, own in cpu.items()}
    return Sweep(seconds, after_warm_up, excess, agreement, all(converged), sizes)


def problem(n: int, d: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes about random centres, with features as a network has them: some strong, many weak, none negative."""
    centres = np.random.default_rng(99).normal(size=(k, d))
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    mixing = np.random.default_rng(98).normal(size=(d, d)) * np.geomspace(1, 0.05, d)[:, None] / np.sqrt(d)
    rows = (0.5 * centres[labels] + rng.normal(size=(n, d))) @ mixing * 4
    return np.maximum(rows, 0).astype(np.float32), labels


def with_sklearn(
    x: np.ndarray, y: np.ndarray, l2: np.ndarray, tolerance: float | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and bias at every strength, by a warm start from the next stronger one, in the order of `l2`."""
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=SKLEARN_ITERATIONS)
    if tolerance is not None:
        model.set_params(tol=tolerance)
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
