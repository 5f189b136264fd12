"""Probes of frozen features, as functions of arrays.

`linear` is the protocol of the transfer tables: logistic regression at many strengths, the one that is best on
validation rows, one fit on both. `quick` has nearest neighbours and ridge regression. `lbfgs` and `logistic` are what
`linear` is made of.
"""

from vcreg_jax.probes import lbfgs, linear, logistic, quick

__all__ = ["lbfgs", "linear", "logistic", "quick"]
