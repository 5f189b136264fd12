"""Variance-Covariance Regularization for JAX and Flax: `import vcreg_jax as vc`."""

from vcreg_jax import losses, metrics, mine, models, torch_weights
from vcreg_jax.baselines import DeCov, WLDReg
from vcreg_jax.diagnose import Diagnosis, diagnose
from vcreg_jax.regularizers import Regularizer, Sites, VCReg, explicit, identity

__all__ = [
    "DeCov",
    "Diagnosis",
    "Regularizer",
    "Sites",
    "VCReg",
    "WLDReg",
    "diagnose",
    "explicit",
    "identity",
    "losses",
    "metrics",
    "mine",
    "models",
    "torch_weights",
]
