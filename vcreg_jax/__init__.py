"""Variance-Covariance Regularization for JAX and Flax: `import vcreg_jax as vc`."""

from vcreg_jax import losses, metrics, models, probes, torch_weights
from vcreg_jax.attach import linen
from vcreg_jax.attach.check import Reach, check
from vcreg_jax.attach.nnx import attach, detach
from vcreg_jax.attach.steps import at_step
from vcreg_jax.metrics import mine
from vcreg_jax.metrics.diagnose import Diagnosis, diagnose
from vcreg_jax.metrics.doctor import Checkup, doctor
from vcreg_jax.regularizers.add_gradient import Regularizer, identity
from vcreg_jax.regularizers.baselines import DeCov, WLDReg
from vcreg_jax.regularizers.decorrelation import Decorrelation
from vcreg_jax.regularizers.explicit import explicit
from vcreg_jax.regularizers.koleo import KoLeo
from vcreg_jax.regularizers.layouts import masked, on_axis, over_time
from vcreg_jax.regularizers.mean_removal import MeanRemoval, RemoveMean
from vcreg_jax.regularizers.sigreg import SIGReg
from vcreg_jax.regularizers.sites import Sites
from vcreg_jax.regularizers.vcreg import VCReg
from vcreg_jax.regularizers.weak_sigreg import WeakSIGReg

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
