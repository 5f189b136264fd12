"""How near the sampled gradient is to the exact one: `python -m tests.sampled_gradient`, with `../shared`.

A ResNet-32 trained on CIFAR-10 (Yerlan Idelbayev's published weights) in training mode on test images. For the output
of every block and every stride, the gradient of that block's penalty alone: its cosine with the exact one, over the
kept rows (what the error of the statistics does) and over all parameters (what training feels).
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import vcreg_jax as vc
from tests.development_images import load_reader
from train.run.provenance import commit
from vcreg_jax.regularizers import sampling

SHARED = Path(__file__).resolve().parents[2] / "shared"
RESULT = Path(__file__).parent.parent / "docs/results/sampled_gradient.json"
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
IMAGES, BATCHES, STRIDES = 64, 1, (2, 4)


class Recording:
    """The identity, keeping what it was shown."""

    def __init__(self):
        self.shown: list[jax.Array] = []

    def __call__(self, h):
        self.shown.append(h)
        return h


def outputs_of_blocks(state, images):
    """Of a ResNet-32 with this state, in training mode."""
    recording = Recording()
    model = vc.models.create("resnet32", num_classes=10, sites=vc.Sites(block=recording), rngs=nnx.Rngs(0))
    nnx.update(model, state)
    model(images, train=True)  # pyright: ignore[reportCallIssue]
    return recording.shown


@functools.partial(jax.jit, static_argnames="stride")
def gradient(state, images, weights, stride):
    """Of the blocks' penalties in a weighted sum, with respect to all parameters."""

    def penalty(state):
        shown = outputs_of_blocks(state, images)
        return sum(w * vc.VCReg(sample=stride).penalty(h) for w, h in zip(weights, shown, strict=True))

    return nnx.filter_state(jax.grad(penalty)(state), nnx.Param)


@jax.jit
def over_kept_rows(h):
    """The cosine for every stride."""
    exact = vc.VCReg().gradient(h)
    return [cosine(sampling.keep(vc.VCReg(sample=k).gradient(h), k), sampling.keep(exact, k)) for k in STRIDES]


@jax.jit
def cosine(a, b):
    """Of two trees of arrays."""
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def main() -> None:
    """Prints the table and writes docs/results/sampled_gradient.json."""
    images, _, _ = load_reader(SHARED / "data").load_images(SHARED / "data/cifar10_test.npz")
    chosen = np.random.default_rng(0).permutation(len(images))[: BATCHES * IMAGES]
    pixels = (images[chosen] / np.float32(255) - MEAN) / STD
    trained = torch.load(SHARED / "weights/resnet32-d509ac18.th", map_location="cpu", weights_only=True)
    model = vc.models.create("resnet32", num_classes=10, rngs=nnx.Rngs(0))
    vc.torch_weights.load(model, trained["state_dict"])
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    shapes, found = [], []
    for batch in jnp.split(jnp.asarray(pixels), BATCHES):
        shown = jax.jit(outputs_of_blocks)(state, batch)
        shapes = [h.shape for h in shown]
        for block, (h, alone) in enumerate(zip(shown, jnp.eye(len(shown)), strict=True)):
            exact, *sampled = (gradient(state, batch, alone, k) for k in (1, *STRIDES))
            found.append((block, over_kept_rows(h), [cosine(each, exact) for each in sampled]))
    write(shapes, found)


def write(shapes, found) -> None:
    """Prints the table, a line a block, and writes it with what it was made with."""
    rows = []
    print(
        "| block | map | stride | rows a feature | cosine, kept rows | cosine, parameters |\n|--:|--|--:|--:|--:|--:|"
    )
    for block, (_, *positions, d) in enumerate(shapes):
        for i, k in enumerate(STRIDES):
            rows_per_feature = IMAGES * np.prod([-(-size // k) for size in positions]) / d
            cosines = np.array([(kept[i], own[i]) for which, kept, own in found if which == block], float)
            (kept, own), (worst_kept, worst_own) = cosines.mean(axis=0), cosines.min(axis=0)
            rows.append([block, [*positions, d], k, rows_per_feature, [kept, worst_kept], [own, worst_own]])
            shape = "x".join(map(str, (*positions, d)))
            print(
                f"| {block} | {shape} | {k} | {rows_per_feature:.0f} | {kept:.4f} (worst {worst_kept:.4f}) "
                f"| {own:.4f} (worst {worst_own:.4f}) |"
            )
    columns = ["block", "map", "stride", "rows a feature", "cosine over kept rows", "cosine over parameters"]
    made = {"command": "python -m tests.sampled_gradient", "commit": commit(), "jax": jax.__version__}
    made |= {"images": IMAGES, "batches": BATCHES, "cosines": "mean and worst over the batches"}
    RESULT.write_text(json.dumps({**made, "columns": columns, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
