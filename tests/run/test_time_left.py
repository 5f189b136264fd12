"""One estimate of the time for all that a run does: the clock is set by hand, and the sums are done by hand."""

import json
from dataclasses import replace

import pytest

import vcreg_jax as vc
from configs import digits
from train.run import time_left as module
from train.run.time_left import TimeLeft
from train.trainer import loop


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_before_a_network_is_finished_only_steps_are_known(clock):
    time_left = TimeLeft(6, steps=100)
    with time_left.network():
        clock[0] += 40
        # At 2 steps/s: 30 steps here, and five times 100.
        assert time_left.seconds_left(30, 2.0) == 15 + 250
        assert time_left.text(30, 2.0) == "at least 0:04:25 left in all"


def test_after_one_is_finished_the_others_are_as_long_with_all_that_is_beside_the_steps(clock):
    time_left = TimeLeft(3, steps=100)
    with time_left.network():
        clock[0] += 90  # 50 of steps and 40 of compiling and probes
    with time_left.network():
        clock[0] += 10
        assert time_left.seconds_left(80, 2.0) == (90 - 10) + 90
        clock[0] += 100  # longer than the first one took
        assert time_left.seconds_left(80, 2.0) == 80 / 2 + 90
        assert time_left.text(80, 2.0) == "0:02:10 left in all"
    with time_left.network():
        assert time_left.seconds_left(100, 0.5) == 200  # on a machine that has become slow


def test_lines_have_the_whole_runs_time_and_say_compiling_once_for_each_program(tmp_path, capsys):
    train = digits.get_config().train
    data = replace(train.data, directory=str(tmp_path / "data"))
    schedule = replace(train.optimizer.schedule, warmup_steps=1)
    # A batch of another test's would find its program compiled.
    train = replace(train, data=data, optimizer=replace(train.optimizer, schedule=schedule), steps=3, batch_size=40)
    train = replace(train, log_every=1, eval_every=3)
    time_left = TimeLeft(2, 3)
    for seed in (0, 1):
        with time_left.network():
            loop.train(train, vc.Sites(), seed, tmp_path / str(seed), f"seed {seed}", time_left=time_left)
    said = capsys.readouterr().err.splitlines()
    first, second = ([line for line in said if line.startswith(f"seed {seed}")] for seed in (0, 1))
    assert first[0].endswith("compiling ...") and sum("compiling" in line for line in said) == 1
    assert "at least 0:" in first[-1] and first[-1].endswith("left in all")
    assert "at least" not in second[-1] and second[-1].endswith("left in all")
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [0, 1, 2]
