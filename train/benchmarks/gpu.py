"""`python -m train bench gpu`: what a GPU tells in a given time, the most valuable first.

The stages follow each other, so that each has the GPU and the CPU's cores for itself. Each is a process of its own, may
take a share of the time that is left when it begins, and writes `FOLDER/STAGE.json` after every part of its work. What
an earlier call has measured with the same code on the same kind of device is kept, and its compiled programs are taken
from `FOLDER/cache`.
"""

import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from train.benchmarks import gpu_stages as work
from train.benchmarks import superclasses, table1
from train.benchmarks.programs import COLUMNS, Settings
from train.benchmarks.timing import Deadline, in_own_process
from train.files import whole_files
from train.run.provenance import commit, sources

Result = dict[str, Any]
FOUR = ("identity", "VCReg", "naive", "BatchNorm")
TRIED = ("gradient", "jax_vit", "torch_eager_vit", "roofline", "dispatch", "superclasses")  # in a trial
FEWEST_SECONDS = 15.0  # with which a stage begins: starting a process and waking the GPU takes half of that
OVERTIME = 1.2  # times its share, after which a stage is stopped


@dataclass(frozen=True)
class Stage:
    """One process: what it measures, and which share of the time that is left it may take."""

    name: str  # of its files
    share: float
    measure: Callable[[Settings, Result, Callable[[Result], None], Deadline], None]  # settings, kept, save, end
    text: Callable[[Result], str]
    settings: Settings


def stages(tiny: bool, images: Path | None) -> list[Stage]:
    """All stages, the most valuable first."""
    usual = Settings("gpu", (), ("bfloat16",), 128, 30)
    if tiny:
        usual = Settings("cpu", (), ("float32",), 4, 2, image_size=8, num_classes=4)
    vit, convnext, resnet = ["convnext_digits"] * 3 if tiny else ["vit_b_32", "convnext_tiny", "resnet50"]

    def of(model: str, columns: tuple[str, ...] = FOUR) -> Settings:
        chosen = columns[:2] if tiny else columns
        return replace(usual, models=(model,), columns={name: COLUMNS[name] for name in chosen})

    def table(name: str, share: float, measure: Callable, settings: Settings) -> Stage:
        return Stage(name, share, measure, work.table_text, settings)

    eager, compiled = (partial(work.torch_table, library) for library in work.LIBRARIES)
    sampled = ("identity", "VCReg", "VCReg, sampled", "BatchNorm")
    every = [
        Stage("gradient", 0.2, work.gradient_float64.measure, work.gradient_float64.text, usual),
        table("jax_vit", 0.4, work.jax_table, of(vit)),
        table("jax_convnext", 0.45, work.jax_table, of(convnext)),
        table("jax_resnet", 0.45, work.jax_table, of(resnet, sampled)),
        table("torch_compiled_vit", 0.5, compiled, of(vit, FOUR[:2])),
        table("torch_compiled_convnext", 0.6, compiled, of(convnext, FOUR[:2])),
        table("torch_eager_vit", 0.4, eager, of(vit)),
        table("torch_eager_convnext", 0.5, eager, of(convnext)),
        Stage(
            "roofline",
            0.5,
            work.rooflines,
            work.rooflines_text,
            replace(usual, models=(vit,) if tiny else (vit, convnext)),
        ),
        Stage("dispatch", 0.5, work.dispatches, work.dispatches_text, of(vit)),
        table("torch_compiled_vit_more", 0.6, compiled, of(vit, ("identity", "naive", "BatchNorm"))),
    ]
    if images or tiny:
        every.append(Stage("superclasses", 0.9, partial(superclasses.measure, images), superclasses.text, usual))
    return [stage for stage in every if not tiny or stage.name in TRIED]


