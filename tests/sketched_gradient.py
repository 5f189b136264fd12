"""VCReg's covariance term through k random projections: how near it is and what it costs, beside `sample=`.

    python -m tests.sketched_gradient cosine     # with ../shared; minutes
    python -m tests.sketched_gradient compile    # the gradients in ResNet-50 for v5e; minutes

With O the covariance without its diagonal and S a d x k matrix of random signs over sqrt(k), E[S S'] = I, so

    one-sided    x S S' O            = (x S) (O S)'                       three products of n d k
    two-sided    x (S S' O + O S S') / 2                                  the gradient of half sum ((O S)_ij)^2; five

have the expectation x O, whose 4 beta / (d (d - 1) (n - 1)) is the covariance term's gradient. Variances are exact. The
library has neither: docs/sampled.md has the numbers.
"""

import functools
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import vcreg_jax as vc
from configs import digits
from tests.development_images import load_reader
from tests.sampled_gradient import MEAN, SHARED, STD, Recording, cosine, outputs_of_blocks
from train.benchmarks import tpu_compiler
from train.data import pipeline
from train.run.provenance import commit
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, create_state, structure
from train.trainer.objective import objective
from train.trainer.optim import make_optimizer
from train.trainer.step import Normalize, make_train_step
from vcreg_jax.regularizers.add_gradient import add_gradient, pytree
from vcreg_jax.regularizers.statistics import map_groups, num_samples

RESULT = Path(__file__).parent.parent / "docs/results/sketched_gradient.json"
SKETCHES, DRAWS, IMAGES = (8, 16, 32), 4, 64


@pytree("seed")
@dataclass(frozen=True)
class Sketched:
    """VCReg with alpha 0.64 and beta 0.08, the covariance through k directions; in groups of its own rows."""

    k: int
    two_sided: bool = False
    groups: int = 1
    seed: int | Array = 0

    def __call__(self, h: Array, /) -> Array:
        """`h` itself."""
        return add_gradient(self, h)

    def penalty(self, h: Array, /) -> Array:
        """VCReg's."""
        return vc.VCReg(scope=self.groups).penalty(h)

    def gradient(self, h: Array, /) -> Array:
        """Of each group's penalty, over their number."""
        return map_groups(self._gradient, h, self.groups) / self.groups

    def drawn(self, seed: Array, h: Array) -> Array:
        """`gradient(h)` with other directions."""
        return replace(self, seed=seed).gradient(h)

    def _gradient(self, h: Array) -> Array:
        """Products take operands in the dtype of `h` and accumulate in float32, as VCReg's do."""
        n, d = num_samples(h), h.shape[-1]
        samples = tuple(range(h.ndim - 1))
        product = functools.partial(lax.dot_general, preferred_element_type=jnp.promote_types(h.dtype, jnp.float32))
        over_features, over_samples = (((h.ndim - 1,), (0,)), ((), ())), ((samples, samples), ((), ()))
        first = h[(0,) * len(samples)]
        x = h - first  # near enough to centred for its own dtype; the mean follows
        x = x - x.mean(axis=samples, dtype=jnp.float32).astype(h.dtype)
        signs = jax.random.rademacher(jax.random.key(self.seed), (d, self.k), jnp.float32) / np.sqrt(self.k)
        y = product(x, signs.astype(h.dtype), over_features).astype(h.dtype)
        variances = (x.astype(jnp.float32) ** 2).sum(axis=samples) / (n - 1)
        off = product(x, y, over_samples) / (n - 1) - variances[:, None] * signs  # O S
        scale = 4 * 0.08 / (d * (d - 1) * (n - 1))
        hinge = jnp.where(variances + 1e-4 < 1, lax.rsqrt(variances + 1e-4), 0.0) * 0.64 / (d * (n - 1))
        pull = lax.optimization_barrier((scale * off).astype(h.dtype))
        if not self.two_sided:
            added = product(y, pull.T, over_features)
        else:
            left = product(x, pull, over_features).astype(h.dtype)
            both = jnp.concatenate([pull, signs.astype(h.dtype)], axis=1).T / 2
            added = product(jnp.concatenate([y, left], axis=-1), both, over_features)
        return added - x * hinge


def cosines(outputs_of_blocks: Any, state: Any) -> list[dict]:
    """Of every block's gradient with respect to all parameters below: mean over draws of its cosine to the exact one.

    "covariance term" is the same for alpha = 0.
    """
    shown, pull = jax.vjp(outputs_of_blocks, state)
    to_parameters = jax.jit(lambda cotangents: nnx.filter_state(pull(cotangents)[0], nnx.Param))

    def of_parameters(block: int, gradient: Array) -> Any:
        return to_parameters([gradient if i == block else jnp.zeros_like(h) for i, h in enumerate(shown)])

    rows = []
    for block, h in enumerate(shown):
        exact, exact_covariance = (of_parameters(block, reg.gradient(h)) for reg in (vc.VCReg(), vc.VCReg(0.0)))
        variance = vc.VCReg(beta=0.0).gradient(h)
        row: dict[str, Any] = {"shape": h.shape[1:]}
        for k in (2, 4):
            row[f"sample={k}"] = float(cosine(of_parameters(block, vc.VCReg(sample=k).gradient(h)), exact))
            sampled = of_parameters(block, vc.VCReg(0.0, sample=k).gradient(h))
            row[f"sample={k}, covariance term"] = float(cosine(sampled, exact_covariance))
        for k, two_sided in ((k, two) for k in SKETCHES if k < h.shape[-1] for two in (False, True)):
            found = [jax.jit(Sketched(k, two_sided).drawn)(seed, h) for seed in range(DRAWS)]
            name = f"sketch={k}, {'two' if two_sided else 'one'}-sided"
            row[name] = float(np.mean([cosine(of_parameters(block, g), exact) for g in found]))
            alone = [cosine(of_parameters(block, g - variance), exact_covariance) for g in found]
            row[name + ", covariance term"] = float(np.mean(alone))
        print(row, flush=True)
        rows.append(row)
    return rows


