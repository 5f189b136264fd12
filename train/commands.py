"""The commands of `python -m train`: a dataclass each, whose fields are its options and whose `run` does the work.

What a command needs is imported when it runs, so that none waits for, or needs, the packages of another.
"""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg

DATA = Path("runs/data")


@dataclass(frozen=True)
class Run:
    """Train what a config says, probe it and write the report.

    CONFIG is a file, or the name of one under configs/. Every field of a config can be overridden: `run CONFIG
    --train.steps 100`; `run CONFIG --fields` lists them. A run that was stopped goes on with the same command.
    """

    config: Annotated[Positional[str], arg(metavar="CONFIG")]  # such as digits or configs/digits.py
    fields: bool = False  # list all that can be overridden, with types and defaults
    point: str | None = None  # of the config's sweep
    targets: tuple[str, ...] = ()  # on which features are probed, such as Cars Pets; others may be added later
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT")] = None  # of several hosts that JAX does not find
    num_processes: int | None = None  # how many hosts there are
    process_id: int | None = None  # which one this is
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self, command: str) -> None:
        """Runs what is not yet done of the config and reports."""
        from train import command_line, config_file

        path = config_file.find(self.config)
        overrides = ("--help",) if self.fields else self.overrides
        config = command_line.override(
            config_file.load(path, self.point), overrides, f"python -m train run {self.config}"
        )
        from train.experiments import experiment, grid_search, targets

        config = targets.choose(config, self.targets) if self.targets else config
        from train.experiments.grid import Grid
        from train.experiments.two_moons import TwoMoons
        from train.reports import figure1, grid_table
        from train.run import hosts, log, preemption

        hosts.join(self.coordinator, self.num_processes, self.process_id)
        with log.outliving_its_readers(), preemption.ends_at_once(), hosts.errors_end_at_once():
            match config:
                case TwoMoons():
                    print(f"\nReport: {figure1.run(config, command) / 'report.html'}")
                case Grid():
                    folder = grid_search.run(config, command)
                    print(f"\n{grid_table.text(grid_table.gather(config, command))}\n\nRun: {folder}")
                case _:
                    folder = experiment.run(config, command)
                    if hosts.is_first():
                        _report(folder)


@dataclass(frozen=True)
class Try:
    """Go from a folder of images to an answer: does VCReg help here, in these minutes?

    Prepares the images, splits them, chooses a network that fits images, device and time, writes the config with all
    reasons, trains without and with VCReg, probes and reports.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]  # <class>/*, train/<class>/*, .npz, .csv, or a data set
    name: str | None = None  # of the config and of the data set; default: the folder's
    minutes: float = 10.0  # for all of it
    directory: Annotated[Path, arg(metavar="FOLDER")] = DATA  # of all prepared data sets
    dry_run: bool = False  # write the config, and no more

    def run(self, command: str) -> None:
        """Writes the config and, unless it is a dry run, runs it."""
        del command
        from train.experiments.try_folder import advice, config

        path = config.write(self.folder, self.name, self.minutes, self.directory)
        print(f"Config: {path}")
        if not self.dry_run:
            # One process: by now it has used the devices, so it cannot join others.
            Run(str(path), num_processes=1).run(f"python -m train run {path.stem}")
            print(f"\n{advice.format_list(advice.suggest(advice.read_outcome(path)))}")


@dataclass(frozen=True)
class Report:
    """Write the report of a finished run, or a table of what has been run.

    A table is named as the configs that it gathers begin: table5, strength.
    """

    of: Annotated[Positional[str], arg(metavar="RUN|TABLE")]  # runs/digits, digits or table5

    def run(self, command: str) -> None:
        """Writes the page and prints its table."""
        del command
        for folder in (Path(self.of), Path("runs") / self.of):
            if folder.is_dir():
                return _report(folder)
        if re.fullmatch(r"\w+", self.of) and (any(_configs_of(self.of)) or re.fullmatch(r"table\d+", self.of)):
            return _table(self.of)
        return _report(Path(self.of))


def _report(folder: Path) -> None:
    from train.reports import report, report_page
    from train.run import folder as run_folder

    run_folder.check(folder)
    path = report_page.write(folder)
    print(f"{report.text(report.load(folder))}\n\nReport: {path}")


def _configs_of(table: str) -> list[Path]:
    from train import config_file

    return sorted(config_file.FOLDER.glob(f"{table}_*.py"))


def _table(name: str) -> None:
    from train import config_file
    from train.config import Experiment
    from train.experiments.grid import Grid
    from train.reports import grid_table, tables
    from train.run import folder as run_folder

    configs = {
        shlex.join(["python", "-m", "train", "run", path.stem, *(("--point", point) if point else ())]): config
        for path in _configs_of(name)
        for point, config in config_file.points(path).items()
    }
    for config in configs.values():
        run_folder.check(Path(config.runs_directory) / config.name)
    for kind, module in ((Experiment, tables), (Grid, grid_table)):
        if found := [module.gather(config, command) for command, config in configs.items() if isinstance(config, kind)]:
            print("\n\n".join(module.text(table) for table in found))
            print(f"\nReport: {module.write(name, found, Path('runs'))}")
            return
    raise ValueError(f"There is no config of an experiment or a grid for {name}: configs/{name}_*.py.")


@dataclass(frozen=True)
class Runs:
    """List the runs, with state, last step and accuracy, or compare two: what differs in config and result."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")] = ()  # two, by name or folder; none: list all
    directory: Annotated[Path, arg(metavar="FOLDER")] = Path("runs")  # where they lie

    def run(self, command: str) -> None:
        """Prints a table."""
        del command
        from train.reports import runs

        if len(self.runs) not in (0, 2):
            raise ValueError(
                f"`python -m train runs` compares two runs, got {len(self.runs)}; without any it lists all."
            )
        if not self.runs:
            found = runs.list_runs(self.directory)
            return print(runs.format_list(found) if found else f"There is no run under {self.directory}.")
        folders = [Path(name) if Path(name).is_dir() else self.directory / name for name in self.runs]
        print(runs.compare(*map(runs.read, folders)))