def run(minutes: float, folder: Path, images: Path | None, only: Sequence[str], tiny: bool, command: str) -> None:
    """Runs the stages, or `only` some, and prints what was found; `FOLDER/summary.md` holds the same.

    Raises:
      ValueError: before any work, for an unknown stage or where there is no GPU.
    """
    end = Deadline.after(60 * minutes)
    every = stages(tiny, images)
    if unknown := set(only) - {stage.name for stage in every}:
        raise ValueError(f"bench gpu has no stage {min(unknown)!r}. It has {', '.join(stage.name for stage in every)}.")
    if images is not None and not images.is_file():
        raise ValueError(f"There is no file {images}.")
    asked = [stage for stage in every if not only or stage.name in only]
    folder.mkdir(parents=True, exist_ok=True)
    _cache_under(folder.resolve() / "cache")
    if tiny:
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # no number counts
    facts = in_own_process(table1.device_facts, "cpu" if tiny else None)
    if facts["platform"] != ("cpu" if tiny else "gpu"):
        raise ValueError(f"bench gpu needs a GPU, JAX has a {facts['platform']}. --tiny is a trial on a CPU.")
    about = {"command": command, "commit": commit(), "sources": sources(), **facts}
    outcomes: dict[str, str] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the stage is stopped and the summary is written
    try:
        for stage in asked:
            outcomes[stage.name] = "stopped"
            outcomes[stage.name] = conduct(stage, folder, about, end)
            print(f"{stage.name}: {outcomes[stage.name]}; {end.left:.0f} s left", flush=True)
    finally:
        written = summary(asked, outcomes, folder, about)
        whole_files.write(folder / "summary.md", written)
        print(f"\n{written}")


def conduct(stage: Stage, folder: Path, about: Result, end: Deadline) -> str:
    """Runs one stage, unless there is nothing to do or no time; what became of it."""
    path = folder / f"{stage.name}.json"
    if read_kept(path, about).get("complete"):
        return "kept from an earlier call"
    if end.left < FEWEST_SECONDS:
        return f"not run: {end.left:.0f} s were left"
    soft, hard = end.part(stage.share), end.part(min(OVERTIME * stage.share, 0.98))
    started = end.left
    process = multiprocessing.get_context("spawn").Process(target=_alone, args=(stage, path, about, soft))
    process.start()
    try:
        process.join(hard.left)
        in_time = not process.is_alive()
    finally:
        _stop(process)
    seconds = f"{started - end.left:.0f} s"
    if not in_time:
        return f"stopped after {seconds}; {path.stem}.log shows where it was"
    if process.exitcode:
        return f"failed after {seconds}; {path.stem}.log shows why"
    return f"{'done' if read_kept(path, about).get('complete') else 'not all of it was ready in time,'} {seconds}"


def _alone(stage: Stage, path: Path, about: Result, end: Deadline) -> None:
    """The whole life of a stage's process, with a group and a log of its own."""
    os.setsid()
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 0
    try:
        stage.measure(stage.settings, read_kept(path, about), partial(save, path, about), end)
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what is still being compiled is not waited for


def _stop(process: Any) -> None:
    """Ends a stage's process, and those that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # should it not have a group yet
    process.join()


def read_kept(path: Path, about: Result) -> Result:
    """What an earlier call wrote, if the same code has measured it on the same kind of device; else nothing."""
    found = json.loads(path.read_text()) if path.exists() else {}
    same = all(found.get(name) == about[name] for name in ("commit", "sources", "device_kind"))
    return found if same else {}


def save(path: Path, about: Result, result: Result) -> None:
    """Writes the result and where it comes from, whole or not at all; JAX is not asked, which would wake the GPU."""
    whole_files.write(path, json.dumps(result | about, indent=1) + "\n")


def summary(asked: list[Stage], outcomes: dict[str, str], folder: Path, about: Result) -> str:
    """What became of every stage, and its numbers."""
    lines = [f"# {about['hardware']}, commit {about['commit']}", ""]
    lines += [f"- {stage.name}: {outcomes.get(stage.name, 'not run: stopped before')}" for stage in asked]
    for stage in asked:
        if found := read_kept(folder / f"{stage.name}.json", about):
            lines += ["", f"## {stage.name}", "", stage.text(found)]
    return "\n".join(lines) + "\n"


def _cache_under(folder: Path) -> None:
    """Where JAX and PyTorch look for compiled programs first, in the processes that begin after this."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "1"
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