def digits_network() -> list[dict]:
    """Of the digits network after 500 steps, on a batch that it was trained with."""
    config = digits.get_config().train
    data, mesh = pipeline.load(config.data, "train"), meshes.make_mesh(config.mesh, jax.devices()[:1])
    architecture = Architecture(config.model, data.num_classes, data.image_shape, vc.Sites())
    graphdef, norms = structure(architecture)
    optimizer = make_optimizer(config.optimizer, config.steps, norms)
    normalize = Normalize(config.data.mean, config.data.std)
    step: Any = make_train_step(graphdef, optimizer, normalize, objective(config), mesh)
    state, images = create_state(architecture, optimizer, mesh, 0), jnp.zeros(())
    for _, batch in zip(range(config.steps), data.train_batches(config.batch_size, 0, 0), strict=False):
        state, _ = step(state, batch, 0)
        images = normalize(batch["image"])

    def outputs_of_blocks(params):
        recording = Recording()
        sites = vc.Sites(block=recording)
        model: Any = vc.models.create(config.model.name, num_classes=2, in_channels=1, sites=sites, rngs=nnx.Rngs(0))
        nnx.update(model, params)
        model(images)
        return recording.shown

    model = vc.models.create(config.model.name, num_classes=2, in_channels=1, rngs=nnx.Rngs(0))
    nnx.update(model, state["params"])
    return cosines(outputs_of_blocks, nnx.state(model, nnx.Param))


def cifar_network() -> list[dict]:
    """Of a ResNet-32 with published weights, in training mode on test images of CIFAR-10."""
    images, _, _ = load_reader(SHARED / "data").load_images(SHARED / "data/cifar10_test.npz")
    chosen = np.random.default_rng(0).permutation(len(images))[:IMAGES]
    pixels = jnp.asarray((images[chosen] / np.float32(255) - MEAN) / STD)
    trained = torch.load(SHARED / "weights/resnet32-d509ac18.th", map_location="cpu", weights_only=True)
    model = vc.models.create("resnet32", num_classes=10, rngs=nnx.Rngs(0))
    vc.torch_weights.load(model, trained["state_dict"])
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return cosines(lambda state: outputs_of_blocks(state, pixels), state)


# The outputs of ResNet-50's blocks at 224 pixels: positions along a side, width, and how many blocks have it.
STAGES = ((56, 256, 3), (28, 512, 4), (14, 1024, 6), (7, 2048, 3))
ARMS: dict[str, Any] = {
    "exact": vc.VCReg(scope=4),
    "sample=2": vc.VCReg(scope=4, sample=2),
    "sample=4": vc.VCReg(scope=4, sample=4),
    "sketch=64, one-sided": Sketched(64, groups=4),
    "sketch=128, one-sided": Sketched(128, groups=4),
    "sketch=64, two-sided": Sketched(64, two_sided=True, groups=4),
}


def cycles(reg: Any, side: int, width: int) -> int:
    """The compiler's estimate for one chip of a v5e: the gradient of 128 bfloat16 maps, added to another one."""
    devices = tpu_compiler.topology_devices("v5e:2x2")
    mesh = Mesh(np.array(devices).ravel(), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    h = jax.ShapeDtypeStruct((4 * 128, side, side, width), jnp.bfloat16, sharding=rows)

    def backward(h: Array, incoming: Array) -> Array:
        return jax.vjp(reg, h)[1](incoming)[0]

    with jax.set_mesh(mesh):
        text = jax.jit(backward, out_shardings=rows).lower(h, h).compile().as_text()
    return sum(int(found) for found in re.findall(r'"estimated_cycles":"(\d+)"', text or ""))


def write(name: str, found: Any) -> None:
    """Adds what was found to the file."""
    written = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(written | {"commit": commit(), "jax": jax.__version__, name: found}, indent=1) + "\n")


def main() -> None:
    """Prints and writes docs/results/sketched_gradient.json."""
    if sys.argv[1] == "cosine":
        for name, network in (("digits", digits_network), ("ResNet-32", cifar_network)):
            write(name, network())
        return
    jax.config.update("jax_platforms", "cpu")
    found: dict[str, Any] = {}
    for name, reg in ARMS.items():
        found[name] = {f"{side} x {side} x {width}": cycles(reg, side, width) for side, width, _ in STAGES}
        found[name]["all blocks"] = sum(
            blocks * found[name][f"{side} x {side} x {width}"] for side, width, blocks in STAGES
        )
        print(name, found[name], round(found[name]["all blocks"] / found["exact"]["all blocks"], 3), flush=True)
        write("estimated cycles of ResNet-50's regularizers alone, v5e, 128 images a chip, in groups", found)


if __name__ == "__main__":
    main()
