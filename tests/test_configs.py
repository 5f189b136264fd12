import importlib.util
from pathlib import Path

import pytest

from train import loop
from train.config import Experiment

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "recipes"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_reproduces_and_can_run(path, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for heading in ("Paper", "Ours", "Run", "Cost"):
        assert f"\n{heading} " in module.__doc__, f"{path} is a lab note: it needs a line '{heading}'"
    monkeypatch.chdir(tmp_path)
    config = module.get_config()
    assert isinstance(config, Experiment)
    for sites in config.arms.values():
        loop.prepare(config.train, sites)
