"""Which image stands where in the stream of training examples: a function of the seed and the place alone."""

import functools
from typing import Any

import numpy as np


def turn(places: Any, batch_size: int, group_size: int) -> Any:
    """Which example of the stream stands at a place of it: its batches are dealt out to their groups, row by row."""
    step, row = places // batch_size, places % batch_size
    group, row_of_group = row // group_size, row % group_size
    return step * batch_size + row_of_group * (batch_size // group_size) + group


@functools.lru_cache(maxsize=16)
def of_epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch of `count` images, all of it drawn at once."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def of_step(count: int, batch_size: int, seed: int, step: int, group_size: int, repeats: int) -> np.ndarray:
    """The positions, of `count` images, that make up the batch of a step; each is taken `repeats` times in a row."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, turns = np.divmod(turn(places, batch_size, group_size), count)
    positions = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs).tolist():
        positions[epochs == epoch] = of_epoch(count, seed, epoch)[turns[epochs == epoch] // repeats]
    return positions
