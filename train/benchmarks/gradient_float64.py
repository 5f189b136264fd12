"""VCReg's gradient on this machine's device against the formula in float64 on the host, and the device's speed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vcreg_jax as vc
from train.benchmarks import roofline
from train.benchmarks.programs import SEED, Settings
from train.benchmarks.timing import Deadline
from vcreg_jax.regularizers.vcreg import SCALES

# Of features, as in ViT-B/32 and in ConvNeXt-T's third stage; on a CPU smaller.
SHAPES = {"gpu": ((128, 50, 768), (128, 14, 14, 384)), "cpu": ((8, 5, 24), (6, 4, 4, 16))}
# dtype, precision of products, largest relative error; on an H200 5e-7, 3e-4 and 3e-3 were found.
KINDS = (("float32", "highest", 1e-5), ("float32", "default", 1e-3), ("bfloat16", "default", 1e-2))


def measure(settings: Settings, _found: dict[str, Any], save: Callable[..., None], _end: Deadline) -> None:
    """Saves one row for every shape, scale and kind, `ok` where the error is within its bound; then the speed."""
    rows = []
    for shape in SHAPES[settings.platform]:
        for scale in SCALES:
            h = features(shape)
            # Weights for which both terms count: Algorithm 1's second is n - 1 times Eq. 4's.
            beta = 8.0 if scale == "equation_4" else 8.0 / (h.size / shape[-1] - 1)
            rows += [_row(h, vc.VCReg(0.64, beta, scale=scale), *kind) for kind in KINDS]
            save({"gradient": rows})
    speed = roofline.device_speed(settings.platform, "bfloat16", settings.rounds)
    save({"gradient": rows, "speed": asdict(speed), "complete": True})


def features(shape: Sequence[int]) -> np.ndarray:
    """Correlated features in float64, off centre, with deviations below and above 1."""
    rng, d = np.random.default_rng(SEED), shape[-1]
    mix = 0.5 * rng.normal(size=(d, d)) / d**0.5 + np.diag(np.linspace(0.2, 1.2, d))
    return rng.normal(size=shape) @ mix + rng.normal(size=d)


def reference(h: np.ndarray, reg: vc.VCReg) -> np.ndarray:
    """The gradient of `reg.penalty` as Eqs. 3 and 4 give it, with Algorithm 1's factor where the scale is its."""
    d = h.shape[-1]
    x = h.reshape(-1, d) - h.reshape(-1, d).mean(axis=0)
    n = len(x)
    c = x.T @ x / (n - 1)
    variances = np.diag(c) + reg.eps
    factor = 1 if reg.scale == "equation_4" else n - 1
    m = factor * 4 * reg.beta / (d * (d - 1) * (n - 1)) * (c - np.diag(np.diag(c)))
    m -= np.diag(reg.alpha / (d * (n - 1)) * np.where(variances < 1, variances**-0.5, 0))
    return (x @ m).reshape(h.shape)


def _row(h: np.ndarray, reg: vc.VCReg, dtype: str, precision: str, bound: float) -> dict[str, Any]:
    x = jnp.asarray(h, dtype)
    expected = reference(np.asarray(x, np.float64), reg)
    with jax.default_matmul_precision(precision):
        unchanged = bool((jax.jit(reg)(x) == x).all())
        found = np.asarray(jax.jit(partial(roofline.backward, reg=reg))(x, jnp.zeros_like(x)), np.float64)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    row = {"shape": h.shape, "scale": reg.scale, "dtype": dtype, "precision": precision, "error": error}
    return row | {"bound": bound, "unchanged_forward": unchanged, "ok": unchanged and error < bound}


def text(found: dict[str, Any]) -> str:
    """The rows, one a line, and the speed."""
    lines = [
        f"{' x '.join(map(str, row['shape'])):20} {row['scale']:12} {row['dtype']:9} {row['precision']:8} "
        f"relative error {row['error']:.1e} {'ok' if row['ok'] else 'WRONG'}"
        for row in found["gradient"]
    ]
    if speed := found.get("speed"):
        rates = speed["operations"] / 1e12, speed["bytes"] / 1e12
        lines.append(f"products of bfloat16 at {rates[0]:.4g} TFLOP/s, copies at {rates[1]:.3g} TB/s")
    return "\n".join(lines)
