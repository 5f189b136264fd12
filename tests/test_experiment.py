import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

import vcreg_jax as vc
from configs import digits
from train.experiments import experiment
from train.reports import report
from train.trainer import loop


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    whole = digits.get_config()
    folder = tmp_path_factory.mktemp("runs")
    train = replace(
        whole.train,
        data=replace(whole.train.data, directory=str(folder / "data")),
        optimizer=replace(whole.train.optimizer, schedule=replace(whole.train.optimizer.schedule, warmup_steps=1)),
        steps=3,
        batch_size=64,
        log_every=1,
    )
    return replace(whole, train=train, seeds=(3,), runs_directory=str(folder), probe=replace(whole.probe, l2_count=3))


@pytest.fixture(scope="module")
def folder(config):
    return experiment.run(config, "python -m train run configs/digits.py")


def test_the_run_folder_becomes_a_report(folder):
    loaded = report.load(folder)
    assert [row.n for row in report.summary(loaded)] == [1, 1, 1]
    assert report.write(folder).stat().st_size > 50_000


def test_what_is_reported_is_what_numpy_finds_in_the_saved_features(folder):
    for arm in ("baseline", "VCReg"):
        saved = np.load(folder / arm / "seed3" / "features.npz")
        result = json.loads((folder / arm / "seed3" / "result.json").read_text())
        of_each_digit = np.bincount(load_digits(return_X_y=True)[1])
        in_test = [sum(index % 10 >= 6 for index in range(count)) for count in of_each_digit]  # the last four of ten
        assert np.bincount(saved["test_labels"]).tolist() == in_test
        assert len(saved["test_features"]) == sum(in_test)
        p = saved["singular_values"] / saved["singular_values"].sum()
        np.testing.assert_allclose(result["effective_rank"], np.exp(-(p * np.log(p)).sum()), rtol=1e-4)
        at_best = saved["l2"][saved["validation_accuracy"] == saved["validation_accuracy"].max()].max()
        np.testing.assert_allclose(result["probe_l2"], at_best)


def test_the_arms_start_from_the_same_weights_and_part_in_training(folder):
    curves = [
        [json.loads(line) for line in (folder / arm / "seed3" / "metrics.jsonl").read_text().splitlines()]
        for arm in ("baseline", "VCReg")
    ]
    at_start = [next(line["loss"] for line in curve if line["step"] == 0) for curve in curves]
    at_end = [next(line["loss"] for line in reversed(curve)) for curve in curves]
    assert at_start[0] == at_start[1]
    assert at_end[0] != at_end[1]


def test_a_second_run_trains_nothing(config, folder, monkeypatch):
    monkeypatch.setattr(loop, "train", None)  # would fail when called
    assert experiment.run(config, "again") == folder


def test_a_folder_of_another_config_is_refused_naming_the_difference(config, folder):
    changed = replace(config, train=replace(config.train, steps=4))
    with pytest.raises(ValueError, match=r"holds a run of another config \(train.steps: 3 there, 4 here\)"):
        experiment.run(changed, "changed")
    weaker = {"baseline": vc.Sites(), "VCReg": vc.Sites(block=vc.VCReg(alpha=0.1, beta=0.16))}
    with pytest.raises(ValueError, match="arms.VCReg.block.alpha: 2.56 there, 0.1 here"):
        experiment.run(replace(config, arms=weaker), "changed")
