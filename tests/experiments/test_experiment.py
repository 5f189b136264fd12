import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import vcreg_jax as vc
from configs import digits, table2_imagenet
from train.config import Candidate, EMAConfig, Experiment, NearestNeighborsConfig, Target
from train.data import pipeline
from train.experiments import experiment, targets
from train.files import arrays, json_files
from train.reports import report, report_page, tables
from train.run.folder import claim
from train.trainer import loop
from train.trainer.prepare import prepare


@pytest.fixture(scope="module")
def config(tmp_path_factory, smallest):
    whole = digits.get_config()
    folder = tmp_path_factory.mktemp("runs")
    train = replace(
        whole.train,
        data=replace(whole.train.data, directory=str(folder / "data")),
        model=replace(whole.train.model, name=smallest),
        optimizer=replace(whole.train.optimizer, schedule=replace(whole.train.optimizer.schedule, warmup_steps=1)),
        steps=3,
        batch_size=64,
        log_every=1,
    )
    targets = {"digit": Target(replace(whole.targets["digit"].probe, l2_count=3))}
    return replace(whole, train=train, seeds=(3,), runs_directory=str(folder), targets=targets)


@pytest.fixture(scope="module")
def folder(config):
    return experiment.run(config, "python -m train run configs/digits.py")


def test_the_run_folder_becomes_a_report(folder):
    header, own, probe, rank = report.rows(report.load(folder))
    assert header == ["", "baseline", "VCReg", "difference"]
    assert [row[0] for row in (own, probe, rank)] == [
        "closed_loop accuracy (%)", "digit probe accuracy (%)", "effective rank",
    ]  # fmt: skip
    assert report_page.write(folder).stat().st_size > 50_000


def test_what_is_reported_is_what_numpy_finds_in_the_saved_features(folder):
    for arm in ("baseline", "VCReg"):
        with np.load(folder / arm / "seed3" / "features.npz") as archive:
            saved = dict(archive)
        found = json_files.read(folder / arm / "seed3" / "result.json")["targets"]["digit"]
        of_each_digit = np.bincount(load_digits(return_X_y=True)[1])
        in_test = [sum(index % 10 >= 6 for index in range(count)) for count in of_each_digit]  # the last four of ten
        assert np.bincount(saved["digit/labels"]).tolist() == in_test
        p = saved["digit/singular_values"] / saved["digit/singular_values"].sum()
        np.testing.assert_allclose(found["effective_rank"], np.exp(-(p * np.log(p)).sum()), rtol=1e-4)
        accuracy, l2 = saved["digit/validation_accuracy"], saved["digit/l2"]
        np.testing.assert_allclose(found["l2"], l2[accuracy == accuracy.max()].max())
        rows = {}
        for place in (folder / arm / "seed3" / "features").iterdir():
            index = json.loads((place / "index.json").read_text())
            rows[index["images"][1].split()[1]] = np.fromfile(place / "features.bin", np.float32).reshape(
                index["shape"]
            )
        test = rows["test"].astype(np.float64)
        deviations = np.linalg.svd(rows["train"] - rows["train"].mean(0), compute_uv=False) / np.sqrt(907)
        np.testing.assert_allclose(saved["digit/singular_values"], deviations, rtol=1e-3, atol=1e-4)
        _, s, axes = np.linalg.svd(test - test.mean(0), full_matrices=False)
        np.testing.assert_allclose(saved["digit/shares"], (s**2 / (s**2).sum())[:2], rtol=1e-6)
        np.testing.assert_allclose(
            np.abs(saved["digit/points"]), np.abs((test - test.mean(0)) @ axes[:2].T), atol=1e-5 * s[0]
        )


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


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, smallest):
    """Without a target, and tested on the moving average of its weights."""
    directory, whole = tmp_path_factory.mktemp("averaged"), digits.get_config()
    train = replace(
        whole.train,
        data=replace(whole.train.data, directory=str(directory / "data")),
        model=replace(whole.train.model, name=smallest),
        optimizer=replace(whole.train.optimizer, schedule=replace(whole.train.optimizer.schedule, warmup_steps=1)),
        steps=3,
        ema=EMAConfig(0.5, steps_per_epoch=3, every_steps=1),
    )
    arms = {"baseline": vc.Sites(), "VCReg": vc.Sites(block=vc.VCReg())}
    return Experiment(
        "small", "Small", train, arms, seeds=(0,), runs_directory=str(directory), paper={"VCReg": {"pretraining": 75.9}}
    )


