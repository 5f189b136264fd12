"""The commands of `python -m train bench`: a dataclass each, whose fields are its options and whose `run` measures."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from train.benchmarks import programs, table1
from train.benchmarks.programs import COLUMNS, Dtype, Model, Phase, Platform, Settings
from train.benchmarks.timing import NEVER, Deadline, in_own_process
from train.run.provenance import commit, hardware

File = Annotated[Path | None, arg(metavar="FILE")]


@dataclass(frozen=True)
class Networks:
    """Options of the benchmarks that time whole networks."""

    device: Platform | None = None  # default: JAX's choice
    models: tuple[Model, ...] = ()  # default: all
    dtypes: tuple[Dtype, ...] = ()  # default: both; on a CPU float32
    batch_size: int | None = None  # default: 128; on a CPU 8
    rounds: int | None = None  # default: 30; on a CPU 5
    json: File = None  # default: runs/bench/NAME_PLATFORM.json

    def prepare(self, name: str) -> tuple[Settings, dict[str, str], Path]:
        """What is to be timed, the device's facts, and the file for the results.

        Raises:
          ValueError: before any work, for what cannot be measured.
        """
        _check_folder(self.json)
        facts = in_own_process(table1.device_facts, self.device)
        settings = self._settings(facts["platform"])
        path = self.json or Path(f"runs/bench/{name}_{settings.platform}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        paper = "the paper's batch" if settings.batch_size == 128 else "the paper's batch is 128"
        print(f"{facts['hardware']}; batch {settings.batch_size} ({paper}), {settings.rounds} interleaved rounds")
        if settings.platform == "cpu":
            print("A CPU: smaller defaults (batch 8, 5 rounds, float32). Its ratios do not tell a GPU's or a TPU's.")
        return settings, facts, path

    def _settings(self, platform: Platform) -> Settings:
        usual = programs.defaults(platform)
        batch_size = usual.batch_size if self.batch_size is None else self.batch_size
        rounds = usual.rounds if self.rounds is None else self.rounds
        if batch_size < 1 or batch_size % programs.GROUPS:
            raise ValueError(f"--batch-size must be a multiple of the {programs.GROUPS} groups, got {batch_size}.")
        _check_rounds(rounds)
        return dataclasses.replace(
            usual,
            models=self.models or usual.models,
            dtypes=self.dtypes or usual.dtypes,
            batch_size=batch_size,
            rounds=rounds,
        )


@dataclass(frozen=True)
class Table1(Networks):
    """What a regularizer costs a network, beside the naive form, BatchNorm and PyTorch (Table 1)."""

    torch: bool = False  # PyTorch's table beside ours
    columns: tuple[str, ...] = ()  # such as identity VCReg naive; default: all
    phases: tuple[Phase, ...] = ()  # default: both
    minutes: float | None = None  # what is not ready by then is left out

    def run(self, command: str) -> None:
        """Times the table, prints and writes it."""
        _check_minutes(self.minutes)
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise ValueError(f"bench knows no column {unknown[0]!r}. Known: {', '.join(COLUMNS)}.")
        settings, facts, path = self.prepare("table1")
        settings = dataclasses.replace(
            settings,
            columns={name: COLUMNS[name] for name in self.columns or settings.columns},
            phases=self.phases or settings.phases,
        )
        end = NEVER if self.minutes is None else Deadline.after(60 * self.minutes)
        table1.run(settings, facts, self.torch, path, command, end)


@dataclass(frozen=True)
class Roofline(Networks):
    """VCReg's extra time layer by layer, beside what the device's speed implies."""

    def run(self, command: str) -> None:
        """Times the layers, prints and writes what was found."""
        from train.benchmarks import roofline

        roofline.run(*self.prepare("roofline"), command)


@dataclass(frozen=True)
class Dispatch(Networks):
    """Python's time for each call of the training step."""

    def run(self, command: str) -> None:
        """Times the calls, prints and writes what was found."""
        from train.benchmarks import dispatch

        dispatch.run(*self.prepare("dispatch"), command)


@dataclass(frozen=True)
class Pace:
    """Options of the benchmarks of two ways that take turns."""

    rounds: int = 5  # in which both ways are timed
    json: File = None  # to which the results are written

    def report(self, found: Any, command: str) -> None:
        """Prints what was found, and writes it where a file was asked for."""
        from train.run.folder import write_json

        print(found)
        if self.json is not None:
            about = {"command": command, "hardware": hardware(), "commit": commit(), "ratio": found.ratio}
            write_json(self.json, about | dataclasses.asdict(found))

    def check(self) -> None:
        """Raises ValueError for what cannot be measured."""
        _check_folder(self.json)
        _check_rounds(self.rounds)


@dataclass(frozen=True)
class Input(Pace):
    """Images a second from prepared records to batches, beside bare Pillow."""

    def run(self, command: str) -> None:
        """Times both ways."""
        self.check()
        from train.data import throughput

        self.report(throughput.measure(self.rounds), command)


@dataclass(frozen=True)
class Probe(Pace):
    """The linear probe at 45 strengths, beside scikit-learn's."""

    def run(self, command: str) -> None:
        """Times both ways."""
        self.check()
        from train.benchmarks import probe

        self.report(probe.measure(self.rounds), command)


@dataclass(frozen=True)
class Grid(Pace):
    """Many settings trained as one program, beside as many separate runs."""

    def run(self, command: str) -> None:
        """Times both ways."""
        self.check()
        from train.benchmarks import grid

        self.report(grid.measure(self.rounds), command)


@dataclass(frozen=True)
class Gpu:
    """What a GPU tells in a given time, the most valuable first (docs/gpu.md)."""

    minutes: float = 9.5  # after which nothing begins
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/bench/gpu")  # for the results
    images: File = None  # an .npz with images, fine, coarse, test: CIFAR-100
    stages: tuple[str, ...] = ()  # only these; default: all
    tiny: bool = False  # a trial on a CPU, whose numbers mean nothing

    def run(self, command: str) -> None:
        """Runs the stages, prints and writes what was found."""
        _check_minutes(self.minutes)
        from train.benchmarks import gpu

        gpu.run(self.minutes, self.out, self.images, self.stages, self.tiny, command)


def _check_folder(json: Path | None) -> None:
    if json is not None and not json.parent.is_dir():
        raise ValueError(f"There is no folder {json.parent}.")


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}.")


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {minutes:g}.")


BENCHMARKS: dict[str, type[Any]] = {
    "table1": Table1,
    "roofline": Roofline,
    "dispatch": Dispatch,
    "input": Input,
    "probe": Probe,
    "grid": Grid,
    "gpu": Gpu,
}
