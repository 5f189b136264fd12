"""A step on this machine's own devices: the batch is the pipeline's, the state the network's, the sums by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import pytest

import vcreg_jax as vc
from configs import digits, recipes
from train.__main__ import main
from train.benchmarks import dry_run
from train.benchmarks.dry_run import Ran
from train.benchmarks.preflight import make_plan
from train.benchmarks.tpu_compiler import GIB, TooLarge
from train.config import Candidate
from train.data import pipeline
from train.trainer.model import Architecture
from train.trainer.step import split

CONFIG = str(Path(__file__).parents[2] / "configs" / "digits.py")
SHAPE = ["--image-shape", "8", "8", "1", "--num-classes", "2"]


def test_a_configs_step_runs_here_and_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["preflight", CONFIG, "--device", "cpu", *SHAPE, "--seconds", "0", "--json", "found.json"]
    main([*command, "--train.batch-size", "64"])
    said, found = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    assert [*found["arms"]] == ["identity", "VCReg"] and said.count("  compiling ...") == 2
    shapes = jax.eval_shape(
        lambda: split(Architecture(digits.get_config().train.model, 2, (8, 8, 1), vc.Sites()).create(0))[1]
    )
    held = 4 * 3 * sum(leaf.size for leaf in jax.tree.leaves(shapes)) + 64 // 8 * (8 * 8 + 4)  # of eight devices
    for own in found["arms"].values():
        assert held <= own["total_bytes"] - own["temporary_bytes"] < 1.1 * held + 1000
        assert len(own["step_seconds"]) == 3 and min(own["step_seconds"]) > 0
    step = sorted(found["arms"]["VCReg"]["step_seconds"])[1]
    assert f"  VCReg: 10 networks of 500 steps, {dry_run.format_duration(5000 * step)}" in said
    assert not Path("runs").exists(), "the data set was not needed"


@pytest.mark.parametrize("kind", ["erased", "two views", "plain"])
def test_the_random_batch_has_what_the_pipelines_batches_have(kind):
    train = {"erased": recipes.convnext_tiny, "two views": recipes.vicreg, "plain": recipes.resnet50}[kind]()
    data = replace(train.data, name="synthetic", synthetic_images=64, reader_threads=1)
    train = replace(train, data=data, batch_size=8, model=replace(train.model, norm_scope="global"))
    config = replace(digits.get_config(), train=train, arms={"none": vc.Sites()})
    plan = make_plan(config, "here", jax.devices(), 1e9, None, None)
    real = next(pipeline.load(data, "train").train_batches(8, 0, 0))
    given = dry_run.random_batch(plan, dry_run.batch_shapes(plan))
    assert {name: (own.shape, own.dtype) for name, own in given.items()} == {
        name: (own.shape, own.dtype) for name, own in real.items()
    }
    assert plan.num_classes == 1000 and int(given["label"].max()) < 1000
    assert int(given["image"].max()) > 250


def test_what_does_not_fit_is_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "memory", lambda device: 5e6)
    monkeypatch.setattr(dry_run, "create_state", None)  # would fail when called
    with pytest.raises(SystemExit) as stop:
        main(["preflight", CONFIG, "--device", "cpu", *SHAPE, "--train.batch-size", "4096"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert said.count("DOES NOT FIT: needs 0.") == 2 and said.count("Change: --train.batch-size") == 2
    assert "training, all arms" not in said


def test_the_whole_is_steps_times_networks_and_given_weights_take_none():
    config = digits.get_config()
    plan = make_plan(config, "here", jax.devices(), GIB, (8, 8, 1), 2)
    ran = {"identity": Ran(1, 1, 1.0, (0.5, 0.1, 0.2), 1.0), "VCReg": Ran(1, 1, 1.0, (0.4,), 1.0)}
    lines = dry_run.format_total(config, plan, ran).splitlines()
    # 10 seeds of 500 steps, of 0.2 s in the median and of 0.4 s: 1,000 and 2,000 s.
    assert lines[1:] == [
        "  baseline: 10 networks of 500 steps, 16.7 minutes",
        "  VCReg: 10 networks of 500 steps, 33.3 minutes",
    ]
    assert lines[0].startswith("training, all arms and seeds: 50.0 minutes, without reading")
    two = (Candidate(config.arms["VCReg"]), Candidate(config.arms["VCReg"], weight_decay=0.5))
    given = replace(config, arms={"baseline": (Candidate(given="a.pth"),), "VCReg": two})
    lines = dry_run.format_total(given, plan, ran).splitlines()
    assert lines[1:] == [
        "  baseline: given weights, nothing to train",
        "  VCReg: 12 networks of 500 steps, 40.0 minutes",
    ]


def test_what_a_device_refuses_without_a_number_is_told_with_a_way_out():
    plan = make_plan(digits.get_config(), "here", jax.devices(), GIB, (8, 8, 1), 2)
    text = dry_run.describe(plan, TooLarge(math.inf, 1.0))
    assert text.startswith("  DOES NOT FIT: refused. Change: ") and "inf" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--device", "gpu", *SHAPE], "JAX finds no gpu here, only cpu. For NVIDIA's install jax[cuda13]"),
        ([CONFIG, *SHAPE], "either --device gpu, or cpu or tpu, or --topology"),
        ([CONFIG, *SHAPE, "--device", "cpu", "--topology", "v5e:2x2"], "either --device gpu"),
        ([CONFIG, *SHAPE, "--device", "cpu", "--train.batch-size", "6"], "batch_size must divide by the 8 devices"),
        (
            [CONFIG.replace("digits", "strength_digits"), "--device", "cpu", *SHAPE],
            "preflight takes it with --topology",
        ),
    ],
)
def test_what_cannot_be_tried_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["preflight", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