def test_without_a_target_the_accuracy_is_that_of_the_averaged_weights_on_test_images(averaged):
    folder = experiment.run(averaged, "python -m train run small.py")
    accuracy = {arm: json_files.read(folder / arm / "seed0" / "result.json")["accuracy"] for arm in averaged.arms}
    train = averaged.train
    data = pipeline.load(train.data, "test")
    trained = loop.train(train, averaged.arms["VCReg"], 0, folder / "VCReg" / "seed0", "again")  # restores only
    images = np.concatenate([batch["image"][batch["mask"]] for batch in data.eval_batches(128)])
    graphdef = prepare(train, averaged.arms["VCReg"]).graphdef
    pixels = (images / 255 - train.data.mean) / train.data.std
    logits, last = (
        np.asarray(nnx.merge(graphdef, weights["params"], weights["batch_stats"])(jnp.asarray(pixels, jnp.float32))[0])
        for weights in jax.tree.map(jnp.asarray, jax.device_get([trained.state["ema"], trained.state]))
    )
    np.testing.assert_allclose(trained.predict(images)[0], logits, atol=1e-4)
    assert np.abs(logits - last).max() > 1e-2
    assert accuracy["VCReg"] == pytest.approx((logits.argmax(axis=1) == data.labels()).mean(), abs=1e-6)
    _, own = report.rows(report.load(folder))
    assert own[:3] == ["accuracy (%)", f"{100 * accuracy['baseline']:.2f}", f"{100 * accuracy['VCReg']:.2f}"]
    assert "75.9" in tables.text(tables.gather(averaged, "python -m train run digits"))
    assert "Trained on closed_loop." in report_page.write(folder).read_text()


def test_what_cannot_run_is_refused_before_any_work(averaged, tmp_path):
    config = replace(averaged, runs_directory=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="needs a seed and an arm"):
        experiment.run(replace(config, seeds=()), "")
    with pytest.raises(ValueError, match=r"Nearest: 8 or 16\."):
        experiment.run(replace(config, train=replace(config.train, batch_size=12)), "")
    assert not (tmp_path / "runs").exists()


def _trained_lines(folder):
    lines = (folder / "VCReg" / "seed3" / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if '"split": "train"' in line]


