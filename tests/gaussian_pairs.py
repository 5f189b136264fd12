"""Pairs of known mutual information; run as a program, the long check of `vc.mine` (`make mine`)."""

import math
import sys

import jax

import vcreg_jax as vc

LEVELS = (6.0, 4.0, 2.0, 0.0, 8.0)  # nats, of which the last is reported only


def gaussian_pairs(information, d, n, seed):
    """x and z of d coordinates, each pair correlated by rho: I = -d / 2 log(1 - rho^2) nats."""
    rho = math.sqrt(1 - math.exp(-2 * information / d))
    a, b = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(a, (n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * jax.random.normal(b, (n, d))


def main(levels):
    """Three critics at each level on 200,000 pairs of 20 coordinates, read out on 4,096; whether all are close."""
    good = True
    for name in [*levels, "6 nats shuffled"]:
        information = 6.0 if isinstance(name, str) else name
        (x, z), (held_x, held_z) = gaussian_pairs(information, 20, 200_000, 0), gaussian_pairs(information, 20, 4096, 1)
        if isinstance(name, str):
            information, z, held_z = 0.0, z[::-1], held_z[::-1]
        found = vc.mine.estimate(x, z, held_x, held_z, key=jax.random.key(0))
        allowed = 0.1 if information == 0 else max(0.3, 0.1 * information)
        good = good and (information == 8 or abs(found.mine - information) <= allowed)
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found._asdict().items()), flush=True)
    return good


if __name__ == "__main__":
    sys.exit(not main([float(level) for level in sys.argv[1:]] or LEVELS))
