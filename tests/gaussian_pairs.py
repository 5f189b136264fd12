"""Pairs of known mutual information; run as a program, the long check of `vc.mine` (`make mine`)."""

import math
import sys

import jax

import vcreg_jax as vc


def gaussian_pairs(information, d, n, seed):
    """x and z of d coordinates, each pair correlated by rho: I = -d / 2 log(1 - rho^2) nats."""
    rho = math.sqrt(1 - math.exp(-2 * information / d))
    a, b = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(a, (n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * jax.random.normal(b, (n, d))


def main(levels):
    """Three critics at each level on 200,000 pairs, read out on 4,096; whether all but 8 nats are close enough."""
    good = True
    for information in levels:
        held_out = gaussian_pairs(information, 10, 4096, seed=1)
        pairs = gaussian_pairs(information, 10, 200_000, seed=0)
        found = vc.mine.estimate(*pairs, *held_out, key=jax.random.key(0))
        wrong = abs(found.mine - information) > max(0.3, 0.1 * information)
        good = good and (information == 8 or not wrong)
        values = ", ".join(f"{name} {value:.3f}" for name, value in found._asdict().items())
        print(f"{information} nats: {values}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(not main([float(level) for level in sys.argv[1:]] or [0.0, 2.0, 4.0, 6.0, 8.0]))
