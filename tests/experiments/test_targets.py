"""An experiment with candidates and targets end to end on digits, and what becomes of wrong configs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from configs import digits, probes
from train.augment import AugmentConfig
from train.config import AdamW, Candidate, Experiment, GradientProbeConfig, JointEmbedding, ProbeConfig, Target
from train.data import pipeline
from train.experiments import experiment, targets
from train.files import json_files
from vcreg_jax import Sites, VCReg
from vcreg_jax.losses import VICReg

STRONG = GradientProbeConfig("digit", AdamW(0.05), (0.1, 0.01), epochs=3, protocol="quick")


@pytest.fixture(scope="module")
def config(tmp_path_factory, smallest):
    whole, folder = digits.get_config().train, tmp_path_factory.mktemp("runs")
    data = replace(whole.data, directory=str(folder / "data"))
    schedule = replace(whole.optimizer.schedule, warmup_steps=1)
    train = replace(whole, data=data, optimizer=replace(whole.optimizer, schedule=schedule), steps=3, batch_size=64)
    train = replace(train, model=replace(train.model, name=smallest))
    rates = (Candidate(peak_learning_rate=1e-3), Candidate(weight_decay=0.1))
    return Experiment(
        name="digits",
        title="digits",
        train=train,
        arms={"none": rates, "VCReg": (Candidate(Sites(block=VCReg())), Candidate(Sites(block=VCReg(1.28, 0.16))))},
        targets={
            "digit": Target(ProbeConfig("digit", l2_low=1.0, l2_high=1e2, l2_count=3, standardize=True)),
            "held out": Target(STRONG, data, held_out=10),
        },
        seeds=(3,),
        tuning_seed=100,
        runs_directory=str(folder),
    )


def tried(config, arm, candidate, *accuracies):
    """A finished trial of a candidate."""
    path = experiment.Path(config.runs_directory) / config.name / arm / f"tuning{candidate}" / "result.json"
    path.parent.mkdir(parents=True)
    found = {name: {"validation_accuracy": value} for name, value in zip(config.targets, accuracies, strict=True)}
    path.write_text(json.dumps({"targets": found}))


@pytest.fixture(scope="module")
def folder(config):
    tried(config, "none", 0, 0.9, 0.1)
    tried(config, "none", 1, 0.55, 0.5)
    tried(config, "VCReg", 0, 0.0, 0.0)  # the second one is not there yet
    return experiment.run(config, "python -m train run")


def test_the_candidate_goes_on_that_is_best_on_validation_over_all_targets(folder):
    chosen = json_files.read(folder / "none" / "tuning.json")
    assert chosen == {"mean_validation_accuracy": [0.5, 0.525], "chosen": 1}
    assert json.loads((folder / "VCReg" / "tuning.json").read_text())["chosen"] == 1
    found = json.loads((folder / "VCReg" / "tuning1" / "result.json").read_text())["targets"]
    assert all(target.keys() <= {"validation_accuracy", "l2"} for target in found.values())  # nothing of test images


def test_results_are_what_sklearn_finds_in_the_features(folder, config):
    for arm in config.arms:
        found = json.loads((folder / arm / "seed3" / "result.json").read_text())["targets"]
        assert found["digit"]["protocol"].startswith("VCReg, Appendix C.1: L-BFGS linear probe")
        assert found["held out"]["protocol"].startswith("quick: AdamW linear probe, 3 epochs")
        assert found["digit"]["images"] == [908, 179, 710]
        assert found["held out"]["images"] == [808, 100, 710]
        caches = {}
        for place in (folder / arm / "seed3" / "features").iterdir():
            index = json.loads((place / "index.json").read_text())
            rows = np.fromfile(place / "features.bin", np.float32).reshape(index["shape"])
            caches[index["images"][1].split()[1]] = rows, np.fromfile(place / "labels.bin", np.int32)
        scaler = StandardScaler().fit(both := np.concatenate([caches["train"][0], caches["validation"][0]]))
        labels = np.concatenate([caches["train"][1], caches["validation"][1]])
        other = LogisticRegression(C=1 / found["digit"]["l2"], tol=1e-5, max_iter=1000)
        other.fit(np.asarray(scaler.transform(both), np.float64), labels)
        accuracy = other.score(np.asarray(scaler.transform(caches["test"][0]), np.float64), caches["test"][1])
        np.testing.assert_allclose(found["digit"]["accuracy"], accuracy, atol=2 / 710)


def test_what_is_finished_is_not_done_again(folder, config, monkeypatch):
    monkeypatch.setattr(experiment.loop, "train", None)  # would fail when called
    assert experiment.run(config, "again") == folder


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": ()}, "An experiment needs a seed and an arm"),
        ({"seeds": (1, 100)}, "Seeds must differ, got 1, 100, 100"),
        ({"arms": {"a": (Candidate(),), "b": (Candidate(),) * 2}}, "Every arm must have as many candidates"),
        ({"arms": {"a": ()}}, "Every arm must have as many candidates, at least one"),
        ({"tuning_seed": None}, "Candidates are compared by their probes: they need a tuning_seed and a target"),
        ({"targets": {}}, "Candidates are compared by their probes: they need a tuning_seed and a target"),
    ],
)
def test_a_search_that_is_not_fair_is_refused_before_any_work(config, changes, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(replace(config, **changes), "")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": (900, 179, 710)}, r"x: the protocol has \(900, 179, 710\) images to train, validate and test"),
        ({"held_out": 1.5}, "held_out must be a share between 0 and 1 or a number of images, got 1.5"),
        ({"held_out": 89}, "held_out must leave each class an image, got 89 where the fewest are 89"),
        ({"probe": ProbeConfig("colour")}, "Unknown label of digits: 'colour'"),
    ],
)
def test_a_target_that_cannot_be_is_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        targets.check("x", replace(config.targets["digit"], data=config.train.data, **changes))


def test_selection_looks_at_no_test_image(config):
    seen = []

    def features_of(data):
        seen.append(data.selection.name)
        return np.random.default_rng(0).normal(size=(len(data), 4)).astype(np.float32), data.labels()

    for target in targets.on(config.train.data, config.targets).values():
        targets.validate(target, features_of)
    assert sorted(set(seen)) == ["digits train", "digits validation"]


def test_held_out_images_are_a_share_or_so_many_of_each_class_and_always_the_same():
    labels = np.random.default_rng(0).integers(37, size=3680)
    share, each = targets.held_out(labels, 0.1), targets.held_out(labels, 20)
    assert share.sum() == 368
    np.testing.assert_array_equal(np.bincount(labels[each]), np.full(37, 20))
    np.testing.assert_array_equal(share, targets.held_out(labels, 0.1))


def test_presets_have_the_sizes_and_metrics_of_the_published_protocol(monkeypatch):
    # BYOL, Table 10: images to train, to validate, to test; and each set's metric.
    published = {
        "Food-101": (101, 68_175, 7_575, 25_250, "top1"),
        "Cars": (196, 6_494, 1_650, 8_041, "top1"),
        "Aircraft": (100, 3_334, 3_333, 3_333, "mean_per_class"),
        "Pets": (37, 2_940, 740, 3_669, "mean_per_class"),
        "Flowers": (102, 1_020, 1_020, 6_149, "mean_per_class"),
        "DTD": (47, 1_880, 1_880, 1_880, "top1"),
    }
    owners = {"train": 0, "validation": 1, "test": 2}

    class Given:
        def __init__(self, count, classes):
            self.targets, self.num_classes = np.arange(count) % classes, classes

        def __len__(self):
            return len(self.targets)

        def labels(self):
            return self.targets

    assert probes.SIX.keys() == published.keys()
    for name, (classes, *counts, metric) in published.items():
        target = probes.SIX[name]
        given = list(counts)
        if target.held_out is not None:  # the owner has one split for both
            given[0] += given[1]
        monkeypatch.setattr(pipeline, "load", lambda data, split, label: Given(given[owners[split]], classes))  # noqa: B023
        targets.check(name, target)
        assert target.probe.metric == metric
        assert target.images == tuple(counts)
        assert (target.data.evaluation.resize, target.data.evaluation.crop) == (224, 224)
        assert target.data.evaluation.interpolation == "bicubic"


def test_without_labels_the_network_is_that_of_two_views_and_labels_come_with_the_probe(config, tmp_path):
    whole = config.train
    view = AugmentConfig(crop_size=8)
    features, monitored = {}, {}
    for label in ("digit", "closed_loop"):
        data = replace(whole.data, label=label, augment=view, second_view=view, in_memory=False)
        train = replace(
            whole, data=data, joint_embedding=JointEmbedding(VICReg(), (16, 12)), monitor_images=200, steps=2
        )
        arms = {"VCReg": config.arms["VCReg"][:1]}
        probed = {"digit": replace(config.targets["digit"], data=whole.data)}
        small = replace(config, name=label, train=train, arms=arms, targets=probed, runs_directory=str(tmp_path))
        run = experiment.run(small, "") / "VCReg" / "seed3"
        found = json.loads((run / "result.json").read_text())
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert found["accuracy"] == last["knn_accuracy"]
        monitored[label] = last["knn_accuracy"]
        caches = {(place / "features.bin").read_bytes() for place in (run / "features").iterdir()}
        features[label] = caches, found["targets"]["digit"]
    assert monitored["digit"] != monitored["closed_loop"]
    assert features["digit"] == features["closed_loop"]
    assert len(features["digit"][0]) == 3
    assert found["targets"]["digit"]["images"] == [908, 179, 710]
