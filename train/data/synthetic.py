"""Random images of any shape, for benchmarks without files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SyntheticImages:
    """Random access to `count` images uint8 `shape` of `classes` classes; each is a function of its index alone."""

    count: int
    shape: tuple[int, int, int]
    classes: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray | np.int32]:
        """Uniform noise about a brightness of its class's, so that there is something to learn."""
        rng = np.random.default_rng(index)
        label = self.label(index)
        noise = np.frombuffer(rng.bytes(int(np.prod(self.shape))), np.uint8).reshape(self.shape)
        return {"image": noise // 2 + np.uint8(127 * label // max(self.classes - 1, 1)), "label": np.int32(label)}

    def label(self, index: int) -> int:
        """Classes in turn."""
        return index % self.classes

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray | np.int32]]:
        """The records at `indices`."""
        return [self[index] for index in indices]
