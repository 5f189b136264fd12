"""Nearest neighbours and ridge regression against scikit-learn's."""

import inspect
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from configs import digits
from train.config import CheckpointConfig
from train.data import pipeline
from train.trainer import features, loop, online_probe
from train.trainer.prepare import prepare
from vcreg_jax import Sites
from vcreg_jax.probes import quick

RNG = np.random.default_rng(0)


def clusters(n, d, classes=5):
    labels = np.arange(n) % classes
    centres = np.random.default_rng(9).normal(size=(classes, d))
    return 0.7 * centres[labels] + RNG.normal(size=(n, d)) + 2, labels


@pytest.mark.parametrize("neighbours", [1, 20])
def test_neighbours_vote_as_sklearns_do_with_the_same_weights(x64, neighbours):
    x, y = clusters(400, 12)
    seen = clusters(1500, 12)[0]  # more rows than are compared at once
    x[0] = seen[0] = 0

    def unit(rows):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)

    def weights(distances):  # of unit vectors: |a - b|^2 = 2 - 2 cosine
        return np.exp((1 - distances**2 / 2) / 0.07)

    voting: Any = weights  # the stubs know only its names for them
    other = KNeighborsClassifier(neighbours, weights=voting, algorithm="brute").fit(unit(x), y)
    found = np.asarray(quick.knn(x, y, seen, 5, neighbours))
    np.testing.assert_array_equal(found[1:], other.predict(unit(seen))[1:])


@pytest.mark.parametrize("shape", [(300, 12), (30, 60)], ids=["rows", "features"])
def test_ridge_is_sklearns_at_every_strength(x64, shape):
    x, y = clusters(*shape)
    seen = clusters(1000, shape[1])[0]
    strengths = [1e-3, 1.0, 1e3, 1e6]
    found = np.asarray(quick.ridge(x, y, seen, 7, strengths))  # two classes without examples
    for i, l2 in enumerate(strengths):
        outputs = Ridge(alpha=l2).fit(x, np.eye(7)[y]).predict(seen)
        np.testing.assert_array_equal(found[i], outputs.argmax(axis=1))
    assert len({tuple(row) for row in found}) > 2  # the strengths tell


def test_more_neighbours_than_rows_are_refused():
    x, y = clusters(10, 3)
    with pytest.raises(ValueError, match=r"neighbours must lie in 1\.\.10, the training rows, got 11"):
        quick.knn(x, y, x, 5, 11)


def test_training_watches_validation_features_with_both(tmp_path):
    whole = digits.get_config().train
    data = replace(whole.data, directory=str(tmp_path / "data"))
    schedule = replace(whole.optimizer.schedule, warmup_steps=0)
    optimizer = replace(whole.optimizer, schedule=schedule)
    train = replace(whole, data=data, optimizer=optimizer, steps=1, batch_size=64, monitor_images=300)
    trained = loop.train(train, Sites(), 0, tmp_path, "watched")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["split"] == "validation"][-1]
    splits = [pipeline.load(data, name) for name in ("train", "validation")]
    (x, y), (rows, labels) = (features.extract(trained.predict, split, 64, trained.mesh) for split in splits)
    some = np.sort(np.random.default_rng(0).permutation(len(x))[:300])
    x, y = x[some].astype(np.float64), y[some]
    unit = x.var(axis=0).mean() * 300
    ridges = [
        Ridge(alpha=unit * share).fit(x, np.eye(2)[y]).predict(rows).argmax(axis=1) for share in online_probe.SHARES
    ]
    best = max((predicted == labels).mean() for predicted in ridges)
    np.testing.assert_allclose(logged["ridge_accuracy"], best, atol=2 / len(rows))
    cosines = (rows / np.linalg.norm(rows, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    nearest = np.argsort(-cosines, axis=1)[:, :20]
    weights = np.exp(np.take_along_axis(cosines, nearest, axis=1) / 0.07)
    votes = np.stack([(weights * (y[nearest] == label)).sum(axis=1) for label in (0, 1)], axis=1)
    np.testing.assert_allclose(logged["knn_accuracy"], (votes.argmax(axis=1) == labels).mean(), atol=2 / len(rows))


def test_the_step_of_the_largest_rankme_is_tested_if_asked_for_also_when_run_again(tmp_path):
    whole = digits.get_config().train
    data = replace(whole.data, directory=str(tmp_path / "data"))
    steps = {"steps": 8, "eval_every": 2, "save_every": 2}
    train = replace(whole, data=data, batch_size=64, monitor_images=30, tested_by="rankme", **steps)
    schedule = replace(train.optimizer.schedule, peak_learning_rate=0.05, warmup_steps=0)
    train = replace(train, optimizer=replace(train.optimizer, schedule=schedule))
    trained = loop.train(train, Sites(), 0, tmp_path, "stopped")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if line["split"] == "validation"}
    saved = {step: line["rankme"] for step, line in found.items() if step > 0}
    assert trained.step == max(saved, key=lambda step: saved[step]) < 8  # or the last one would do
    assert trained.validation_accuracy == found[trained.step]["accuracy"]
    rows, _ = features.extract(trained.predict, pipeline.load(data, "validation"), 64, trained.mesh)
    p = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    p = p / p.sum()
    np.testing.assert_allclose(saved[trained.step], np.exp(-(p * np.log(p)).sum()), rtol=1e-4)
    assert loop.train(train, Sites(), 0, tmp_path, "again").step == trained.step
    with pytest.raises(ValueError, match="needs monitor_images > 0"):
        prepare(replace(train, monitor_images=0), Sites())
    with pytest.raises(ValueError, match="needs checkpoints.keep_best >= 1"):
        prepare(replace(train, checkpoints=CheckpointConfig(keep_best=0)), Sites())


@pytest.mark.parametrize("more", [(quick.knn, 2), (quick.ridge, 2, [1.0])])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(5, int)}, r"got \(40, 3\), \(5,\) and \(7, 3\)"),
        ({"features": np.zeros((7, 4))}, r"got \(40, 3\), \(40,\) and \(7, 4\)"),
        ({"train": np.zeros((40, 2, 2))}, r"got \(40, 2, 2\)"),
        ({"labels": np.full(40, 2)}, r"must lie in 0..1, got 2..2"),
        ({"labels": np.zeros(40)}, "must be integers in 0..1, got float"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(more, changes, message):
    given = {"train": np.ones((40, 3)), "labels": np.arange(40) % 2, "features": np.ones((7, 3))} | changes
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(more[0])(*given.values(), *more[1:])
