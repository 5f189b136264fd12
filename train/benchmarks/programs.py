"""What a regularizer costs a network: Table 1's columns as JAX's programs. `step_jax` times them.

Programs of one network and precision are interleaved call by call in one process. Inputs lie on the device, one
batch of random bytes; what is timed ends with `block_until_ready`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AxisType, Mesh

import vcreg_jax as vc
from train.config import AdamW, Cosine, ModelConfig, OptimizerConfig
from train.trainer.model import Architecture, create_state, structure
from train.trainer.objective import Classification
from train.trainer.optim import make_optimizer
from train.trainer.step import Batch, Normalize, State, make_train_step
from vcreg_jax import Sites
from vcreg_jax.models.layers import BatchNorm

Platform = Literal["cpu", "gpu", "tpu"]
Model = Literal["vit_b_32", "convnext_tiny", "resnet50"]
Dtype = Literal["float32", "bfloat16"]
Phase = Literal["forward+backward", "training step"]
MODELS, DTYPES, PHASES = get_args(Model), get_args(Dtype), get_args(Phase)
NUM_CLASSES = 1000
GROUPS = 4  # of the column with group scope
SAMPLE = 4  # of the sampled column: every 4th row and column of a map
SEED = 0
AGAIN = "identity again"  # the same program a second time in every round: what no difference looks like

REG = vc.VCReg(alpha=0.64, beta=0.08)


def batch_norm(h: jax.Array, /) -> jax.Array:
    """Marks the places where `WithBatchNorm` puts a batch norm; itself the identity."""
    return h


def barrier(h: jax.Array, /) -> jax.Array:
    """The identity, but nothing is fused across it: a second baseline, see `COLUMNS`."""
    return lax.optimization_barrier(h)


# A regularizer also stops the compiler from fusing what is before a block's end with what is behind it, which can gain
# or lose more than the regularizer costs; "barrier" does that alone, so that the two can be told apart.
COLUMNS: dict[str, vc.Regularizer] = {
    "identity": vc.identity,
    "barrier": barrier,
    "VCReg": REG,
    "naive": vc.explicit(REG),
    "BatchNorm": batch_norm,
    "VCReg, groups": vc.VCReg(alpha=REG.alpha, beta=REG.beta, scope=GROUPS),
    "VCReg, sampled": vc.VCReg(alpha=REG.alpha, beta=REG.beta, sample=SAMPLE),
}
NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OPTIMIZER = OptimizerConfig(AdamW(weight_decay=0.05), Cosine(1e-4, warmup_steps=10))


@dataclass(frozen=True)
class Settings:
    """One timing table."""

    platform: Platform
    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    batch_size: int
    rounds: int
    image_size: int = 224
    num_classes: int = NUM_CLASSES
    columns: dict[str, vc.Regularizer] = field(default_factory=lambda: dict(COLUMNS))
    phases: tuple[str, ...] = PHASES


def defaults(platform: Platform) -> Settings:
    """The paper's batch of 128 in both precisions; on a CPU, which would take hours for that, 8 in float32."""
    if platform == "cpu":
        return Settings(platform, MODELS, DTYPES[:1], batch_size=8, rounds=5)
    return Settings(platform, MODELS, DTYPES, batch_size=128, rounds=30)


def one_device_mesh(platform: str | None) -> Mesh:
    """The training step's mesh on the first device of that platform, or of JAX's choice.

    Raises:
      ValueError: when there is none.
    """
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")  # nothing else need be woken
    try:
        device = jax.devices(platform)[0]
    except RuntimeError as error:
        raise ValueError(f"JAX finds no device of platform {platform!r}: {error}.") from error
    return jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=[device])


class Normalized(nnx.Module):
    """`h -> batch norm(h)` in training mode, in a regularizer's place."""

    def __init__(self, dim: int, dtype: Any):
        self.norm = BatchNorm(dim, dtype=dtype)

    def __call__(self, h: jax.Array) -> jax.Array:
        """The normalized features."""
        return self.norm(h, train=True)


@dataclass(frozen=True)
class WithBatchNorm(Architecture):
    """The architecture with a whole batch norm where its `sites` have anything but the identity.

    That is the paper's comparison: "inserting BatchNorm" where VCReg would be. Nothing of it is left out: batch
    statistics and their gradient, a learned scale and shift that the optimizer updates, running statistics.
    """

    def create(self, seed: Any) -> nnx.Module:
        """The network, freshly initialised."""
        shapes = site_shapes(Architecture(self.config, self.num_classes, self.image_shape, self.sites), 1)
        model = super().create(seed)
        for path, module in list(nnx.iter_modules(model)):
            if path in shapes:
                norm = Normalized(shapes[path].shape[-1], jnp.dtype(self.config.dtype))
                cast(Any, module).regularize = nnx.data(norm)
        return model


