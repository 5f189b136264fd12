"""A config for a folder: prepare, look, time a step, choose, and write down why."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax

from train import config_file
from train.augment import EvalTransformConfig
from train.config import DataConfig, Experiment
from train.data import measures, pipeline
from train.experiments.try_folder import choices, images, lab_note
from train.experiments.try_folder.choices import Choice
from train.experiments.try_folder.images import Facts
from train.run.provenance import hardware
from vcreg_jax import Sites


def write(
    folder: Path,
    name: str | None,
    minutes: float,
    directory: Path = Path("runs/data"),
    configs: Path = Path("configs"),
) -> Path:
    """The lab note, written after the images were prepared and a training step was timed.

    Args:
      folder: images in folders of classes, an `.npz` or CSV file, or the name of a data set that is prepared.
      name: of the config, and of the data set if it is not prepared yet; by default the folder's.
      minutes: that the whole comparison may take from now on.
      directory: where prepared data sets lie.
      configs: where the note goes.

    Raises:
      ValueError: for images that cannot be prepared or divided, and for a name that is taken.
    """
    started = time.perf_counter()
    if not minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {minutes}.")
    config_name = name or images.make_name(folder)
    path = lab_note.find_place(config_name, configs)
    data_set = images.prepare(folder, name, directory)
    facts = images.gather_facts(data_set, directory)
    print(f"{data_set}: {', '.join(f'{count:,}' for count in facts.counts)} images to train, validate and test")
    first = choices.choose_first(facts, jax.default_backend())
    dull = ((0.5,) * facts.channels, (0.5,) * facts.channels)  # for the clock
    print(f"timing {first.network} at {first.side} pixels ...", flush=True)
    trial = _loaded(lab_note.format_note(config_name, facts, first, *dull, minutes, hardware()))
    (sites,) = {own for own in trial.arms.values() if isinstance(own, Sites)} - {Sites()}
    timing = choices.time_step(trial.train, sites)
    choice = choices.choose(facts, first, timing, 60 * minutes - (time.perf_counter() - started))
    note = lab_note.format_note(config_name, facts, choice, *_statistics(facts, choice), minutes, hardware())
    path.parent.mkdir(exist_ok=True)
    path.write_text(note, encoding="utf-8")
    print(
        f"{choice.network}, {choice.side} pixels, {choice.steps:,} steps of {choice.batch_size}: "
        f"{choice.epochs:.1f} epochs, {choice.step_seconds:.3f} s a step"
    )
    return path


def _statistics(facts: Facts, choice: Choice) -> tuple[tuple[float, ...], tuple[float, ...]]:
    square = EvalTransformConfig(choice.side, choice.side)
    config = DataConfig(facts.name, facts.label, (0.0,), (1.0,), evaluation=square, directory=facts.directory)
    config = replace(config, train_split=facts.splits[0], channels=facts.channels)
    return measures.measure_pixels(pipeline.load(config, "train"))


def _loaded(note: str) -> Experiment:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trial.py")
        path.write_text(note, encoding="utf-8")
        return config_file.load(path)
