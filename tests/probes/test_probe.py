"""The linear probe against scikit-learn's logistic regression, SciPy and NumPy."""

import inspect
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from train.benchmarks import preflight
from train.config import MeshConfig
from train.trainer.mesh import batch_sharding, make_mesh
from vcreg_jax.probes import lbfgs, logistic
from vcreg_jax.probes import linear as probe
from vcreg_jax.probes.linear import Split

STRENGTHS = np.array([1.0, 1e-6, 1e5, 1e-3, 1e2])  # both ends of the grid, in no order
CLASSES = 4


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order] / 16, y[order]


def clusters(n, d=20, seed=0, separation=6.0):
    """Gaussian classes off the origin, each feature with a scale of its own."""
    centres = separation * np.random.default_rng(99).normal(size=(CLASSES, d)) / np.sqrt(d)
    y = np.arange(n) % CLASSES
    return (centres[y] + np.random.default_rng(seed).normal(size=(n, d)) + 3) * np.geomspace(3, 0.1, d), y


def digits_split():
    x, y = digits()
    return x[:200], y[:200], x[200:]


def more_rows_than_features():
    return *clusters(200), clusters(2000, seed=1)[0]


def more_features_than_rows():
    return *clusters(40, d=60), clusters(2000, d=60, seed=1)[0]


def with_sklearn(x, y, l2):
    return LogisticRegression(solver="lbfgs", C=1 / l2, tol=1e-10, max_iter=100_000).fit(x, y)


def value_and_gradient(x, y, w, b, l2):
    """F, its gradient by W and b, and the residuals, in NumPy."""
    z = x @ w + b
    own = np.arange(len(y)), y
    margins = z - z[own][:, None]
    margins[own] = -np.inf
    losses = np.logaddexp(0, np.logaddexp.reduce(margins, axis=1))
    r = np.exp(margins - losses[:, None])
    r[own] = -r.sum(axis=1)  # and not 1 less than a probability close to 1
    return losses.sum() + l2 / 2 * (w**2).sum(), x.T @ r + l2 * w, r.sum(axis=0), r


def polished(x, y, l2, start):
    """The minimum of F by SciPy. In units of l2, since scikit-learn's stopping rule is blind to a small F."""

    def scaled(parameters):
        w, b = np.split(parameters.reshape(-1, y.max() + 1), [x.shape[1]])
        f, by_w, by_b, _ = value_and_gradient(x, y, w, b, l2)
        return f / l2, np.concatenate([by_w.ravel(), by_b]) / l2

    start = np.concatenate([start.coef_.T.ravel(), start.intercept_])
    options = {"maxiter": 100_000, "maxfun": 100_000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 50}
    return l2 * minimize(scaled, start, jac=True, method="L-BFGS-B", options=options).fun


@pytest.mark.parametrize("data", [digits_split, more_rows_than_features, more_features_than_rows])
def test_optimum_and_predictions_are_those_of_sklearn_and_scipy(x64, data):
    x, y, unseen = data()
    fit = probe.fit(x, y, int(y.max()) + 1, STRENGTHS, tolerance=1e-9)
    assert fit.weights.dtype == np.float64
    assert fit.converged.all()
    predicted = probe.predict(fit, unseen)
    for i, l2 in enumerate(STRENGTHS):
        other = with_sklearn(x, y, l2)
        best = value_and_gradient(x, y, other.coef_.T, other.intercept_, l2)[0]
        assert fit.objective[i] <= best * (1 + 1e-9)
        if l2 < 1e-4:
            best = polished(x, y, l2, other)
        np.testing.assert_allclose(fit.objective[i], best, rtol=1e-6)
        if l2 >= 1e-4:  # below, scikit-learn stops short of the optimum
            assert (other.predict(unseen) == predicted[i]).mean() >= 0.999


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 1e-5)])
def test_gradient_and_objective_by_numpy_are_what_is_reported(dtype, tolerance):
    x, y = clusters(200)
    with jax.enable_x64(dtype == np.float64):
        fit = probe.fit(x.astype(dtype), y, CLASSES, STRENGTHS, tolerance=tolerance)
    fit = jax.tree.map(np.asarray, fit)
    assert fit.weights.dtype == dtype
    assert fit.converged.all()
    assert (fit.gradient_norm <= tolerance).all()
    centred = x.astype(dtype).astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    spectral = np.linalg.norm(np.column_stack([centred, np.ones(len(x))]), 2)
    for i, l2 in enumerate(STRENGTHS):
        w, b = np.asarray(fit.weights[i], np.float64), np.asarray(fit.bias[i], np.float64)
        f, by_w, by_b, r = value_and_gradient(centred, y, w, b + mean @ w, l2)
        scale = spectral * np.linalg.norm(r) + l2 * np.linalg.norm(w)
        assert np.hypot(np.linalg.norm(by_w), np.linalg.norm(by_b)) <= 1.5 * tolerance * scale  # 1.5: rounding of b
        np.testing.assert_allclose(fit.objective[i], f, rtol=50 * np.finfo(dtype).eps)


