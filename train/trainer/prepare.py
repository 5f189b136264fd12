"""Everything that a training run needs and that can be wrong, looked at before any long work."""

from dataclasses import dataclass

import optax
from flax import nnx
from jax.sharding import Mesh

from train.augment import check_mix
from train.config import TrainConfig
from train.data import checks, pipeline
from train.run.tensorboard import check_installed
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, structure
from train.trainer.optim import make_optimizer
from vcreg_jax import Sites


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs that can be wrong, found to be right."""

    mesh: Mesh
    data: pipeline.Split
    validation: pipeline.Split
    architecture: Architecture
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation


def prepare(config: TrainConfig, sites: Sites) -> Prepared:
    """What `train` works with; nothing is allocated yet.

    Raises:
      ValueError: for a config that cannot run.
    """
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch_size(config.batch_size, mesh)
    if config.tensorboard:
        check_installed()
    if config.joint_embedding is not None and (config.data.second_view is None or not config.monitor_images):
        raise ValueError("joint_embedding needs data.second_view, and monitor_images > 0 to say how it goes.")
    if config.tested_by == "rankme" and not config.monitor_images:
        raise ValueError('tested_by="rankme" needs monitor_images > 0, at least the 20 of the nearest neighbours.')
    if config.tested_by is not None and config.checkpoints.keep_best < 1:
        raise ValueError(f"tested_by={config.tested_by!r} needs checkpoints.keep_best >= 1: the best one is tested.")
    if config.joint_embedding is None and config.data.second_view is not None:
        raise ValueError("data.second_view is for joint_embedding, which this config has not.")
    check_mix(config.mix, config.batch_size, config.data.repeats)
    data = pipeline.load(config.data, "train")
    validation = pipeline.load(config.data, "validation")
    checks.check_training(config.data, data, validation, config.batch_size)
    architecture = Architecture(config.model, data.num_classes, data.image_shape, sites, config.joint_embedding)
    graphdef, norms = structure(architecture)
    optimizer = make_optimizer(config.optimizer, config.steps, norms)
    return Prepared(mesh, data, validation, architecture, graphdef, optimizer)
