"""JAX's half of the timing table: a network's columns compiled in threads, then timed in turn, phase by phase."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from typing import Any

from train.benchmarks import programs as benchmark
from train.benchmarks.programs import AGAIN, Settings
from train.benchmarks.timing import LATE, NEVER, Deadline, Row, interleave

Job = tuple[str, str]  # phase and column
FIRST_CALLS = 4  # at once: one of ConvNeXt-T's takes up to 12 GB


@dataclass(frozen=True)
class Ready:
    """A program that has been compiled and called once."""

    call: Callable[[], None]
    memory: int
    compile_seconds: float  # with tracing
    first_call_seconds: float


def measure(settings: Settings, model: str, dtype: str, end: Deadline = NEVER) -> list[Row]:
    """All columns of one network in one precision, every phase interleaved on its own."""
    return list(chain.from_iterable(measure_phases(settings, model, dtype, settings.phases, end)))


def measure_phases(
    settings: Settings, model: str, dtype: str, phases: Sequence[str], end: Deadline = NEVER
) -> Iterator[list[Row]]:
    """The rows of one phase after the other, each as soon as it is timed.

    All programs are compiled and called once before any is timed, so that those that are timed have the device for
    themselves. With an `end` what takes too long is left out, and says so.
    """
    jobs = [(phase, column) for phase in phases for column in settings.columns]
    programs, failed, busy = _prepare(settings, model, dtype, jobs, end.part(0.6), end.part(0.8))
    for index, phase in enumerate(phases):
        of_phase = {column: program for (own, column), program in programs.items() if own == phase}
        calls = {column: of_phase[column].call for column in settings.columns if column in of_phase}
        if "identity" in calls:
            calls[AGAIN], of_phase[AGAIN] = calls["identity"], of_phase["identity"]
        disturbed = any(job.running() for job in busy)
        part = end.part(1 / (len(phases) - index))
        rows = []
        for column, seconds in interleave(calls, settings.rounds, part).items() if calls else ():
            own = of_phase[column]
            took = own.compile_seconds, own.first_call_seconds
            rows.append(Row("JAX", model, dtype, phase, column, seconds, own.memory, "", *took, disturbed))
        whys = {column: why for (own, column), why in failed.items() if own == phase}
        yield rows + [Row("JAX", model, dtype, phase, column, not_run=why) for column, why in whys.items()]


def _prepare(
    settings: Settings, model: str, dtype: str, jobs: Sequence[Job], begin_by: Deadline, end_by: Deadline
) -> tuple[dict[Job, Ready], dict[Job, str], list[Future]]:
    """The programs that are ready, why the others are not, and what is still at work.

    None begins to be compiled after `begin_by`; those that are at work then are waited for until `end_by`.
    """
    mesh = benchmark.one_device_mesh(settings.platform)
    first_calls = threading.Semaphore(FIRST_CALLS)

    def prepare(job: Job) -> Ready:
        start = time.perf_counter()
        call, memory = benchmark.program(settings, model, dtype, *job, mesh)
        compiled = time.perf_counter()
        print(f"  JAX, {model}, {dtype}, {', '.join(job)}: compiled in {compiled - start:.1f} s", flush=True)
        with first_calls:
            begun = time.perf_counter()
            call()
        return Ready(call, memory, compiled - start, time.perf_counter() - begun)

    pool = ThreadPoolExecutor(min(len(jobs), max((os.cpu_count() or 1) // 2, 1)))
    futures = {pool.submit(prepare, job): job for job in jobs}
    _wait(list(futures), begin_by)
    pool.shutdown(wait=False, cancel_futures=True)
    _wait(list(futures), end_by)
    done = {job: future for future, job in futures.items() if future.done() and not future.cancelled()}
    failed = {job: _first_line(error) for job, future in done.items() if (error := future.exception())}
    programs = {job: future.result() for job, future in done.items() if job not in failed}
    late = {job: LATE for job in jobs if job not in done}
    return programs, failed | late, [future for future in futures if future.running()]


def _wait(futures: list[Future[Any]], until: Deadline) -> None:
    wait(futures, None if math.isinf(until.at) else until.left)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