def test_targets_that_are_added_are_probed_without_training_and_none_is_probed_twice(
    config, tmp_path, monkeypatch, capsys
):
    digit = config.targets["digit"]
    other = Target(NearestNeighborsConfig("digit"))
    whole = replace(
        config, name="added", runs_directory=str(tmp_path), targets={"digit": digit, "neighbours": other}, seeds=(3, 4)
    )
    folder = experiment.run(targets.choose(whole, ["digit"]), "python -m train run digits --targets digit")
    said = capsys.readouterr().out
    assert said.count("digit is probed by: ") == 1 and said.count("seed 4, digit: ") == 2
    path = folder / "VCReg" / "seed3" / "result.json"
    before = json_files.read(path)
    features, lines = dict(arrays.read(folder / "VCReg" / "seed3" / "features.npz")), _trained_lines(folder)
    assert len(lines) == 3 and [*before["targets"]] == ["digit"]
    text = tables.text(tables.gather(whole, "python -m train run digits"))
    assert text.count("not run") == 2 and "ours, n = 2" in text
    with pytest.raises(ValueError, match="holds a run of another config"):
        changed = replace(digit, probe=replace(digit.probe, l2_count=2))
        experiment.run(replace(whole, targets={"digit": changed, "neighbours": other}), "changed")
    tested = []
    test = targets.test
    monkeypatch.setattr(targets, "test", lambda target, features_of: tested.append(target) or test(target, features_of))
    experiment.run(whole, "python -m train run digits")
    assert [own.probe for own in tested] == 4 * [other.probe]
    after = json_files.read(path)
    assert after["targets"]["digit"] == before["targets"]["digit"] and after["accuracy"] == before["accuracy"]
    merged = arrays.read(folder / "VCReg" / "seed3" / "features.npz")
    assert {name: merged[name].tobytes() for name in features} == {
        name: own.tobytes() for name, own in features.items()
    }
    assert _trained_lines(folder) == lines, "with their times: nothing was trained again"
    labels = {split: pipeline.load(config.train.data, split, "digit").labels() for split in ("train", "test")}
    rows = {}
    for place in (folder / "VCReg" / "seed3" / "features").iterdir():
        index = json.loads((place / "index.json").read_text())
        rows[index["images"][1].split()[1]] = np.fromfile(place / "features.bin", np.float32).reshape(index["shape"])
    unit = {split: own / np.linalg.norm(own, axis=1, keepdims=True) for split, own in rows.items()}
    cosine = unit["test"] @ unit["train"].T
    near = np.argsort(-cosine, axis=1)[:, :20]
    votes = np.zeros((len(near), 10))
    for column in near.T:
        weight = np.exp(cosine[np.arange(len(near)), column] / 0.07)
        votes[np.arange(len(near)), labels["train"][column]] += weight
    right = (votes.argmax(axis=1) == labels["test"]).mean()
    assert after["targets"]["neighbours"]["accuracy"] == pytest.approx(right, abs=2.5 / len(near))
    assert "not run" not in tables.text(tables.gather(whole, "python -m train run digits"))
    assert report_page.write(folder).is_file()


def test_where_targets_choose_among_candidates_none_can_be_added(config, tmp_path):
    two = tuple(Candidate(vc.Sites(), weight_decay=decay) for decay in (0.01, 0.1))
    searched = replace(config, name="searched", runs_directory=str(tmp_path), arms={"none": two}, tuning_seed=5)
    with claim(tmp_path / "searched", searched):
        pass
    more = replace(searched, targets=searched.targets | {"neighbours": Target(NearestNeighborsConfig("digit"))})
    with (
        pytest.raises(ValueError, match=r"another config \(targets.neighbours: None there"),
        claim(tmp_path / "searched", more),
    ):
        pass
    with claim(tmp_path / "one", replace(searched, arms={"none": two[:1]})):
        pass
    with claim(tmp_path / "one", replace(more, arms={"none": two[:1]})):
        pass


def test_all_data_sets_that_are_missing_are_named_at_once_with_their_files_and_owners(tmp_path):
    whole = table2_imagenet.get_config()
    elsewhere = {
        name: replace(own, data=replace(own.data, directory=str(tmp_path))) for name, own in whole.targets.items()
    }
    train = replace(whole.train, data=replace(whole.train.data, directory=str(tmp_path)))
    missing = replace(whole, train=train, targets=elsewhere, runs_directory=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="^9 data sets are not prepared under ") as refused:
        experiment.run(missing, "")
    lines = str(refused.value).split("\n  ")[1:]
    names = [line.partition(":")[0] for line in lines]
    assert sorted(names) == sorted(
        ["imagenet", "i_naturalist2018", "places205", "food101", "cars196", "fgvc_aircraft", "oxford_iiit_pet",
         "oxford_flowers102", "dtd"]
    )  # fmt: skip
    assert "ILSVRC2012_img_train.tar (147,897,477,120 bytes" in lines[0] and "https://image-net.org" in lines[0]
    assert all("Its owner gives them out at http" in line for line in lines)
    chosen = targets.choose(missing, ["DTD"])
    with pytest.raises(ValueError, match="^2 data sets are not prepared"):
        experiment.run(chosen, "")
    with pytest.raises(ValueError, match=r"no target 'Card'. Did you mean 'Cars'\? Known: iNat18, Places, Food-101"):
        targets.choose(missing, ["Card"])
    assert not (tmp_path / "runs").exists()
