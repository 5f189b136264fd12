"""Variance-Covariance Regularization for JAX and Flax: `import vcreg_jax as vc`."""

from vcreg_jax import linen, losses, metrics, mine, models, probes, torch_weights
from vcreg_jax.attach import attach, detach
from vcreg_jax.baselines import DeCov, WLDReg
from vcreg_jax.check import Reach, check
from vcreg_jax.diagnose import Diagnosis, diagnose
from vcreg_jax.layouts import masked, on_axis
from vcreg_jax.regularizers import Regularizer, Sites, VCReg, explicit, identity

__version__ = "0.1.0"

__all__ = [
    "DeCov",
    "Diagnosis",
    "Reach",
    "Regularizer",
    "Sites",
    "VCReg",
    "WLDReg",
    "attach",
    "check",
    "detach",
    "diagnose",
    "explicit",
    "identity",
    "linen",
    "losses",
    "masked",
    "metrics",
    "mine",
    "models",
    "on_axis",
    "probes",
    "torch_weights",
]
