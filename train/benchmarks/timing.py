"""Timing several programs against each other: interleaved rounds, one process per library, plain statistics."""

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name")

WARM_UP = 1  # calls of each program before the clock runs, and after the first one


@dataclass(frozen=True)
class Deadline:
    """A point in time, the same for all processes of a machine."""

    at: float = math.inf  # of `time.time()`

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """So many seconds from now."""
        return cls(time.time() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then, 0 when it is past."""
        return max(self.at - time.time(), 0.0)

    def part(self, share: float) -> "Deadline":
        """The point at which this share of the time that is left now has passed."""
        return Deadline.after(share * self.left)


NEVER = Deadline()
LATE = "not ready in time"  # why a row was not run that would be, given more time


@dataclass(frozen=True)
class Row:
    """One cell of a timing table: a network in one precision, one phase of its work, one column."""

    library: str  # "JAX", "PyTorch eager" or "PyTorch compiled"
    model: str
    dtype: str  # of the computation; parameters are float32
    phase: str
    column: str
    seconds: tuple[float, ...] = ()  # of every round; none when it did not run
    memory: int | None = None  # bytes on the device at the peak, as far as the library tells
    not_run: str = ""  # why
    compile_seconds: float | None = None  # with tracing, others being compiled beside it
    first_call_seconds: float | None = None  # of the first call after that, likewise
    disturbed: bool = False  # what came too late was still being compiled while this was timed


@dataclass(frozen=True)
class Spread:
    """The median of n values, and the quartiles around it."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of `values`, of which there is at least one."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high), len(values))


def interleave(
    calls: Mapping[Name, Callable[[], None]], rounds: int, end: Deadline = NEVER
) -> dict[Name, tuple[float, ...]]:
    """Seconds of every call in every round, after `WARM_UP` calls of each; past `end` no round begins but the first.

    A call returns when its work is done. All are called in turn within a round, each round begins with another one, so
    what else the machine does meets all alike: compare them round by round (`ratio`), not by their means.

    Raises:
      ValueError: when there is nothing to time.
    """
    if not calls or rounds < 1:
        raise ValueError(f"There is nothing to time: {len(calls)} programs, {rounds} rounds.")
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    names = list(calls)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        if turn and not end.left:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: tuple(values) for name, values in seconds.items()}


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The spread of the quotients within each round.

    Raises:
      ValueError: when the two do not have as many rounds.
    """
    return Spread.of([a / b for a, b in zip(seconds, baseline, strict=True)])


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a fresh process that ends with it; what it raises is raised here.

    What a library keeps on the device goes with its process: JAX by default reserves three quarters of a GPU, and
    neither JAX's nor PyTorch's allocator gives back before the end.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
