"""Oracles that share no code with the package: the paper's equations in float64 NumPy, its Algorithm 1 in PyTorch."""

from collections.abc import Callable

import numpy as np
import torch


def covariances(h: np.ndarray, groups: int = 1) -> list[np.ndarray]:
    """The covariance matrix below Eq. 4 of each of `groups` consecutive parts of the batch."""
    d = h.shape[-1]
    parts = np.split(np.asarray(h, np.float64), groups)
    return [np.cov(part.reshape(-1, d), rowvar=False).reshape(d, d) for part in parts]


def penalty(
    h: np.ndarray,
    *,
    alpha: float,
    beta: float,
    delta: float | None = None,
    eps: float = 1e-4,
    groups: int = 1,
    scale: str = "equation_4",
) -> float:
    """Eq. 2 with Eq. 7 if `delta` is given, eps under the root as in Algorithm 1; the mean over groups.

    "algorithm_1" is n - 1 times the covariance term of Eq. 4: Algorithm 1 leaves out a 1 / (n - 1).
    """
    d = h.shape[-1]
    n = h.size // d // groups
    penalties = []
    for c in covariances(h, groups):
        variance_loss = np.maximum(0.0, 1.0 - np.sqrt(np.diag(c) + eps)).sum() / d
        off = np.abs(c[~np.eye(d, dtype=bool)])
        costs = off**2 if delta is None else np.where(off <= delta, off**2, 2 * delta * off - delta**2)
        covariance_loss = costs.sum() / (d * (d - 1)) * (n - 1 if scale == "algorithm_1" else 1)
        penalties.append(alpha * variance_loss + beta * covariance_loss)
    return float(np.mean(penalties))


def finite_differences(f: Callable[[np.ndarray], float], h: np.ndarray, step: float = 2e-4) -> np.ndarray:
    """The gradient of `f` by the five-point central difference, whose error is of order step^4."""
    gradient = np.zeros_like(h, np.float64)
    for index in np.ndindex(h.shape):

        def along(steps: int, index: tuple[int, ...] = index) -> float:
            moved = h.astype(np.float64)
            moved[index] += steps * step
            return f(moved)

        gradient[index] = (8 * (along(1) - along(-1)) - (along(2) - along(-2))) / (12 * step)
    return gradient


def rounding_bound(
    h: np.ndarray, unit: float, tiny: float, *, alpha: float, beta: float, eps: float = 1e-4
) -> np.ndarray:
    """What a gradient computed as `x @ M` may be off by, element by element.

    With u = `unit` the roundoff of the operands' dtype, g = n 2^-24 that of a float32 sum of n terms, and t = `tiny`
    the least subnormal, standard error analysis gives to first order, all in absolute values,

        dx = u x + g mean(h)                           rounding of x, and the error of the mean
        dC = (x'dx + dx'x + g x'x) / (n - 1)
        dM = dC times the derivative of M, + u M + t   rounding of M to the operands' dtype
        dG = x dM + dx M + (u + d 2^-24) x M + t       rounding of the result, and of its sum over d

    and 10 % are added for the second order, u being at most 2^-8.
    """
    d = h.shape[-1]
    rows = np.asarray(h, np.float64).reshape(-1, d)
    n = len(rows)
    x = rows - rows.mean(axis=0)
    c = x.T @ x / (n - 1)
    v = np.diag(c) + eps
    assert np.abs(v - 1).min() > 0.05, "a bound exists only away from the jump of the hinge"
    a, b = alpha / (d * (n - 1)), 4 * beta / (d * (d - 1) * (n - 1))
    eye = np.eye(d, dtype=bool)
    m = np.where(eye, np.diag(np.where(v < 1, -a * v**-0.5, 0.0)), b * c)
    sum_unit, ax, am = n * 2.0**-24, np.abs(x), np.abs(m)
    dx = unit * ax + sum_unit * np.abs(rows).mean(axis=0)
    dc = (ax.T @ dx + dx.T @ ax + sum_unit * ax.T @ ax) / (n - 1)
    slope = np.where(eye, np.diag(np.where(v < 1, a / 2 * v**-1.5, 0.0)), b)
    dm = slope * dc + unit * am + tiny
    bound = 1.1 * (ax @ dm + dx @ am + (unit + d * 2.0**-24) * (ax @ am) + tiny)
    return bound.reshape(h.shape)


def torch_penalty(h: torch.Tensor, alpha: float, beta: float, delta: float | None, eps: float, groups: int):
    """The same formula from PyTorch's own parts; Eq. 7 is twice its Huber loss."""
    d = h.shape[-1]
    penalties = []
    for part in h.chunk(groups):
        c = torch.cov(part.flatten(end_dim=-2).T).reshape(d, d)
        off = c[~torch.eye(d, dtype=torch.bool)]
        zero = torch.zeros_like(off)
        huber = torch.nn.functional.huber_loss
        costs = off**2 if delta is None else 2 * huber(off, zero, reduction="none", delta=delta)
        penalties.append(alpha * torch.relu(1 - torch.sqrt(c.diagonal() + eps)).mean() + beta * costs.mean())
    return torch.stack(penalties).mean()


class Algorithm1(torch.autograd.Function):
    """Appendix B as printed: the input has zero mean by assumption, and the covariance part no 1 / (n - 1).

    The sign before alpha is lost in the paper's typesetting; a minus makes it the gradient of Eq. 3.
    """

    @staticmethod
    def forward(ctx, input, alpha, beta, epsilon):
        ctx.save_for_backward(input)
        ctx.weights = alpha, beta, epsilon
        return input.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        (grad_output,) = grad_outputs
        (saved,) = ctx.saved_tensors
        alpha, beta, epsilon = ctx.weights
        flattened_input = saved.flatten(start_dim=0, end_dim=-2)
        n, d = flattened_input.shape
        covariance_matrix = torch.mm(flattened_input.t(), flattened_input) / (n - 1)
        rsqrt = torch.rsqrt(covariance_matrix.diagonal() + epsilon)
        diagonal = torch.nn.functional.threshold(rsqrt, 1.0, 0.0)
        std_grad_input = diagonal * flattened_input
        cov_grad_input = torch.mm(flattened_input, covariance_matrix.fill_diagonal_(0))
        grad_input = (
            grad_output
            - alpha / (d * (n - 1)) * std_grad_input.view(grad_output.shape)
            + 4 * beta / (d * (d - 1)) * cov_grad_input.view(grad_output.shape)
        )
        return grad_input, None, None, None
