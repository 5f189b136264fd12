"""`python -m train crosscheck`: this implementation and PyTorch, side by side, number by number.

Both get the same random weights and the same random images. Float32 says how close two libraries are in practice;
float64, where no rounding can hide a wrong formula, is the judge. Networks with relu see one more thing in float32:
rounding now and then carries an activation across the corner in one library and not in the other, and with it a
share of all gradients before it. `networks.SEED` is one at which that does not happen; in float64 any seed will do.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from train.files import whole_files
from train.interop.crosscheck import networks, parts
from train.interop.crosscheck.item import Item, line


def run(json_path: Path | None = None) -> bool:
    """Prints every comparison as it is made, writes them to `json_path` if given; returns whether all passed."""
    if json_path is not None and not json_path.parent.is_dir():
        raise ValueError(f"There is no folder {json_path.parent}.")
    torch.set_num_threads(1)  # such small networks are slower on more
    print(", ".join(f"{name} {version}" for name, version in _versions().items()), "\n")
    print(f"{'compared with PyTorch':62}{'absolute':>10}{'relative':>10}{'tolerance':>11}")
    items = []
    for item in all_items():
        items.append(item)
        print(line(item), flush=True)
    failed = [item.name for item in items if not item.passed]
    print(f"\n{len(items) - len(failed)} of {len(items)} passed" + (f"; failed: {'; '.join(failed)}" if failed else ""))
    if json_path is not None:
        rows = [asdict(item) | {"passed": item.passed} for item in items]
        result = {"versions": _versions(), "items": rows, "passed": not failed}
        whole_files.write(json_path, json.dumps(result, indent=2) + "\n")
    return not failed


def all_items() -> Iterator[Item]:
    """Every comparison, the quick ones first."""
    for compare in (parts.regularizer, parts.label_smoothing, parts.schedules, parts.optimizers, parts.moving_average):
        yield from compare()
    for compare in (networks.one_step, networks.training):
        for family in networks.FAMILIES:
            for dtype in ("float32", "float64"):
                yield from compare(family, dtype)


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "flax", "optax", "torch", "torchvision", "timm", "numpy")}
