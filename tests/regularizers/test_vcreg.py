import functools
import pathlib
import re
import subprocess
import sys
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from tests import reference
from vcreg_jax.regularizers.add_gradient import Penalty

EPS = 1e-4


@dataclass(frozen=True)
class Case:
    """A batch and a regularizer for it."""

    shape: tuple[int, ...]
    delta: float | None = None
    scope: str | int = "global"
    alpha: float = 0.64
    beta: float = 0.08
    scale: str = "equation_4"

    @property
    def groups(self) -> int:
        return self.scope if isinstance(self.scope, int) else 1

    @property
    def reg(self) -> vc.VCReg:
        scope = "global" if self.scope == "global" else self.groups
        return vc.VCReg(self.alpha, self.beta, self.delta, EPS, self.scale, scope)

    def penalty(self, h: np.ndarray) -> float:
        return reference.penalty(
            h,
            alpha=self.alpha,
            beta=self.beta,
            delta=self.delta,
            eps=EPS,
            groups=self.groups,
            scale=self.scale,
        )


SHAPES = [(12, 5), (6, 8), (4, 3, 5), (4, 2, 3, 6)]  # n > d, n < d, tokens, maps
CASES = [Case(shape, delta, scope) for shape in SHAPES for delta in (None, 0.25) for scope in ("global", 2)]
CASES += [Case((12, 5), 0.25, beta=0.0), Case((12, 5), 0.25, alpha=0.0), Case((4, 2, 3, 6), alpha=0.0, scope=4)]
CASES += [Case((12, 5), scale="algorithm_1"), Case((4, 3, 5), 0.25, 2, scale="algorithm_1")]
each_case = pytest.mark.parametrize("case", CASES, ids=repr)


