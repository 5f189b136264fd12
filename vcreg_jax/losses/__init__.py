"""Losses as functions of arrays: `cross_entropy` of every example, and those of two views at once, which have no value
per example."""

from vcreg_jax.losses.cross_entropy import cross_entropy
from vcreg_jax.losses.joint_embedding import BarlowTwins, NTXent, VICReg

__all__ = ["BarlowTwins", "NTXent", "VICReg", "cross_entropy"]
