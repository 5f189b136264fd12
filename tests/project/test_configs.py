import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from configs import digits
from train.config import Experiment, Pretraining
from train.experiments import experiment
from train.experiments.grid import Grid
from train.experiments.try_folder import lab_note
from train.experiments.two_moons import TwoMoons
from train.trainer.prepare import prepare

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "recipes", "probes"))
CONFIGS = [path for path in CONFIGS if lab_note.MARK not in path.read_text()]  # whose images nobody else has
# Data sets that a fresh machine does not have: random images of the same size, channels and classes stand in.
NEEDS_FILES = {
    "fashion_mnist": (28, 1, 10),
    "imagenet": (256, 3, 1000),
    "cifar100": (32, 3, 100),
    "cifar10": (32, 3, 10),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_reproduces_and_can_run(path, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for heading in ("Paper", "Ours", "Run", "Cost"):
        assert f"\n{heading} " in module.__doc__, f"{path} is a lab note: it needs a line '{heading}'"
    monkeypatch.chdir(tmp_path)
    config = module.get_config()
    if isinstance(config, TwoMoons):
        return  # its data and networks are made as it trains
    assert isinstance(config, Experiment | Grid)
    for sites in _sites(config):
        prepare(_with_stand_in(config.train), sites)
    if isinstance(config, Grid):
        for sites in _sites(config):
            prepare(_with_stand_in(config.search), sites)


def _sites(config):
    if isinstance(config, Grid):
        return [own.sites for own in config.arms.values()]
    return [candidate.sites for candidates in experiment.arms(config).values() for candidate in candidates]


def _with_stand_in(train):
    if train.data.name not in NEEDS_FILES:
        return train
    size, channels, classes = NEEDS_FILES[train.data.name]
    data = replace(
        train.data,
        name="synthetic",
        synthetic_size=size,
        channels=channels,
        synthetic_classes=classes,
        in_memory=False,
    )
    return replace(train, data=data)


def test_a_config_of_an_earlier_version_without_targets_is_an_experiment_without_them():
    recipe = digits.get_config()
    given = {"arms": {"VCReg": recipe.arms["VCReg"]}, "runs_directory": "elsewhere"}
    assert Pretraining("a", recipe.train, **given) == Experiment("a", "a", recipe.train, seeds=(0,), **given)
