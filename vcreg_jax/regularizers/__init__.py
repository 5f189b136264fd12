"""Regularizers are functions `h -> h`: the identity forward, and backward each adds its own gradient.

`vcreg` is VCReg itself, readable on its own. `add_gradient` is the mechanism that all share, `statistics` the mean and
covariance of a batch wherever its rows lie.
"""
