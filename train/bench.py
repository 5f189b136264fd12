"""What VCReg costs on this machine: `table1`, `roofline`, `dispatch`; the pace of `input`, `probe` and `grid`."""

import dataclasses
from argparse import Namespace
from pathlib import Path

from train import benchmark, benchmark_grid, benchmark_probe, dispatch, roofline, table1
from train.benchmark import DTYPES, MODELS, Platform, Settings
from train.data import throughput
from train.provenance import commit, hardware
from train.run_folder import write_json
from train.timing import in_own_process

__all__ = ["DTYPES", "MODELS", "run"]


def run(given: Namespace, command: str) -> None:
    """Runs what the command line asks for, filling in what it leaves out.

    Raises:
      ValueError: before any work, for what cannot be measured.
    """
    if given.json is not None and not given.json.parent.is_dir():
        raise ValueError(f"There is no folder {given.json.parent}.")
    if given.torch and given.what != "table1":
        raise ValueError(f"--torch belongs to table1, not to {given.what}.")
    others = {"input": throughput.measure, "probe": benchmark_probe.measure, "grid": benchmark_grid.measure}
    if given.what in others:
        found = others[given.what](5 if given.rounds is None else given.rounds)
        print(found)
        if given.json is not None:
            about = {"command": command, "hardware": hardware(), "commit": commit(), "ratio": found.ratio}
            write_json(given.json, about | dataclasses.asdict(found))
        return
    facts = in_own_process(table1.device_facts, given.device)
    settings = _settings(given, facts["platform"])
    path = given.json or Path(f"runs/bench/{given.what}_{settings.platform}.json")
    if given.json is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    _say(settings, facts)
    if given.what == "table1":
        table1.run(settings, facts, given.torch, path, command)
    else:
        (roofline if given.what == "roofline" else dispatch).run(settings, facts, path, command)


def _settings(given: Namespace, platform: Platform) -> Settings:
    usual = benchmark.defaults(platform)
    models, dtypes = tuple(given.models or usual.models), tuple(given.dtypes or usual.dtypes)
    if unknown := [name for name in models if name not in MODELS]:
        raise ValueError(f"bench knows no model {unknown[0]!r}. Known: {', '.join(MODELS)}.")
    batch_size = usual.batch_size if given.batch_size is None else given.batch_size
    rounds = usual.rounds if given.rounds is None else given.rounds
    if batch_size < 1 or batch_size % benchmark.GROUPS:
        raise ValueError(f"--batch-size must be a multiple of the {benchmark.GROUPS} groups, got {batch_size}.")
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}.")
    return dataclasses.replace(usual, models=models, dtypes=dtypes, batch_size=batch_size, rounds=rounds)


def _say(settings: Settings, facts: dict[str, str]) -> None:
    paper = "the paper's batch" if settings.batch_size == 128 else "the paper's batch is 128"
    print(f"{facts['hardware']}; batch {settings.batch_size} ({paper}), {settings.rounds} interleaved rounds")
    if settings.platform == "cpu":
        print("A CPU: smaller defaults (batch 8, 5 rounds, float32). Its ratios do not tell a GPU's or a TPU's.")
