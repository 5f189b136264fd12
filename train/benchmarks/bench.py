"""What VCReg costs here: `table1`, `roofline`, `dispatch`, `gpu`; the pace of `input`, `probe` and `grid`."""

import dataclasses
from argparse import Namespace
from importlib import import_module
from pathlib import Path

from train.benchmarks import programs, table1
from train.benchmarks.programs import COLUMNS, DTYPES, MODELS, PHASES, Platform, Settings
from train.benchmarks.timing import NEVER, Deadline, in_own_process
from train.run.provenance import commit, hardware

__all__ = ["COLUMNS", "DTYPES", "MODELS", "PHASES", "run"]

BELONG = {"torch": ("table1",), "columns": ("table1",), "phases": ("table1",), "minutes": ("table1", "gpu")}
BELONG |= {name: ("gpu",) for name in ("out", "images", "stages", "tiny")}
# Loaded when asked for: they need what a machine with a GPU may lack, such as grain and tensorflow-datasets.
OTHERS = {"input": "train.data.throughput", "probe": "train.benchmark_probe", "grid": "train.benchmark_grid"}


def run(given: Namespace, command: str) -> None:
    """Runs what the command line asks for, filling in what it leaves out.

    Raises:
      ValueError: before any work, for what cannot be measured.
    """
    if given.json is not None and not given.json.parent.is_dir():
        raise ValueError(f"There is no folder {given.json.parent}.")
    for name, of in BELONG.items():
        if getattr(given, name) not in (None, False) and given.what not in of:
            raise ValueError(f"--{name} belongs to {' and '.join(of)}, not to {given.what}.")
    if given.minutes is not None and not given.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {given.minutes:g}.")
    if given.what == "gpu":
        from train.benchmarks import gpu as benchmark_gpu

        return benchmark_gpu.run(given, command)
    if given.what in OTHERS:
        return _run_other(given, command)
    facts = in_own_process(table1.device_facts, given.device)
    settings = _settings(given, facts["platform"])
    path = given.json or Path(f"runs/bench/{given.what}_{settings.platform}.json")
    if given.json is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    _say(settings, facts)
    if given.what == "table1":
        end = NEVER if given.minutes is None else Deadline.after(60 * given.minutes)
        table1.run(settings, facts, given.torch, path, command, end)
    else:
        import_module(f"train.{given.what}").run(settings, facts, path, command)


def _run_other(given: Namespace, command: str) -> None:
    from train.run.folder import write_json

    found = import_module(OTHERS[given.what]).measure(5 if given.rounds is None else given.rounds)
    print(found)
    if given.json is not None:
        about = {"command": command, "hardware": hardware(), "commit": commit(), "ratio": found.ratio}
        write_json(given.json, about | dataclasses.asdict(found))


def _settings(given: Namespace, platform: Platform) -> Settings:
    usual = programs.defaults(platform)
    models, dtypes = tuple(given.models or usual.models), tuple(given.dtypes or usual.dtypes)
    if unknown := [name for name in models if name not in MODELS]:
        raise ValueError(f"bench knows no model {unknown[0]!r}. Known: {', '.join(MODELS)}.")
    columns = tuple(given.columns or usual.columns)
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"bench knows no column {unknown[0]!r}. Known: {', '.join(COLUMNS)}.")
    batch_size = usual.batch_size if given.batch_size is None else given.batch_size
    rounds = usual.rounds if given.rounds is None else given.rounds
    if batch_size < 1 or batch_size % programs.GROUPS:
        raise ValueError(f"--batch-size must be a multiple of the {programs.GROUPS} groups, got {batch_size}.")
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}.")
    chosen = {name: COLUMNS[name] for name in columns}
    usual = dataclasses.replace(usual, columns=chosen, phases=tuple(given.phases or usual.phases))
    return dataclasses.replace(usual, models=models, dtypes=dtypes, batch_size=batch_size, rounds=rounds)


def _say(settings: Settings, facts: dict[str, str]) -> None:
    paper = "the paper's batch" if settings.batch_size == 128 else "the paper's batch is 128"
    print(f"{facts['hardware']}; batch {settings.batch_size} ({paper}), {settings.rounds} interleaved rounds")
    if settings.platform == "cpu":
        print("A CPU: smaller defaults (batch 8, 5 rounds, float32). Its ratios do not tell a GPU's or a TPU's.")
