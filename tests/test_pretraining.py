import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import digits
from train.config import EMAConfig, Pretraining
from train.data import pipeline
from train.experiments import pretraining
from train.trainer import loop
from vcreg_jax import Sites, VCReg


def small(directory: Path, **changes) -> Pretraining:
    train = digits.get_config().train
    schedule = replace(train.optimizer.schedule, warmup_steps=1)
    train = replace(
        train,
        data=replace(train.data, directory=str(directory / "data")),
        optimizer=replace(train.optimizer, schedule=schedule),
        steps=3,
        ema=EMAConfig(0.5, steps_per_epoch=3, every_steps=1),
        **changes,
    )
    arms = {"baseline": Sites(), "VCReg": Sites(block=VCReg())}
    return Pretraining("small", train, arms, runs_directory=str(directory / "runs"), paper="75.9 %")


def test_every_arm_is_trained_once_and_its_accuracy_is_that_of_the_averaged_weights(tmp_path):
    config = small(tmp_path)
    folder = pretraining.run(config, "python -m train run small.py")
    results = {arm: folder / arm / "seed0" / "result.json" for arm in config.arms}
    accuracies = {arm: json.loads(file.read_text())["validation_accuracy"] for arm, file in results.items()}

    data = pipeline.load(config.train.data, "validation")
    trained = loop.train(config.train, config.arms["VCReg"], 0, folder / "VCReg" / "seed0", "again")  # restores only
    images = np.concatenate([batch["image"][batch["mask"]] for batch in data.eval_batches(128)])
    graphdef = loop.prepare(config.train, config.arms["VCReg"]).graphdef
    pixels = (images / 255 - config.train.data.mean) / config.train.data.std
    logits, last = (
        np.asarray(nnx.merge(graphdef, weights["params"], weights["batch_stats"])(jnp.asarray(pixels, jnp.float32))[0])
        for weights in jax.tree.map(jnp.asarray, jax.device_get([trained.state["ema"], trained.state]))
    )
    np.testing.assert_allclose(trained.predict(images)[0], logits, atol=1e-4)
    assert np.abs(logits - last).max() > 1e-2
    assert accuracies["VCReg"] == pytest.approx((logits.argmax(axis=1) == data.labels()).mean(), abs=1e-6)

    about = json.loads((folder / "pretraining.json").read_text())
    assert about["command"] == "python -m train run small.py" and about["config"]["train"]["steps"] == 3
    text = pretraining.table(config, folder)
    assert f"{100 * accuracies['baseline']:.2f} % (n = 1)" in text and "the paper: 75.9 %" in text

    written = {arm: file.stat().st_mtime_ns for arm, file in results.items()}
    assert pretraining.run(config, "again") == folder
    assert written == {arm: file.stat().st_mtime_ns for arm, file in results.items()}


def test_what_cannot_run_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="needs a seed and an arm"):
        pretraining.run(replace(small(tmp_path), seeds=()), "")
    with pytest.raises(ValueError, match=r"Nearest: 8 or 16\."):
        pretraining.run(small(tmp_path, batch_size=12), "")
    assert not (tmp_path / "runs").exists()
