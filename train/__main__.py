"""`python -m train COMMAND ...`: the only reader of the command line.

    python -m train run CONFIG [overrides]    train, probe and report; CONFIG is a file under configs/
    python -m train run CONFIG --help         what can be overridden, with types and defaults
    python -m train run CONFIG --point NAME   a point of the config's sweep
    python -m train run CONFIG --coordinator HOST:PORT --num-processes N --process-id I
                                              one of several hosts, where JAX does not find them by itself
    python -m train prepare NAME [--from PATH] [--directory runs/data] [--bad-images raise|skip|convert]
                                              a data set from its owner's files, class folders or an .npz file
    python -m train data NAME [--directory runs/data]
                                              splits, counts, class balance, a contact sheet; does every image decode?
    python -m train report FOLDER             write the report of a finished run again
    python -m train report table5             what has been run of a table, the paper's numbers beside ours: 2 to 5, 7
    python -m train report strength           likewise of all configs whose names begin so: the map of strengths
    python -m train analyse RUN ... [--data NAME] [--label NAME] [--critic-steps N] [--output FOLDER]
                                              Table 6 of a run's checkpoints: CDNV, NCC, mutual information, spectra
    python -m train convert IN OUT [--model NAME] [--num-classes N]
                                              weights between .pth/.th/.pt, .safetensors and a run's checkpoints
    python -m train export RUN/ARM/SEED --to safetensors|torchvision|stablehlo [--out FOLDER] [--image-size N]
                                              a trained network for others, with a model card
    python -m train crosscheck [--json FILE]  compare this implementation with PyTorch, number by number
    python -m train bench table1 [--torch] [--json FILE] [--help]
                                              what regularizers cost, beside the paper's Table 1 and PyTorch
    python -m train bench roofline            VCReg's extra time, layer by layer, over what the device's speed implies
    python -m train bench dispatch            Python's time for each call of the training step
    python -m train bench input               images a second from records to batches, beside bare Pillow
    python -m train bench probe               the linear probe at 45 strengths, beside scikit-learn's
    python -m train bench grid                many settings as one program, beside as many separate runs
    python -m train bench gpu [--minutes N] [--out FOLDER] [--images FILE] [--stages NAME ...] [--tiny]
                                              what a GPU tells in a given time, the most valuable first: docs/gpu.md
    python -m train preflight CONFIG --topology v5e:4x4 [--image-shape H W C] [--num-classes N] [--json FILE]
                              [overrides]     compile the training step for TPUs that are not there: does it fit?

Wrong input ends with one line and exit status 2; --traceback before the command shows where it came from.
A cross-check that fails, a step that does not fit, a training that comes to numbers that are not finite and a run of
which a part has died or hangs end with exit status 1; what SIGTERM has ended with 143, to be started again. On several
hosts the same command runs on each: docs/pods.md.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import NoReturn

COMMANDS = ("run", "prepare", "data", "report", "analyse", "convert", "export", "crosscheck", "bench", "preflight")


def main(arguments: list[str]) -> None:
    """Runs one command; bad input becomes one line on stderr and exit status 2."""
    show_traceback = arguments[:1] == ["--traceback"]
    arguments = arguments[show_traceback:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        _dispatch(*arguments)
    except (ValueError, OSError) as error:
        if show_traceback:
            raise
        _fail(" ".join(str(error).split()), status=1 if isinstance(error, ChildProcessError) else 2)
    except FloatingPointError as error:
        if show_traceback:
            raise
        _fail(" ".join(str(error).split()), status=1)


def _dispatch(command: str, *arguments: str) -> None:
    if command not in COMMANDS:
        raise ValueError(f"Unknown command {command!r}. Known: {', '.join(COMMANDS)}.")
    with_own_parser = {
        "prepare": _prepare,
        "data": _data,
        "analyse": _analyse,
        "convert": _convert,
        "export": _export,
        "crosscheck": _crosscheck,
        "bench": _bench,
        "preflight": _preflight,
    }
    if command in with_own_parser:
        return with_own_parser[command](arguments)
    if not arguments or arguments[0].startswith("-"):
        what = "a config file, such as configs/digits.py" if command == "run" else "a run folder, such as runs/digits"
        raise ValueError(f"`python -m train {command}` needs {what}.")
    if command == "run":
        _run(arguments, shlex.join(["python", "-m", "train", command, *arguments]))
    elif re.fullmatch(r"\w+", arguments[0]) and _is_table(arguments[0]):
        _table(arguments[0])
    else:
        _report(Path(arguments[0]))


def _is_table(name: str) -> bool:
    return any(Path("configs").glob(f"{name}_*.py")) or re.fullmatch(r"table\d+", name) is not None


def _run(arguments: tuple[str, ...], command: str) -> None:
    parser = _Parser("python -m train run CONFIG", allow_abbrev=False, add_help=False)
    parser.add_argument("--coordinator", metavar="HOST:PORT")
    parser.add_argument("--num-processes", metavar="N", type=int)
    parser.add_argument("--process-id", metavar="I", type=int)
    parser.add_argument("--point", metavar="NAME")
    given, overrides = parser.parse_known_args(arguments[1:])
    from train import config_file

    config = config_file.overridden(config_file.load(Path(arguments[0]), given.point), tuple(overrides))
    from train.config import Pretraining, Transfer
    from train.experiments import experiment, grid_search, pretraining, transfer
    from train.experiments.grid import Grid
    from train.experiments.two_moons import TwoMoons
    from train.reports import figure1
    from train.run import hosts, log, preemption

    hosts.join(given.coordinator, given.num_processes, given.process_id)
    kinds = {Grid: grid_search, Pretraining: pretraining, Transfer: transfer, TwoMoons: figure1}
    with log.outliving_its_readers(), preemption.ends_at_once(), hosts.errors_end_at_once():
        folder = kinds.get(type(config), experiment).run(config, command)
        if hosts.is_first():
            match config:
                case TwoMoons():
                    print(f"\nReport: {folder / 'report.html'}")
                case Transfer() | Grid():
                    print(f"Run: {folder}")
                case Pretraining():
                    print(f"{pretraining.table(config, folder)}\n\nRun: {folder}")
                case _:
                    _report(folder)


def _report(folder: Path) -> None:
    from train.reports import report
    from train.run import folder as run_folder

    run_folder.check(folder)
    path = report.write(folder)
    print(report.table_text(report.summary(report.load(folder))))
    print(f"\nReport: {path}")


def _table(name: str) -> None:
    from train import config_file
    from train.config import Transfer
    from train.experiments.grid import Grid
    from train.reports import grid_table, tables
    from train.run import folder as run_folder

    configs = [
        one for path in sorted(Path("configs").glob(f"{name}_*.py")) for one in config_file.points(path).values()
    ]
    for config in configs:
        run_folder.check(Path(config.runs_directory) / config.name)
    for kind, module in ((Transfer, tables), (Grid, grid_table)):
        if found := [module.gather(config) for config in configs if isinstance(config, kind)]:
            print("\n\n".join(module.text(table) for table in found))
            print(f"\nReport: {module.write(name, found, Path('runs'))}")
            return
    raise ValueError(f"There is no config of transfers or a grid for {name}: configs/{name}_*.py.")


def _prepare(arguments: tuple[str, ...]) -> None:
    parser = _Parser("python -m train prepare", description="Writes TFDS array_record files; needs no TensorFlow.")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--from", dest="source", metavar="PATH", type=Path)
    parser.add_argument("--directory", metavar="FOLDER", type=Path, default=Path("runs/data"))
    parser.add_argument("--bad-images", choices=("raise", "skip", "convert"), default="convert")
    given = parser.parse_args(arguments)
    from train.data import builders

    folder = builders.prepare(given.name, given.source, given.directory, given.bad_images)
    print(f"{builders.bad_images_text(folder)}\n\nPrepared: {folder}")


def _data(arguments: tuple[str, ...]) -> None:
    parser = _Parser("python -m train data", description="Exit status 1 when an image does not decode.")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--directory", metavar="FOLDER", type=Path, default=Path("runs/data"))
    given = parser.parse_args(arguments)
    from train.data import survey

    text, every_image_decodes = survey.survey(given.name, given.directory)
    print(text)
    if not every_image_decodes:
        sys.exit(1)


def _analyse(arguments: tuple[str, ...]) -> None:
    parser = _Parser(
        "python -m train analyse", description="Writes analysis.json and analysis.html into the first run."
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    parser.add_argument("--data", metavar="NAME", help="another prepared data set; default: the run's own")
    parser.add_argument("--label", metavar="NAME", help="another of its labels")
    parser.add_argument("--critic-steps", metavar="N", type=int, default=2000)
    parser.add_argument("--output", metavar="FOLDER", type=Path)
    from train.reports import analysis_page

    analysis_page.run(parser.parse_args(arguments), ["python", "-m", "train", "analyse", *arguments])


def _convert(arguments: tuple[str, ...]) -> None:
    parser = _Parser("python -m train convert", description="The model's name may be left out where IN tells it.")
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--model", metavar="NAME")
    parser.add_argument("--num-classes", metavar="N", type=int)
    given = parser.parse_args(arguments)
    from train.interop.convert import convert

    print(convert(given.source, given.target, given.model, given.num_classes))


def _export(arguments: tuple[str, ...]) -> None:
    parser = _Parser("python -m train export", description="A trained network for others, with a model card.")
    parser.add_argument("folder", metavar="RUN/ARM/SEED", type=Path)
    parser.add_argument("--to", choices=("safetensors", "torchvision", "stablehlo"), required=True)
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="default: RUN/ARM/SEED/export")
    parser.add_argument("--image-size", metavar="N", type=int, help="default: the evaluation's")
    given = parser.parse_args(arguments)
    from train.interop.export import export

    print(export(given.folder, given.to, given.out, given.image_size))


def _crosscheck(arguments: tuple[str, ...]) -> None:
    parser = _Parser("python -m train crosscheck", description="Exit status 1 when a comparison fails.")
    parser.add_argument("--json", metavar="FILE", type=Path)
    given = parser.parse_args(arguments)
    try:
        from train.interop.crosscheck import command
    except ModuleNotFoundError as error:
        raise ValueError(f"`crosscheck` needs {error.name}: pip install 'vcreg-jax[train,torch]'.") from error
    if not command.run(given.json):
        sys.exit(1)


def _bench(arguments: tuple[str, ...]) -> None:
    from train.benchmarks import bench

    parser = _Parser("python -m train bench", description=bench.__doc__)
    parser.add_argument("what", choices=("table1", "roofline", "dispatch", "input", "probe", "grid", "gpu"))
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: JAX's choice")
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"of {', '.join(bench.MODELS)}; default: all")
    parser.add_argument("--dtypes", nargs="+", choices=bench.DTYPES, help="default: both; on a CPU float32")
    parser.add_argument("--batch-size", type=int, help="default: 128; on a CPU 8")
    parser.add_argument("--rounds", type=int, help="default: 30; on a CPU 5")
    parser.add_argument("--torch", action="store_true", help="PyTorch's table beside ours (table1)")
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help=f"of {', '.join(bench.COLUMNS)}; default: all (table1)"
    )
    parser.add_argument("--phases", nargs="+", choices=bench.PHASES, help="default: both (table1)")
    parser.add_argument("--minutes", type=float, help="what is not ready by then is left out (table1; gpu: 9.5)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="default: runs/bench/gpu (gpu)")
    parser.add_argument("--images", metavar="FILE", type=Path, help="an .npz: images, fine, coarse, test (gpu)")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only these (gpu)")
    parser.add_argument("--tiny", action="store_true", help="a trial on a CPU (gpu)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: runs/bench/WHAT_PLATFORM.json")
    bench.run(parser.parse_args(arguments), shlex.join(["python", "-m", "train", "bench", *arguments]))


def _preflight(arguments: tuple[str, ...]) -> None:
    description = "Without a shape of the images the data set is asked."
    parser = _Parser("python -m train preflight", description=description, allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("--topology", metavar="v5e:4x4", required=True)
    parser.add_argument("--image-shape", metavar=("H", "W", "C"), type=int, nargs=3)
    parser.add_argument("--num-classes", metavar="N", type=int)
    parser.add_argument("--json", metavar="FILE", type=Path)
    given, overrides = parser.parse_known_args(arguments)
    from train import config_file
    from train.benchmarks import preflight

    config = config_file.overridden(config_file.load(given.config), tuple(overrides))

    command = shlex.join(["python", "-m", "train", "preflight", *arguments])
    if not preflight.run(config, given.topology, given.image_shape, given.num_classes, command, given.json):
        sys.exit(1)


class _Parser(argparse.ArgumentParser):
    """Two paths and an option do not need more."""

    def error(self, message: str) -> NoReturn:
        """What argparse would print in two lines, as one."""
        raise ValueError(f"{message} ({' '.join(self.format_usage().split())})")


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