def test_a_fit_that_does_not_converge_says_so():
    x, y = clusters(200)
    fit = probe.fit(x, y, CLASSES, STRENGTHS, max_iterations=3)
    assert not fit.converged[1]
    assert fit.gradient_norm[1] > 1e-4
    assert (fit.iterations <= 3).all()
    out_of_reach = probe.fit(x, y, CLASSES, STRENGTHS, tolerance=1e-12)
    assert not out_of_reach.converged.any()
    assert (out_of_reach.gradient_norm < 1e-5).all()


def test_logits_are_linear_and_predictions_their_maximum():
    x, y = clusters(200)
    fit = probe.fit(x, y, CLASSES, STRENGTHS)
    expected = np.einsum("nd,sdk->snk", x, fit.weights) + np.asarray(fit.bias)[:, None]
    np.testing.assert_allclose(probe.logits(fit, x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(probe.predict(fit, x), probe.logits(fit, x).argmax(axis=-1))


def test_rows_in_blocks_and_more_lanes_change_nothing(x64, monkeypatch):
    x, y = clusters(200)
    whole = probe.fit(x, y, CLASSES, STRENGTHS, tolerance=1e-11)
    monkeypatch.setattr(logistic, "BLOCK_LOGITS", 60 * CLASSES)
    in_blocks = probe.fit(x, y, CLASSES, STRENGTHS, tolerance=1e-11, lanes=3)
    np.testing.assert_allclose(in_blocks.objective, whole.objective, rtol=1e-12)
    np.testing.assert_allclose(in_blocks.weights, whole.weights, rtol=1e-5, atol=1e-6)


def test_mask_excludes_rows_sharded_over_eight_devices_or_not(x64, monkeypatch):
    monkeypatch.setattr(logistic, "BLOCK_LOGITS", 128 * CLASSES * 5)
    x, y = clusters(200)
    expected = probe.fit(x, y, CLASSES, STRENGTHS, tolerance=1e-11)
    padded = np.concatenate([x, np.full((8, 20), np.nan)]), np.concatenate([y, np.full(8, -1)])
    mask = np.arange(208) < 200
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    for features, labels, keep in ((*padded, mask), [jax.device_put(a, rows) for a in (*padded, mask)]):
        fit = probe.fit(features, labels, CLASSES, STRENGTHS, tolerance=1e-11, mask=keep)
        np.testing.assert_allclose(fit.objective, expected.objective, rtol=1e-12)
        np.testing.assert_allclose(fit.weights, expected.weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(probe.predict(fit, x), probe.predict(expected, x))


def test_a_cold_start_takes_the_steps_of_each_strength_alone_and_a_warm_one_less_than_half(x64):
    x, y = clusters(200)
    grid = probe.l2_grid(1e-3, 1e3, 24)
    warm, cold = (probe.fit(x, y, CLASSES, grid, warm_start=start) for start in (True, False))
    alone = [int(probe.fit(x, y, CLASSES, [l2]).iterations[0]) for l2 in grid]
    assert cold.iterations.tolist() == alone
    assert cold.iterations.sum() > 2 * warm.iterations.sum()
    np.testing.assert_allclose(cold.objective, warm.objective, rtol=1e-5)


def test_a_strength_that_is_asked_for_twice_has_one_optimum(x64):
    x, y = clusters(200)
    fit = probe.fit(x, y, CLASSES, [10.0, 1.0, 3.0, 1.0, 3.0, 0.1], tolerance=1e-9)
    assert fit.converged.all()
    np.testing.assert_allclose(fit.objective[jnp.array([1, 2])], fit.objective[jnp.array([3, 4])], rtol=1e-12)


@pytest.mark.optimized
def test_rows_split_over_four_tpus_are_summed_there_and_nothing_else_is_sent():
    pytest.importorskip("libtpu", reason="the extra `aot` is not installed")
    mesh = make_mesh(MeshConfig(), preflight.topology_devices("v5e:2x2"))
    whole = NamedSharding(mesh, PartitionSpec())

    def abstract(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = [
        abstract(shape, dtype, batch_sharding(mesh))
        for shape, dtype in (((512, 32), "f4"), ((512,), "i4"), ((512,), bool))
    ]
    others = [abstract(shape, dtype, whole) for shape, dtype in (((45,), "f4"), ((), "f4"), ((), "i4"))]
    program = lbfgs.solve.lower(*rows, *others, num_classes=10, p=5).compile().as_text()
    assert program is not None
    sent = re.findall(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program)
    assert set(sent) == {"all-reduce"}


def test_class_without_examples_is_left_out(x64):
    x, y = clusters(200)
    y = np.array([0, 2, 3, 5])[y]
    fit = probe.fit(x, y, 7, [1.0], tolerance=1e-9)
    other = with_sklearn(x, y, 1.0)
    absent = np.array([1, 4, 6])
    assert (np.asarray(fit.bias)[0, absent] == -np.inf).all()
    assert (np.asarray(fit.weights)[0][:, absent] == 0).all()
    np.testing.assert_allclose(np.asarray(fit.weights)[0][:, other.classes_], other.coef_.T, atol=1e-4)
    np.testing.assert_allclose(np.asarray(fit.bias)[0, other.classes_], other.intercept_, atol=1e-3)
    reached = value_and_gradient(x, np.searchsorted(other.classes_, y), other.coef_.T, other.intercept_, 1.0)[0]
    np.testing.assert_allclose(fit.objective[0], reached, rtol=1e-9)
    np.testing.assert_array_equal(probe.predict(fit, x)[0], other.predict(x))


@pytest.mark.parametrize("metric, standardize", [("top1", False), ("mean_per_class", True)])
def test_selection_and_refit_are_the_protocol_done_with_sklearn(metric, standardize):
    x, y = digits()
    keep = (y != 7) | (np.arange(len(y)) % 4 == 0)  # unbalanced, so that the two metrics differ
    x, y = x[keep].astype(np.float32), y[keep]
    train, val, test = slice(0, 150), slice(150, 300), slice(300, 900)
    strengths = np.geomspace(1e-2, 1e3, 6)

    def accuracy(fitted_on, l2, tested_on):
        scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(x[fitted_on])
        other = with_sklearn(np.asarray(scaler.transform(x[fitted_on]), np.float64), y[fitted_on], l2)
        predicted = other.predict(scaler.transform(x[tested_on]))
        return (
            (predicted == y[tested_on]).mean() if metric == "top1" else balanced_accuracy_score(y[tested_on], predicted)
        )

    validation = np.array([accuracy(train, l2, val) for l2 in strengths])
    chosen = strengths[np.flatnonzero(validation == validation.max())[-1]]
    result = probe.select_and_test(
        *(Split(x[train], y[train]), Split(x[val], y[val]), Split(x[test], y[test])),
        num_classes=10,
        l2=strengths,
        metric=metric,
        standardize=standardize,
        tolerance=1e-5,
    )
    np.testing.assert_allclose(result.validation_accuracy, validation, atol=1e-6)
    assert result.l2 == chosen
    np.testing.assert_allclose(result.test_accuracy, accuracy(slice(0, 300), chosen, test), atol=1e-6)
    assert result.converged
    assert result.worst_gradient_norm <= 1e-5
    assert result.protocol.count(metric) == 2


def test_ties_go_to_the_strongest_and_padding_counts_for_nothing():
    def separable(n):  # by every strength
        y = np.arange(n) % 10
        x = 10 * np.eye(64, dtype=np.float32)[y]
        x[-8:], y[-8:] = np.nan, 99
        return Split(x, y, np.arange(n) < n - 8)

    result = probe.select_and_test(separable(150), separable(150), separable(600), 10, [1e-2, 1e-1, 1.0, 2.0, 0.3, 0.2])
    np.testing.assert_array_equal(result.validation_accuracy, 1)
    assert result.l2 == 2
    assert result.test_accuracy == 1


def test_grids_are_those_of_the_papers():
    for grid, low in ((probe.L2_GRID, 1e-6), (probe.PAPER_L2_GRID, 1e-5)):
        np.testing.assert_allclose(np.log10(grid), np.linspace(np.log10(low), 5, 45), atol=1e-12)


def bad(features=None, labels=None, l2=(1.0,), mask=None, num_classes=CLASSES):
    x, y = clusters(200)
    features, labels = x if features is None else features, y if labels is None else labels
    fit = inspect.unwrap(probe.fit)  # without the types' own check, which users do not have
    return lambda: fit(features, labels, num_classes, np.array(l2), mask=mask)


def bad_split(val=None, test=None):
    good = Split(*clusters(200))
    return lambda: probe.select_and_test(good, val or good, test or good, CLASSES)


EMPTY = Split(np.zeros((0, 20)), np.zeros(0, int))


@pytest.mark.parametrize(
    "call, message",
    [
        (bad(features=np.full((200, 20), np.inf)), "training data: features must be finite"),
        (bad(labels=np.full(200, 4)), r"labels must be integers in 0\.\.3, got int32 in 4\.\.4"),
        (bad(labels=np.arange(200) - 1, num_classes=300), r"got int32 in -1\.\.198"),
        (bad(labels=np.zeros(200)), "labels must be integers"),
        (bad(labels=np.zeros(200, int)), "at least 2 classes, got 1"),
        (bad(labels=np.zeros(199, int)), r"got \(200, 20\), \(199,\)"),
        (bad(features=np.zeros((200, 2, 2))), r"features must be \(n, d\)"),
        (bad(mask=np.zeros(200, bool)), "there must be features and examples, got 0 rows"),
        (bad(l2=[1.0, 0.0]), "finite strengths > 0"),
        (bad(l2=[]), "finite strengths > 0"),
        (bad_split(test=Split(*clusters(200, d=19))), r"same number of features, got \[19, 20\]"),
        (bad_split(val=EMPTY), "val: there must be features and examples"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_metric_is_named():
    split = Split(*clusters(200))
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="top5"):
        probe.select_and_test(split, split, split, CLASSES, metric="top5")  # pyright: ignore[reportArgumentType]


def test_a_split_may_be_a_pair_and_anything_else_is_named():
    x, y = np.random.default_rng(0).normal(size=(62, 4)).astype(np.float32), np.arange(62) % 2
    pair, split = ((x, y),) * 3, (probe.Split(x, y),) * 3
    assert probe.select_and_test(*pair, 2, [1.0]).test_accuracy == probe.select_and_test(*split, 2, [1.0]).test_accuracy
    with pytest.raises(ValueError, match=r"train must be Split\(features, labels\), got an array of shape \(62, 4\)"):
        inspect.unwrap(probe.select_and_test)(x, x, x, 2, [1.0])
    with pytest.raises(ValueError, match="val must be Split"):
        inspect.unwrap(probe.select)(probe.Split(x, y), {"features": x}, 2, [1.0])
