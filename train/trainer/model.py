"""From a config to a network: its structure, and its first state laid out on a mesh."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

import vcreg_jax as vc
from train.config import GuardConfig, JointEmbedding, ModelConfig
from train.trainer.mesh import state_shardings
from train.trainer.optim import Path, normalization_parameters
from train.trainer.step import State, initial_state, split
from vcreg_jax import Sites
from vcreg_jax.models.projector import Projected, Projector


@dataclass(frozen=True)
class Architecture:
    """All that decides a network's structure; equal architectures share compiled programs."""

    config: ModelConfig
    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    sites: Sites
    joint_embedding: JointEmbedding | None = None  # with its projector in place of the classifier

    def create(self, seed: Any) -> nnx.Module:
        """The network, freshly initialised."""
        norms = {} if self.config.norm_scope == "global" else {"norm_scope": self.config.norm_scope}
        starts = {"zero_init_residual": True} if self.config.zero_init_residual else {}  # an option of ResNets alone
        sizes = {"image_size": self.config.image_size} if self.config.image_size else {}  # of ViTs and MLPs alone
        rngs, dtype = nnx.Rngs(params=jax.random.key(seed)), jnp.dtype(self.config.dtype)
        network: Any = vc.models.create(
            self.config.name,
            num_classes=self.num_classes,
            in_channels=self.image_shape[-1],
            stochastic_depth=self.config.stochastic_depth,
            dtype=dtype,
            sites=self.sites,
            **norms,
            **starts,
            **sizes,
            rngs=rngs,
        )
        if self.joint_embedding is not None:
            widths, norm_last = self.joint_embedding.projector, self.joint_embedding.norm_last
        elif self.config.projector:
            widths, norm_last = (*self.config.projector, self.num_classes), False  # the last layer is the classifier
        else:
            return network
        features = network.head.in_features
        network.head = None
        return Projected(network, Projector(features, widths, norm_last=norm_last, dtype=dtype, rngs=rngs, **norms))


@functools.lru_cache
def structure(architecture: Architecture) -> tuple[nnx.GraphDef, frozenset[Path]]:
    """The graphdef, and the paths of the parameters of normalization layers; nothing is allocated."""
    images = jax.ShapeDtypeStruct((1, *architecture.image_shape), jnp.float32)
    plain = replace(architecture, sites=Sites())  # one image does not divide into a regularizer's groups
    nnx.eval_shape(lambda x: plain.create(0)(x), images)  # here, if the network cannot take their size
    model = nnx.eval_shape(lambda: architecture.create(0))
    return split(model)[0], normalization_parameters(model)


def create_state(
    architecture: Architecture,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    with_ema: bool = False,
    guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> State:
    """The state before the first step, every array created where it lies on the mesh."""
    return _initializer(architecture, optimizer, mesh, with_ema, guard)(seed)


def put_weights(state: State, params: dict, batch_stats: dict) -> State:
    """The state before the first step with these weights, and where they have none with its own."""
    weights = {"params": _filled(state["params"], params), "batch_stats": _filled(state["batch_stats"], batch_stats)}
    return state | weights | ({"ema": jax.tree.map(jnp.copy, weights)} if "ema" in state else {})


def _filled(own: Any, given: Any) -> Any:
    if isinstance(own, dict):
        return {key: _filled(value, given[key]) if key in given else value for key, value in own.items()}
    return jax.device_put(jnp.array(given, own.dtype, copy=True), own.sharding)  # since steps donate the state


def abstract_state(
    architecture: Architecture,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    with_ema: bool = False,
    guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> State:
    """`create_state` without a number: shapes, dtypes and shardings, also for a mesh of devices that are not there."""
    return _initializer(architecture, optimizer, mesh, with_ema, guard).eval_shape(0)


@functools.lru_cache
def _initializer(
    architecture: Architecture, optimizer: optax.GradientTransformation, mesh: Mesh, with_ema: bool, guard: GuardConfig
) -> Any:
    def create(seed):
        _, params, batch_stats = split(architecture.create(seed))
        return initial_state(params, batch_stats, optimizer, with_ema, guard)

    return jax.jit(create, out_shardings=state_shardings(jax.eval_shape(create, 0), mesh))
