"""Variance-Covariance Regularization for JAX and Flax: `import vcreg_jax as vc`."""

from vcreg_jax import linen, losses, metrics, mine, models, probes, torch_weights
from vcreg_jax.attach import attach, detach
from vcreg_jax.baselines import DeCov, WLDReg
from vcreg_jax.check import Reach, check
from vcreg_jax.decorrelation import Decorrelation
from vcreg_jax.diagnose import Diagnosis, diagnose
from vcreg_jax.directions import at_step
from vcreg_jax.doctor import Checkup, doctor
from vcreg_jax.koleo import KoLeo
from vcreg_jax.layouts import masked, on_axis, over_time
from vcreg_jax.mean_removal import MeanRemoval, RemoveMean
from vcreg_jax.regularizers import Regularizer, Sites, VCReg, explicit, identity
from vcreg_jax.sigreg import SIGReg
from vcreg_jax.weak_sigreg import WeakSIGReg

__version__ = "0.1.0"

__all__ = [
    "Checkup",
    "DeCov",
    "Decorrelation",
    "Diagnosis",
    "KoLeo",
    "MeanRemoval",
    "Reach",
    "Regularizer",
    "RemoveMean",
    "SIGReg",
    "Sites",
    "VCReg",
    "WLDReg",
    "WeakSIGReg",
    "at_step",
    "attach",
    "check",
    "detach",
    "diagnose",
    "doctor",
    "explicit",
    "identity",
    "linen",
    "losses",
    "masked",
    "metrics",
    "mine",
    "models",
    "on_axis",
    "over_time",
    "probes",
    "torch_weights",
]