def features(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Correlated features off the origin, of standard deviations on both sides of 1."""
    rng = np.random.default_rng(seed)
    d = shape[-1]
    scales = np.where(np.arange(d) % 2, 2.0, 0.4)
    return (rng.normal(size=shape) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))) * scales + np.linspace(-2.0, 3.0, d)


@jax.jit
def added(reg: vc.Regularizer, h: jax.Array) -> jax.Array:
    """What the backward pass of `reg` adds to a zero gradient."""
    return jax.vjp(reg, h)[1](jnp.zeros_like(h))[0]


@jax.jit
def autodiff(reg: Penalty, h: jax.Array) -> jax.Array:
    """The gradient of the written-out penalty."""
    return jax.grad(reg.penalty)(h)


def off_diagonal(c: np.ndarray) -> np.ndarray:
    return c[~np.eye(len(c), dtype=bool)]


def relative_error(actual, expected) -> float:
    """The largest difference over the largest entry: small entries are sums with cancellation."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@functools.cache
def computed(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The penalty of a case, its gradient by autodiff, and what the backward pass adds."""
    run = jax.jit(lambda h: (case.reg.penalty(h), autodiff(case.reg, h), added(case.reg, h)))
    loss, expected, ours = jax.device_get(run(features(case.shape)))
    assert loss.dtype == expected.dtype == ours.dtype == np.float64
    return loss, expected, ours


# Numbers, in float64


@each_case
def test_the_features_of_a_case_lie_on_both_sides_of_every_kink_and_not_near_one(case):
    for c in reference.covariances(features(case.shape), case.groups):
        variances, off = np.diag(c) + EPS, np.abs(off_diagonal(c))
        assert (variances < 1).any() and (variances > 1).any()
        assert np.abs(variances - 1).min() > 1e-2  # steps of finite differences move C by far less
        if case.delta is not None:
            assert (off < case.delta).any() and (off > case.delta).any()
            assert np.abs(off - case.delta).min() > 1e-3


@each_case
def test_the_backward_pass_adds_the_gradient_of_the_written_out_penalty(x64, case):
    _, expected, ours = computed(case)
    assert relative_error(ours, expected) < 1e-12


@each_case
def test_the_penalty_equals_the_papers_equations_in_numpy(x64, case):
    loss, _, _ = computed(case)
    np.testing.assert_allclose(loss, case.penalty(features(case.shape)), rtol=1e-12)


@each_case
def test_the_backward_pass_adds_the_finite_differences_of_the_papers_equations(x64, case):
    _, _, ours = computed(case)
    assert relative_error(ours, reference.finite_differences(case.penalty, features(case.shape))) < 1e-7


@pytest.mark.parametrize("case", [case for case in CASES if case.scale == "equation_4"], ids=repr)
def test_the_backward_pass_adds_what_pytorch_finds_for_the_same_formula(x64, case):
    h = torch.tensor(features(case.shape), requires_grad=True)
    loss = reference.torch_penalty(h, case.alpha, case.beta, case.delta, EPS, case.groups)
    (expected,) = torch.autograd.grad(loss, h)
    value, _, ours = computed(case)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-12)
    assert relative_error(ours, expected.numpy()) < 1e-10


def algorithm_1(h: np.ndarray, alpha: float, beta: float, grad_output: np.ndarray) -> np.ndarray:
    centred = torch.tensor(h - h.mean(axis=tuple(range(h.ndim - 1))), requires_grad=True)
    out = reference.Algorithm1.apply(centred, alpha, beta, EPS)
    assert isinstance(out, torch.Tensor)
    return torch.autograd.grad(out, centred, torch.tensor(grad_output))[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_algorithm_1_is_algorithm_1_of_the_centred_features(x64, shape):
    h, incoming = features(shape), features(shape, seed=1)
    expected = algorithm_1(h, 0.64, 0.08, incoming)
    ours = jax.vjp(vc.VCReg(eps=EPS, scale="algorithm_1"), jnp.asarray(h))[1](incoming)[0]
    assert relative_error(ours, expected) < 1e-10


@pytest.mark.parametrize("options", [{}, {"scope": 2}, {"sample": 2}, {"delta": 0.25}], ids=str)
def test_algorithm_1s_covariance_term_is_n_minus_1_times_equation_4s(x64, options):
    h = jnp.asarray(features((4, 12, 12, 3)))
    n = {"scope": 2 * 12 * 12, "sample": 4 * 6 * 6}.get(next(iter(options), ""), 4 * 12 * 12)  # that share statistics
    printed = vc.VCReg(alpha=0.7, beta=0.3, scale="algorithm_1", **options)
    defined = vc.VCReg(alpha=0.7, beta=0.3 * (n - 1), **options)
    assert relative_error(added(printed, h), added(defined, h)) < 1e-12
    np.testing.assert_allclose(printed.penalty(h), defined.penalty(h), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_gradient_is_algorithm_1_with_its_covariance_part_over_n_minus_1(x64, shape):
    h, nothing = features(shape), np.zeros(shape)
    n = h.size // h.shape[-1]
    expected = algorithm_1(h, 0.64, 0.0, nothing) + algorithm_1(h, 0.0, 0.08, nothing) / (n - 1)
    assert relative_error(added(vc.VCReg(eps=EPS), jnp.asarray(h)), expected) < 1e-10


@pytest.mark.parametrize("n", [2, 3, 7, 40])
@pytest.mark.parametrize("d", [2, 3, 9])
def test_the_gradient_is_right_for_any_number_of_samples_and_features(x64, n, d):
    h = np.random.default_rng(100 * n + d).normal(size=(n, d))
    value_and_slope = functools.partial(reference.torch_penalty, alpha=0.3, beta=0.7, delta=0.4, eps=1e-2, groups=1)
    expected = torch.autograd.grad(value_and_slope(t := torch.tensor(h, requires_grad=True)), t)[0]
    ours = added(vc.VCReg(0.3, 0.7, delta=0.4, eps=1e-2), jnp.asarray(h))
    assert relative_error(ours, expected.numpy()) < 1e-10


def test_an_infinite_delta_clips_nothing(x64):
    h = jnp.asarray(features((12, 5)))
    unclipped, infinite = vc.VCReg(), vc.VCReg(delta=float("inf"))
    np.testing.assert_allclose(infinite.penalty(h), unclipped.penalty(h), rtol=1e-14)
    for gradient in (added(infinite, h), autodiff(infinite, h)):
        assert relative_error(gradient, added(unclipped, h)) < 1e-14


# In a network


def network(weights: jax.Array, h: jax.Array, c: jax.Array, reg: vc.Regularizer) -> jax.Array:
    """The loss of two layers with `reg` on the first."""
    return jnp.sum(jnp.tanh(reg(h @ weights)) * c)


def network_with_penalty(weights: jax.Array, h: jax.Array, c: jax.Array, reg: vc.VCReg) -> jax.Array:
    """The same loss with the penalty written out beside it."""
    return network(weights, h, c, vc.identity) + reg.penalty(h @ weights)


def composite(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    d = shape[-1]
    h, c, weights = features(shape), 0.1 * features(shape, seed=1), features((d, d), seed=2) / d
    return jnp.asarray(weights), jnp.asarray(h), jnp.asarray(c)


@pytest.mark.parametrize(
    "case", [Case((12, 5)), Case((6, 8), 0.25), Case((4, 3, 5), 0.25, 2), Case((4, 2, 3, 6), None, 4)], ids=repr
)
def test_inside_a_network_every_gradient_is_that_of_loss_plus_penalty(x64, case):
    args = composite(case.shape)
    expected = jax.jit(jax.grad(functools.partial(network_with_penalty, reg=case.reg), argnums=(0, 1)))(*args)
    for reg in (case.reg, vc.explicit(case.reg)):
        ours = jax.jit(jax.grad(functools.partial(network, reg=reg), argnums=(0, 1)))(*args)
        assert relative_error(ours[0], expected[0]) < 1e-12
        assert relative_error(ours[1], expected[1]) < 1e-12
    plain = jax.jit(jax.grad(functools.partial(network, reg=vc.identity)))(*args)
    assert relative_error(plain, expected[0]) > 1e-3, "the penalty must be felt, or the test shows nothing"


def test_explicit_adds_autodiff_of_whatever_penalty_it_is_given(x64):
    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Squares:
        def __call__(self, h):
            return h

        def penalty(self, h):
            return jnp.sum(h**2)

        def gradient(self, h):
            raise AssertionError("explicit() differentiates the penalty")

    h = jnp.asarray(features((12, 5)))
    np.testing.assert_allclose(added(vc.explicit(Squares()), h), 2 * h, rtol=1e-15)


def test_scaled_multiplies_both_terms(x64):
    h = jnp.asarray(features((12, 5)))
    for reg in (vc.VCReg(0.64, 0.0), vc.VCReg(0.0, 0.08)):
        expected = 0.25 * reference.penalty(np.asarray(h), alpha=reg.alpha, beta=reg.beta)  # pyright: ignore
        np.testing.assert_allclose(reg.scaled(0.25).penalty(h), expected, rtol=1e-12)
        assert relative_error(added(reg.scaled(0.25), h), 0.25 * autodiff(reg, h)) < 1e-12


@pytest.mark.parametrize("wrap", [lambda reg: reg, vc.explicit])
def test_the_weights_receive_no_gradient(x64, wrap):
    h = jnp.asarray(features((12, 5)))
    gradient = jax.grad(lambda reg, h: jnp.sum(reg(h) ** 3))(wrap(vc.VCReg(jnp.float64(0.5), jnp.float64(0.1))), h)
    assert [float(leaf) for leaf in jax.tree.leaves(gradient)] == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("reg", [vc.VCReg(), vc.VCReg(scope=2), vc.explicit(vc.VCReg()), vc.identity])
def test_the_forward_pass_is_bitwise_the_identity(dtype, reg):
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1.5, 3e38, 2.0**-24, 65504.0, 1.0, 7.0]
    h = jnp.asarray(np.array(special, np.float32).reshape(4, 3)).astype(dtype)
    for out in (reg(h), jax.jit(reg)(h), jax.vjp(reg, h)[0]):
        assert out.dtype == h.dtype
        assert np.asarray(out).tobytes() == np.asarray(h).tobytes()


def test_nan_and_infinity_reach_the_gradient():
    h = jnp.asarray(features((12, 5)), jnp.float32)
    for bad in (np.nan, np.inf):
        assert not np.isfinite(added(vc.VCReg(), h.at[3, 2].set(bad))[:, 2]).any()


# Under transforms


def test_a_grid_of_traced_weights_in_one_program_equals_separate_runs(x64):
    args = composite((4, 3, 5))
    alphas, betas = (jnp.asarray(grid.ravel()) for grid in np.meshgrid([0.0, 0.16, 1.28], [0.0, 0.01, 0.16]))

    def gradient(alpha, beta):
        return jax.grad(functools.partial(network, reg=vc.VCReg(alpha, beta, delta=0.25)))(*args)

    grid = jax.jit(jax.vmap(gradient))(alphas, betas)
    written_out = jax.jit(jax.grad(network_with_penalty))
    for alpha, beta, ours in zip(alphas, betas, grid, strict=True):
        assert relative_error(ours, written_out(*args, vc.VCReg(float(alpha), float(beta), delta=0.25))) < 1e-12


def test_new_weights_need_no_new_trace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(reg, h):
        return added(reg, h)

    chex.clear_trace_counter()
    h = jnp.asarray(features((12, 5)), jnp.float32)
    once, twice = step(vc.VCReg(0.2, 0.1), h), step(vc.VCReg(0.4, 0.2), h)
    assert relative_error(twice, 2 * once) < 1e-6


@pytest.mark.parametrize("scope", ["global", 2])
def test_vmap_regularizes_each_batch_by_itself(x64, scope):
    reg = vc.VCReg(delta=0.25, scope=scope)
    batches = jnp.stack([jnp.asarray(features((4, 3, 5), seed)) for seed in range(3)])
    together = jax.jit(jax.vmap(functools.partial(added, reg)))(batches)
    for ours, h in zip(together, batches, strict=True):
        assert relative_error(ours, autodiff(reg, h)) < 1e-12


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_over_layers_adds_the_penalty_of_every_layer(x64, remat):
    reg = vc.VCReg(delta=0.25)
    layers, h = jnp.asarray(features((3, 5, 5), seed=2) / 5), jnp.asarray(features((12, 5)))

    def scanned(layers):
        def layer(h, weights):
            return jnp.tanh(reg(h @ weights)), None

        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, h, layers)[0].sum()

    def written_out(layers):
        out, total = h, 0.0
        for weights in layers:
            total += reg.penalty(out @ weights)
            out = jnp.tanh(out @ weights)
        return out.sum() + total

    assert relative_error(jax.jit(jax.grad(scanned))(layers), jax.jit(jax.grad(written_out))(layers)) < 1e-12


def test_remat_of_a_layer_changes_nothing(x64):
    args, reg = composite((4, 3, 5)), vc.VCReg(scope=2)
    loss = jax.checkpoint(functools.partial(network, reg=reg))
    expected = jax.jit(jax.grad(network_with_penalty))(*args, reg)
    assert relative_error(jax.jit(jax.grad(loss))(*args), expected) < 1e-12


def test_a_donated_batch_is_used_up_and_regularized_all_the_same(x64):
    reg, h = vc.VCReg(), jnp.asarray(features((12, 5)))
    expected = h - autodiff(reg, h)
    step = jax.jit(lambda h: h - added(reg, h), donate_argnums=0)
    assert relative_error(step(h), expected) < 1e-12
    assert h.is_deleted()


@pytest.mark.parametrize("m", [2, 4])
def test_accumulating_over_micro_batches_with_scaled_is_the_scope_of_as_many_groups(x64, m):
    weights, h, c = composite((8, 3, 5))
    reg = vc.VCReg(delta=0.25)
    micro_batches = zip(jnp.split(h, m), jnp.split(c, m), strict=True)
    gradient = jax.jit(jax.grad(functools.partial(network, reg=reg.scaled(1 / m))))
    accumulated = sum(gradient(weights, *micro_batch) for micro_batch in micro_batches)
    whole = functools.partial(network_with_penalty, reg=vc.VCReg(delta=0.25, scope=m))
    assert relative_error(accumulated, jax.jit(jax.grad(whole))(weights, h, c)) < 1e-12


def test_the_gradient_of_the_gradient_is_the_hessian_of_the_penalty(x64):
    reg, h, v = vc.VCReg(delta=0.25), jnp.asarray(features((12, 5))), jnp.asarray(features((12, 5), seed=1))
    ours = jax.jit(jax.grad(lambda h: jnp.vdot(added(reg, h), v)))(h)
    expected = jax.jit(lambda h, v: jax.jvp(jax.grad(reg.penalty), (h,), (v,))[1])(h, v)
    assert relative_error(ours, expected) < 1e-12


# Precision


def torch_gradient(h: np.ndarray, alpha: float = 0.64, beta: float = 0.08, eps: float = EPS) -> np.ndarray:
    """The gradient by PyTorch in float64."""
    leaf = torch.tensor(np.asarray(h, np.float64), requires_grad=True)
    loss = reference.torch_penalty(leaf, alpha, beta, None, eps, 1)
    return torch.autograd.grad(loss, leaf)[0].numpy()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("shape", "alpha", "beta"), [((512, 8), 0.64, 0.08), ((16, 4, 8, 6), 0.64, 0.0), ((8, 5), 0.0, 1.0)]
)
def test_rounding_errors_stay_within_their_bound(dtype, shape, alpha, beta):
    info = jnp.finfo(dtype)
    unit, tiny = float(info.eps) / 2, float(info.smallest_subnormal)
    h = jnp.asarray(features(shape)).astype(dtype)
    exact = np.asarray(h, np.float64)
    expected = torch_gradient(exact, alpha, beta)
    bound = reference.rounding_bound(exact, unit, tiny, alpha=alpha, beta=beta)
    assert bound.max() < 40 * max(unit, exact.size * 2.0**-24) * np.abs(expected).max(), "the bound says something"
    ours = added(vc.VCReg(alpha, beta), h)
    assert ours.dtype == h.dtype
    assert (np.abs(np.asarray(ours, np.float64) - expected) <= bound).all()


@pytest.mark.parametrize(("dtype", "rows"), [("bfloat16", 1024), ("float16", 8192), ("float32", 8192)])
def test_sums_over_samples_are_float32_or_the_hinge_would_not_see_a_variance_of_almost_one(dtype, rows):
    # Rows of +-1, some of them smaller by one ulp: the sums of squares are rows - 1.5, which float32 holds exactly
    # and the dtype of the features would round to rows, which puts every variance over 1.
    ulp = 2.0 ** {"bfloat16": -8, "float16": -11, "float32": -11}[dtype]
    sizes = np.where(np.arange(rows) < 0.75 / ulp, 1 - ulp, 1.0)
    signs = np.stack([1.0 - 2 * (np.arange(rows) // 2**k % 2) for k in range(2)], axis=1)
    h = jnp.asarray(signs * sizes[:, None]).astype(dtype)
    ours = added(vc.VCReg(alpha=256.0, beta=0.0, eps=1e-6), h)
    assert relative_error(ours, torch_gradient(np.asarray(h, np.float64), 256.0, 0.0, 1e-6)) < 3 * ulp


@pytest.mark.parametrize("reg", [vc.VCReg(), vc.VCReg(scale="algorithm_1")])
def test_divisors_beyond_int32_are_no_integers(reg):
    h = np.random.default_rng(0).normal(size=(2**31 // 256**2 + 400, 256))  # d (d - 1) (n - 1) > 2^31
    beta = 0.08 * (len(h) - 1 if reg.scale == "algorithm_1" else 1)
    assert relative_error(added(reg, jnp.asarray(h, jnp.float32)), torch_gradient(h, beta=beta)) < 1e-3


def test_sums_over_many_float16_samples_do_not_overflow():
    h = jnp.asarray(features((40000, 4)) * 1.5).astype("float16")  # sums of squares beyond 65504
    reg = vc.VCReg().scaled(2.0**15)  # against underflow, as one trains in float16
    expected = 2.0**15 * torch_gradient(np.asarray(h, np.float64))
    assert relative_error(added(reg, h), expected) < 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_products_take_operands_in_the_features_dtype_and_accumulate_in_float32(dtype):
    # Which the CPU does whatever it is asked: only the program shows what an accelerator would do.
    program = jax.jit(functools.partial(added, vc.VCReg())).lower(jnp.ones((12, 5), dtype)).as_text()
    products = re.findall(r"dot_general .*: \(tensor<\S*?(\w+)>, tensor<\S*?(\w+)>\) -> tensor<\S*?(\w+)>", program)
    short = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}[dtype]
    assert [tuple(name.split("x")[-1] for name in product) for product in products] == [(short, short, "f32")] * 2


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"), [("float32", 1e5, 1e-5), ("bfloat16", 60.0, 2e-2), ("float16", 1e3, 4e-3)]
)
@pytest.mark.parametrize("scope", ["global", 4])
def test_a_large_common_offset_does_not_spoil_the_gradient(dtype, offset, tolerance, scope):
    # Sums of squares without centring would lose 1e6 * 2^-24 = 6 % of a variance of 1 in float32; a mean in the dtype
    # of the features would be off by up to 0.25 in the other two.
    offsets = offset * np.array([1.0, 1.02, -0.98, 1.04, -1.06])
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(64, 16, 5)) * [0.8, 1.2, 0.8, 1.2, 0.8] + offsets).astype(dtype)
    groups = np.split(np.asarray(h, np.float64), 1 if scope == "global" else scope)
    expected = np.concatenate([torch_gradient(group) for group in groups]) / len(groups)
    ours = added(vc.VCReg(scope=scope, alpha=0.64 * 2**10, beta=0.08 * 2**10), h)
    assert relative_error(ours, 2**10 * expected) < tolerance


@pytest.mark.parametrize(("dtype", "offset"), [("bfloat16", 60.0), ("float16", 1e3), ("float32", 1e3)])
@pytest.mark.parametrize("scope", ["global", 4])
def test_the_penalty_of_narrow_features_is_a_float32_of_float32_accuracy(dtype, offset, scope):
    h = jnp.asarray(features((64, 16, 5)) + offset).astype(dtype)
    loss = vc.VCReg(scope=scope, delta=0.25).penalty(h)
    groups = 1 if scope == "global" else scope
    expected = reference.penalty(np.asarray(h, np.float64), alpha=0.64, beta=0.08, delta=0.25, groups=groups)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


# Edge cases

NOTHING = "VCReg adds nothing: it needs 2 samples, got {}"
NO_COVARIANCE = "VCReg adds no covariance term: it needs 2 features, got {}"


@pytest.mark.parametrize(
    ("shape", "scope", "message"),
    [
        ((1, 5), "global", NOTHING.format(1)),
        ((0, 5), "global", NOTHING.format(0)),
        ((3, 0, 5), "global", NOTHING.format(0)),
        ((4, 5), 4, NOTHING.format(1)),
        ((0, 5), 4, NOTHING.format(0)),
        ((1, 1), "global", NOTHING.format(1)),
    ],
)
@pytest.mark.parametrize("wrap", [lambda reg: reg, vc.explicit])
def test_fewer_than_two_samples_add_nothing_and_say_so(shape, scope, message, wrap):
    reg, h = wrap(vc.VCReg(scope=scope)), jnp.full(shape, 3.0)
    with pytest.warns(UserWarning, match=re.escape(message)):
        assert reg.penalty(h) == 0.0
    with pytest.warns(UserWarning, match=re.escape(message)):
        np.testing.assert_array_equal(added(reg, h), np.zeros(shape))


@pytest.mark.parametrize("wrap", [lambda reg: reg, vc.explicit])
@pytest.mark.parametrize("shape", [(12, 1), (4, 3, 1)])
def test_a_single_feature_has_a_variance_term_only_and_says_so(x64, shape, wrap):
    reg, h = wrap(vc.VCReg(eps=EPS)), jnp.asarray(0.3 * np.random.default_rng(0).normal(size=shape))
    std = np.sqrt(np.var(h, ddof=1) + EPS)
    with pytest.warns(UserWarning, match=NO_COVARIANCE.format(1)):
        np.testing.assert_allclose(reg.penalty(h), 0.64 * (1 - std), rtol=1e-12)
    with pytest.warns(UserWarning, match=NO_COVARIANCE.format(1)):
        expected = -0.64 * (np.asarray(h) - np.mean(h)) / (h.size - 1) / std
        assert relative_error(added(reg, h), expected) < 1e-12


@pytest.mark.parametrize("wrap", [lambda reg: reg, vc.explicit])
def test_constant_features_have_a_finite_penalty_and_a_zero_gradient(x64, wrap):
    reg, h = wrap(vc.VCReg(alpha=0.64, eps=1e-4)), jnp.full((6, 4), 2.0)
    np.testing.assert_allclose(reg.penalty(h), 0.64 * (1 - 0.01), rtol=1e-12)
    np.testing.assert_array_equal(added(reg, h), np.zeros((6, 4)))


def test_eps_keeps_the_pull_on_an_almost_constant_feature_finite(x64):
    h = np.zeros((6, 2))
    h[0, 0] = 1e-150  # its square vanishes
    ours = added(vc.VCReg(alpha=0.64, beta=0.0, eps=1e-4), jnp.asarray(h))
    expected = -0.64 / (2 * 5) * (h - h.mean(axis=0)) / 0.01
    assert relative_error(ours, expected) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, "alpha >= 0, got -0.1"),
        ({"alpha": float("nan")}, "alpha >= 0, got nan"),
        ({"beta": -1.0}, "beta >= 0, got -1.0"),
        ({"delta": 0.0}, "delta > 0, or None for no clipping, got 0.0"),
        ({"delta": float("nan")}, "delta > 0, or None for no clipping, got nan"),
        ({"eps": 0.0}, "eps > 0 (zero variance would divide by 0), got 0.0"),
        ({"scope": 0}, 'scope="global" or a number of groups >= 1, got 0'),
        ({"scope": -2}, 'scope="global" or a number of groups >= 1, got -2'),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_value(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        vc.VCReg(**arguments)


def test_an_unknown_scale_is_refused_with_those_that_are_known():
    reg = vc.VCReg()
    object.__setattr__(reg, "scale", "paper")  # past the type checks of the tests, which users do not have
    with pytest.raises(ValueError, match="scale to be one of 'equation_4', 'algorithm_1', got 'paper'"):
        reg.__post_init__()


def test_the_scales_former_name_is_refused_by_name():
    with pytest.raises(TypeError, match="paper_scale"):
        vc.VCReg(paper_scale=True)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("call", [vc.VCReg.__call__, vc.VCReg.penalty])
def test_groups_that_do_not_divide_the_batch_are_refused_with_what_would(call):
    message = "scope=5 needs a batch that divides into 5 equal groups, got 12 rows on 1 shard(s). Use a divisor of 12."
    with pytest.raises(ValueError, match=re.escape(message)):
        call(vc.VCReg(scope=5), jnp.ones((12, 3)))


@pytest.mark.parametrize("call", [vc.VCReg.__call__, vc.VCReg.penalty])
def test_a_vector_is_refused_with_the_way_out(call):
    with pytest.raises(ValueError, match=re.escape("at least two axes, got shape (3,). Add a batch axis")):
        call(vc.VCReg(), jnp.ones(3))


@pytest.mark.parametrize(
    "call",
    [
        lambda: vc.VCReg()(jnp.ones(())),  # pyright: ignore[reportArgumentType]
        lambda: vc.VCReg().penalty(jnp.ones((3, 4), int)),
        lambda: vc.VCReg().gradient(jnp.ones(())),
        lambda: vc.identity(jnp.ones(())),
    ],
)
def test_annotations_are_checked_under_test(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


USER_PROGRAM = """\
import jax, jax.numpy as jnp, vcreg_jax as vc
reg = vc.VCReg()
def attempt(call, h):
    try:
        call(h)
    except ValueError as error:
        print(error)
one, ints = jnp.ones((1, 3)), jnp.ones((4, 3), int)
reg(one)
reg.penalty(one)
jax.jit(jax.grad(lambda h: reg(h).sum()))(jnp.ones((4, 1)))
attempt(reg, ints)
attempt(reg.penalty, ints)
"""


def test_what_users_see_points_at_their_line_and_names_the_dtype(tmp_path):
    # Not under pytest, whose runtime checks put frames of their own between the user and the package.
    program = tmp_path / "user_program.py"
    program.write_text(USER_PROGRAM)
    package = pathlib.Path(vc.__file__).parent.parent
    command = [sys.executable, "-W", "always::UserWarning", str(program)]
    environment = {"PYTHONPATH": str(package), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    warned = re.findall(r"^(.*?):(\d+): UserWarning: VCReg adds (\w+)", ran.stderr, re.MULTILINE)
    lines = [(int(line), what) for file, line, what in warned if file == str(program)]
    assert len(lines) == len(warned), "every warning points into the user's file"
    assert lines == [(9, "nothing"), (10, "nothing"), (11, "no")]
    assert ran.stdout.splitlines() == ["VCReg needs floating-point features, got int32. Cast them first."] * 2