@dataclass(frozen=True)
class Prepare:
    """Prepare a data set: from its owner's files, from class folders, from an .npz file or a CSV list of files."""

    name: Annotated[Positional[str], arg(metavar="NAME")]  # of the data set: cifar100, or one of your own
    source: Annotated[Path | None, arg(name="from", metavar="PATH")] = None  # the files, packed or unpacked
    directory: Annotated[Path, arg(metavar="FOLDER")] = DATA  # of all prepared data sets
    bad_images: Literal["raise", "skip", "convert"] = "convert"  # what becomes of images that are not plain
    val: float = 0.0  # share of every class's training images that becomes a validation split
    test: float = 0.0  # likewise, a test split
    seed: int = 0  # of which images these are

    def run(self, command: str) -> None:
        """Writes TFDS `array_record` files; needs no TensorFlow."""
        del command
        from train.data import builders
        from train.data.division import Division

        division = Division(self.val, self.test, self.seed)
        folder = builders.prepare(self.name, self.source, self.directory, self.bad_images, division)
        print(f"{builders.bad_images_text(folder)}\n\nPrepared: {folder}")


@dataclass(frozen=True)
class Data:
    """Look at a prepared data set: splits, counts, class balance, a contact sheet; decode every image."""

    name: Annotated[Positional[str], arg(metavar="NAME")]  # of the data set
    directory: Annotated[Path, arg(metavar="FOLDER")] = DATA  # of all prepared data sets

    def run(self, command: str) -> None:
        """Prints what there is; exit status 1 when an image does not decode."""
        del command
        from train.data import survey

        text, every_image_decodes = survey.survey(self.name, self.directory)
        print(text)
        if not every_image_decodes:
            sys.exit(1)


