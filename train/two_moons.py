"""Figure 1's parts under the name that earlier configs import them by."""

from train.experiments.two_moons import Method, TwoMoons

__all__ = ["Method", "TwoMoons"]
