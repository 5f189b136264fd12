import functools
import json
import struct
from dataclasses import replace

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import vcreg_jax as vc
from configs import digits
from train.augment import MixConfig
from train.run.log import MetricsFile
from train.trainer import evaluation, loop
from train.trainer.optim import learning_rate
from train.trainer.prepare import prepare

SITES = vc.Sites(block=vc.VCReg())


@pytest.fixture(scope="module")
def config(tmp_path_factory, smallest):
    train = digits.get_config().train
    return replace(
        train,
        data=replace(train.data, directory=str(tmp_path_factory.mktemp("data"))),
        model=replace(train.model, name=smallest, stochastic_depth=0.3),
        optimizer=replace(train.optimizer, schedule=replace(train.optimizer.schedule, warmup_steps=1)),
        steps=4,
        batch_size=32,
        eval_every=2,
        save_every=2,
        log_every=1,
        tensorboard=True,
    )


def _events(folder):
    """What TensorBoard reads, in order: steps and times with what stands at them; the framing is TFRecord's."""
    (file,) = folder.iterdir()
    content, found, purged = file.read_bytes(), [], []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found += [(event.step, event.wall_time, value.tag, value.simple_value) for value in event.summary.value]
        purged += [event.step] * event.HasField("session_log")
    assert purged == [0]
    return found


def _as_events(lines):
    return [
        (line["step"], line["time"], f"{name}/{line['split']}", float(np.float32(value)))
        for line in lines
        for name, value in line.items()
        if name not in ("step", "split", "time")
    ]


def _bits(trained):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained.state)]


def test_two_steps_and_two_after_a_crash_equal_four_bit_for_bit(config, tmp_path, monkeypatch):
    straight = loop.train(config, SITES, 5, tmp_path / "straight", "straight")

    write = MetricsFile.write

    def crash_in_the_fourth_step(self, step, split, metrics):
        if (step, split) == (3, "train"):
            raise KeyboardInterrupt
        write(self, step, split, metrics)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "write", crash_in_the_fourth_step)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, SITES, 5, tmp_path / "crashed", "crashed")
    assert [path.name for path in (tmp_path / "crashed" / "checkpoints").iterdir()] == ["2"]
    resumed = loop.train(config, SITES, 5, tmp_path / "crashed", "resumed")

    assert _bits(resumed) == _bits(straight)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("straight", "crashed")]
    lines, resumed_lines = ([json.loads(line) for line in log] for log in logs)
    assert all(line.pop("sha256") for line in lines + resumed_lines)
    assert _events(tmp_path / "crashed" / "tensorboard") == _as_events(resumed_lines)
    waits = [line.pop("data_wait") for line in lines + resumed_lines if line["split"] == "train"]
    assert len(waits) == 8 and all(0 < wait < 1 for wait in waits)
    rates = [line.pop("images_per_second") for line in lines + resumed_lines if "images_per_second" in line]
    assert len(rates) == 3 + 2 and min(rates) > 0  # in each process from its second step on; the fourth crashed
    times = [line.pop("time") for line in resumed_lines]
    assert times == sorted(times) and all(line.pop("time") for line in lines)
    assert lines == resumed_lines
    rate = learning_rate(config.optimizer.schedule, config.steps)
    for line in lines:
        if line["split"] == "train":
            assert line.keys() == {
                "step",
                "split",
                "loss",
                "accuracy",
                "gradient_norm",
                "skipped",
                "learning_rate",
            }
            np.testing.assert_allclose(line["learning_rate"], rate(line["step"]), rtol=1e-6)
    steps = [(line["step"], line["split"]) for line in lines]
    validations = [(step, "validation") for step in (0, 2, 4)]
    assert sorted(steps) == sorted(validations + [(step, "train") for step in range(4)])


def test_another_seed_gives_another_network(config, tmp_path):
    short = replace(config, steps=2)
    a, b = (loop.train(short, SITES, seed, tmp_path / str(seed), "seed") for seed in (0, 1))
    assert _bits(a) != _bits(b)


def test_a_finished_run_is_not_trained_again(config, tmp_path, monkeypatch):
    short = replace(config, steps=2)
    first = loop.train(short, SITES, 0, tmp_path, "first")
    monkeypatch.setattr(loop, "make_train_step", functools.lru_cache(lambda *_: None))  # would fail when called
    assert _bits(loop.train(short, SITES, 0, tmp_path, "second")) == _bits(first)


def test_evaluation_counts_every_example_once_whatever_the_batch_size(config, tmp_path):
    trained = loop.train(replace(config, steps=2), SITES, 0, tmp_path, "run")
    data = prepare(config, SITES).validation
    images = np.stack([np.asarray(data.image(position))[..., None] for position in range(len(data))])
    logits = np.asarray(trained.predict(jax.numpy.asarray(images))[0], np.float64)
    labels = data.labels()
    log_sum = np.log(np.exp(logits).sum(axis=1))
    expected = {"loss": (log_sum - logits[np.arange(len(labels)), labels]).mean()}
    expected["accuracy"] = (logits.argmax(axis=1) == labels).mean()
    for batch_size in (16, 64, 400):
        found = evaluation.evaluate(trained.predict, data, batch_size, trained.mesh)
        np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-5)


def test_configs_that_cannot_run_are_refused_before_any_work(config):
    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            prepare(replace(config, **changes), SITES)

    refused(r"batch_size must divide by the 8 devices, got 100. Nearest: 96 or 104.", batch_size=100)
    refused(
        "Unknown model 'convnext_digit'. Did you mean 'convnext_digits'",
        model=replace(config.model, name="convnext_digit"),
    )
    refused("data \\* fsdp = 8 devices, got data=3, fsdp=1", mesh=replace(config.mesh, data=3))
    refused(
        "warmup_steps must lie in",
        optimizer=replace(config.optimizer, schedule=replace(config.optimizer.schedule, warmup_steps=4)),
    )
    twice = replace(config.data, repeats=2)
    refused("needs as many groups as data.repeats=2, got 32 images in groups of 32", data=twice, mix=MixConfig(0.2))
    refused("Unknown label of digits: 'fine'", data=replace(config.data, label="fine"))