@dataclass(frozen=True)
class Analyse:
    """Measure what a run's layers hold: CDNV, NCC, mutual information, spectra (Table 6)."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]  # folders of runs; results go into the first
    data: str | None = None  # another prepared data set; default: the run's own
    label: str | None = None  # another of its labels
    critic_steps: int = 2000  # for which the critics of mutual information train
    output: Annotated[Path | None, arg(metavar="FOLDER")] = None  # default: the first run

    def run(self, command: str) -> None:
        """Writes `analysis.json` and `analysis.html`."""
        if not self.runs:
            raise ValueError("`python -m train analyse` needs a run folder, such as runs/digits.")
        from train.reports import analysis_page

        analysis_page.run(self.runs, self.data, self.label, self.critic_steps, self.output, command)


@dataclass(frozen=True)
class Doctor:
    """Examine a network's features block by block: where they collapse, and what a regularizer could keep.

    For weights of PyTorch, safetensors or a run; one page with three sentences, a picture and a table.
    """

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]  # a file, or the folder of a run's seed
    data: Annotated[Positional[str], arg(metavar="DATA")]  # the name of a prepared data set
    label: str | None = None  # which of its labels; default: the run's
    model: str | None = None  # such as resnet50, where the weights do not say it
    split: str = "test"  # of the data set
    images: int = 2000  # of the split at most
    directory: Annotated[Path, arg(metavar="FOLDER")] = DATA  # of all prepared data sets
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/doctor")

    def run(self, command: str) -> None:
        """Writes `checkup.json` and `checkup.html`."""
        import time

        from train.experiments import examine
        from train.reports import checkup_page

        who = examine.patient(self.weights, self.data, self.label, self.model, self.split, self.images, self.directory)
        started = time.perf_counter()
        found, about = examine.examine(who)
        print(checkup_page.write(found, about, self.output, command, time.perf_counter() - started))


@dataclass(frozen=True)
class Features:
    """Compute the features of all images in a folder, by any network, as one .npz file.

    Size and statistics of images may be left out: they are the run's, the program's, or those of the weights' authors.
    """

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]  # .pth, .safetensors, RUN/ARM/SEED or .stablehlo
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]  # of images; folders of classes give labels
    out: Annotated[Path, arg(metavar="FILE")] = Path("features.npz")
    model: str | None = None  # such as resnet50, where the file does not say so
    image_size: int | None = None  # pixels of the square in the centre
    resize: int | None = None  # pixels of the shorter side before that
    mean: tuple[float, ...] | None = None  # of each channel, of pixels in 0..1
    std: tuple[float, ...] | None = None
    batch_size: int = 64

    def run(self, command: str) -> None:
        """Writes the file and says what is in it."""
        del command
        from train.interop import folder_features, given_network

        images = given_network.Images(self.image_size, self.resize, self.mean, self.std)
        network = given_network.load(self.weights, self.model, images)
        print(folder_features.write(network, self.folder, self.out, self.batch_size))


@dataclass(frozen=True)
class Probe:
    """Fit the linear probe to features in .npz or .npy files, whoever computed them.

    FILES are train and test, or train, validation and test; or as many folders, whose files of a name go together.
    Without validation a fifth of the training rows chooses the strength.
    """

    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES")]  # TRAIN [VAL] TEST
    metric: Literal["top1", "mean_per_class"] = "top1"
    standardize: bool = False  # features to zero mean and unit variance first
    l2_low: float = 1e-5  # the weakest strength
    l2_high: float = 1e5  # the strongest
    l2_count: int = 45  # strengths
    tolerance: float = 1e-4  # of the gradient's norm
    max_iterations: int = 2000  # of each fit
    json: Annotated[Path | None, arg(metavar="FILE")] = None  # to which everything is written

    def run(self, command: str) -> None:
        """Prints a table, a line for each layer."""
        if not 2 <= len(self.files) <= 3:
            raise ValueError(f"`python -m train probe` needs TRAIN [VAL] TEST, got {len(self.files)} files.")
        from train.config import ProbeConfig
        from train.experiments import probe_files
        from train.run.folder import software, write_json

        how = {"l2_low": self.l2_low, "l2_high": self.l2_high, "l2_count": self.l2_count, "metric": self.metric}
        how |= {"standardize": self.standardize, "tolerance": self.tolerance, "max_iterations": self.max_iterations}
        train, *validation, test = self.files
        found = probe_files.run(train, validation[0] if validation else None, test, ProbeConfig("label", **how))
        print(probe_files.format_table(found))
        if self.json:
            write_json(self.json, {"command": command, **software(), "layers": found})


@dataclass(frozen=True)
class Convert:
    """Convert weights between PyTorch files, safetensors and a run's checkpoints.

    The model's name and its number of classes may be left out where IN tells them.
    """

    source: Annotated[Positional[Path], arg(metavar="IN")]  # .pth, .th, .pt, .safetensors or a folder of checkpoints
    target: Annotated[Positional[Path], arg(metavar="OUT")]  # .pth, .th, .pt or .safetensors
    model: str | None = None  # such as resnet50
    num_classes: int | None = None  # of the classifier

    def run(self, command: str) -> None:
        """Writes the weights and says what they are."""
        del command
        from train.interop.convert import convert

        print(convert(self.source, self.target, self.model, self.num_classes))


@dataclass(frozen=True)
class Export:
    """Write a trained network for others, with a model card."""

    folder: Annotated[Positional[Path], arg(metavar="RUN/ARM/SEED")]  # such as runs/digits/VCReg/seed0
    to: Literal["safetensors", "torchvision", "stablehlo"]  # the format
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None  # default: RUN/ARM/SEED/export
    image_size: int | None = None  # pixels of a side; default: the evaluation's

    def run(self, command: str) -> None:
        """Writes the files and says where."""
        del command
        from train.interop.export import export

        print(export(self.folder, self.to, self.out, self.image_size))


@dataclass(frozen=True)
class Crosscheck:
    """Compare this implementation with PyTorch, number by number; exit status 1 when one differs."""

    json: Annotated[Path | None, arg(metavar="FILE")] = None  # to which every comparison is written

    def run(self, command: str) -> None:
        """Prints every comparison."""
        del command
        try:
            from train.interop.crosscheck import command as crosscheck
        except ModuleNotFoundError as error:
            raise ValueError(f"`crosscheck` needs {error.name}: pip install -e '.[train,torch]'.") from error
        if not crosscheck.run(self.json):
            sys.exit(1)


@dataclass(frozen=True)
class Preflight:
    """Does a config's training step fit, here or on TPUs that are not there, and how long does it take?

    `--device gpu` takes steps on this machine's own devices; `--topology v5e:4x4` asks the TPU compiler for memory,
    cycles and what is sent. Fields of the config can be overridden as in `run`. Exit status 1 when a step does not fit.
    """

    config: Annotated[Positional[str], arg(metavar="CONFIG")]  # such as pod or configs/pod.py
    topology: Annotated[str | None, arg(metavar="KIND:CHIPS")] = None  # such as v5e:4x4
    device: Literal["cpu", "gpu", "tpu"] | None = None  # of this machine
    point: str | None = None  # of the config's sweep
    seconds: float = 10.0  # with --device, for which each arm's steps are timed
    image_shape: tuple[int, int, int] | None = None  # height, width, channels; default: the data set's
    num_classes: int | None = None  # default: the data set's
    json: Annotated[Path | None, arg(metavar="FILE")] = None  # to which everything is written
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self, command: str) -> None:
        """Prints what the compiler says of every arm."""
        from train import command_line, config_file

        if (self.topology is None) == (self.device is None):
            raise ValueError("preflight needs either --device gpu, or cpu or tpu, or --topology such as v5e:4x4.")
        config = config_file.load(config_file.find(self.config), self.point)
        config = command_line.override(config, self.overrides, f"python -m train preflight {self.config}")
        from train.benchmarks import dry_run, preflight
        from train.config import Experiment
        from train.experiments.grid import Grid

        if not isinstance(config, Experiment | Grid):
            raise ValueError(f"preflight compiles what trains on images, {self.config} is a {type(config).__name__}.")
        shape, classes = self.image_shape, self.num_classes
        if self.topology is not None:
            fits = preflight.run(config, self.topology, shape, classes, command, self.json)
        elif self.device is None or isinstance(config, Grid):
            raise ValueError("A grid trains many networks as one program: preflight takes it with --topology alone.")
        else:
            fits = dry_run.run(config, self.device, shape, classes, self.seconds, command, self.json)
        if not fits:
            sys.exit(1)


def _benchmarks() -> dict[str, type[Any]]:
    from train.benchmarks.commands import BENCHMARKS

    return BENCHMARKS


COMMANDS: dict[str, type[Any]] = {
    "run": Run,
    "try": Try,
    "report": Report,
    "runs": Runs,
    "prepare": Prepare,
    "data": Data,
    "features": Features,
    "probe": Probe,
    "analyse": Analyse,
    "doctor": Doctor,
    "convert": Convert,
    "export": Export,
    "crosscheck": Crosscheck,
    "preflight": Preflight,
}
# Groups of commands: what each is for, and how to load it.
GROUPS: dict[str, tuple[str, Callable[[], dict[str, type[Any]]]]] = {
    "bench": ("Measure what regularizers cost, and the pace of everything around them.", _benchmarks),
}