def site_shapes(architecture: Architecture, batch_size: int) -> dict[tuple, jax.ShapeDtypeStruct]:
    """By module path, the features that each regularizer other than the identity sees; nothing is computed."""
    shapes: dict[tuple, jax.ShapeDtypeStruct] = {}

    def see(path: tuple, h: jax.Array) -> jax.Array:
        shapes[path] = jax.ShapeDtypeStruct(h.shape, h.dtype)
        return h

    model = nnx.eval_shape(lambda: architecture.create(SEED))
    for path, module in nnx.iter_modules(model):
        if getattr(module, "regularize", vc.identity) is not vc.identity:
            cast(Any, module).regularize = partial(see, path)
    images = jax.ShapeDtypeStruct((batch_size, *architecture.image_shape), jnp.float32)
    nnx.eval_shape(lambda model, x: model(x), model, images)
    return shapes


def architecture(settings: Settings, model: str, dtype: str, column: str) -> Architecture:
    """The network of one column, its regularizer after every residual block."""
    regularizer = settings.columns[column]
    kind = WithBatchNorm if regularizer is batch_norm else Architecture
    config = ModelConfig(model, cast(Any, dtype))
    shape = (settings.image_size, settings.image_size, 3)
    return kind(config, settings.num_classes, shape, Sites(block=regularizer))


def program(
    settings: Settings, model: str, dtype: str, phase: str, column: str, mesh: Mesh
) -> tuple[Callable[[], None], int]:
    """A call that runs the phase once and waits for it, already compiled; and the bytes that it needs at the peak."""
    network = architecture(settings, model, dtype, column)
    graphdef, norms = structure(network)
    optimizer = make_optimizer(OPTIMIZER, 1000, norms)
    batch = jax.device_put(random_batch(settings), mesh.devices.item())
    # Of one parameter tree all columns have the same values, and but one program that draws them.
    drawn = network if isinstance(network, WithBatchNorm) else replace(network, sites=Sites())
    state = create_state(drawn, optimizer, mesh, SEED)
    if phase == PHASES[0]:
        state = {name: state[name] for name in ("params", "batch_stats")}  # AdamW's moments need not lie there
        compiled = cast(Any, forward_backward(graphdef)).lower(state, batch).compile()
        return partial(_run, compiled, state, batch), peak_memory(compiled)
    step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(), mesh)
    compiled = cast(Any, step).lower(state, batch, SEED).compile()
    states = _training(compiled, state, batch)
    return partial(next, states), peak_memory(compiled)


def _run(compiled: Callable[..., Any], *arguments: Any) -> None:
    jax.block_until_ready(compiled(*arguments))


def _training(step: Callable[..., Any], state: State, batch: Batch) -> Iterator[None]:
    """One training step, waited for, whenever the next value is asked for."""
    while True:
        state, metrics = step(state, batch, SEED)
        jax.block_until_ready((state, metrics))
        yield


def forward_backward(graphdef: nnx.GraphDef) -> Callable[[State, Batch], Any]:
    """A jitted `(state, batch) -> ((loss, batch statistics), gradients)`: the training step without its optimizer."""

    @jax.jit
    def gradients(state: State, batch: Batch) -> Any:
        def loss_fn(params):
            model = nnx.merge(graphdef, params, state["batch_stats"])
            logits, _ = model(NORMALIZE(batch["image"]), train=True, rngs=nnx.Rngs(dropout=SEED))
            loss = vc.losses.cross_entropy(logits, batch["label"]).mean()
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss_fn, has_aux=True)(state["params"])

    return gradients


def random_batch(settings: Settings) -> dict[str, np.ndarray]:
    """Images of random bytes and random labels."""
    rng = np.random.default_rng(SEED)
    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    labels = rng.integers(0, settings.num_classes, settings.batch_size, dtype=np.int32)
    return {"image": rng.integers(0, 256, shape, dtype=np.uint8), "label": labels}


def peak_memory(compiled: Any) -> int:
    """Bytes of arguments, results and temporaries together, what is donated counted once: the compiler's own sum."""
    sizes = compiled.memory_analysis()
    together = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return int(together - sizes.alias_size_in_bytes)
