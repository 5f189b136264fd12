"""Hosts that are killed, stopped, told to end, or not alike: whole runs as real processes. `make faults`."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.processes import ROOT, Run
from train.data import hashes as of_files
from train.data import pipeline
from train.files import json_files
from train.run.checkpoint_format import read_about

LONG = ("--train.steps", "30", "--train.eval-every", "10", "--train.save-every", "10")


def hashes(run, step=30):
    return {
        path: array["hash"] for path, array in read_about(run.directory / "checkpoints" / str(step))["arrays"].items()
    }


def saved_steps(run):
    return sorted(int(path.name) for path in (run.directory / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with Run(tmp_path_factory.mktemp("straight"), *LONG, devices=2) as run:
        assert run.statuses() == [0]
    return run


@pytest.fixture(scope="module")
def straight_on_two(tmp_path_factory):
    with Run(tmp_path_factory.mktemp("straight_on_two"), *LONG, hosts=2) as run:
        assert run.statuses() == [0, 0]
    return run


def test_two_hosts_train_as_one_with_the_same_global_batch(straight, straight_on_two):
    for split in ("train", "validation"):
        ours, theirs = straight_on_two.lines(split), straight.lines(split)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        early = [(a["loss"], b["loss"]) for a, b in zip(ours, theirs, strict=True) if a["step"] <= 15]
        np.testing.assert_allclose(*zip(*early, strict=True), rtol=1e-4)
    assert ours[0]["accuracy"] == theirs[0]["accuracy"]  # of the same images, as many
    assert straight_on_two.output(0).count("validation accuracy") >= 4
    assert "accuracy" not in straight_on_two.output(1)  # the first host speaks


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_sigterm_saves_the_next_step_and_the_run_goes_on_to_the_same_bits(moment, straight, tmp_path):
    with Run(tmp_path, *LONG, devices=2) as run:
        run.wait_for(7 if moment == "training" else 19)  # then comes an evaluation
        run.processes[0].send_signal(signal.SIGTERM)
        assert run.statuses(60) == [143]
    step = max(saved_steps(run))
    assert step == max(line["step"] for line in run.lines()) + 1  # nothing is lost
    with Run(tmp_path, *LONG, devices=2) as run:
        assert run.statuses() == [0]
    assert hashes(run) == hashes(straight)
    for split in ("train", "validation"):
        kept = [{key: line[key] for key in ("step", "loss", "accuracy")} for line in run.lines(split)]
        assert kept == [{key: line[key] for key in ("step", "loss", "accuracy")} for line in straight.lines(split)]


def test_sigterm_on_one_of_two_hosts_saves_the_same_step_on_both(straight, straight_on_two, tmp_path):
    with Run(tmp_path / "a", *LONG, hosts=2) as run:
        run.wait_for(12)
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.statuses(120) == [143, 143]
    step = max(saved_steps(run))
    assert step == max(line["step"] for line in run.lines()) + 1 and step % 10
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with Run(tmp_path / "a", *LONG, hosts=2) as run:
        assert run.statuses() == [0, 0]
    assert hashes(run) == hashes(straight_on_two)
    with Run(tmp_path / "b", *LONG, devices=2) as run:  # and on another number of hosts
        assert run.statuses() == [0]
    assert [line["step"] for line in run.lines()] == list(range(30))
    np.testing.assert_allclose(run.lines()[step]["loss"], straight.lines()[step]["loss"], rtol=1e-3)


def test_sigterm_while_compiling_or_probing_ends_at_once(tmp_path):
    with Run(tmp_path / "compiling", devices=1) as run:
        run.wait_until(lambda: run.lines("validation"), "the evaluation before the first step")
        run.processes[0].send_signal(signal.SIGTERM)
        assert run.statuses(5) == [143]
    assert not run.lines() and "SIGTERM: ended" in run.output()


def test_a_second_sigterm_ends_at_once_also_while_the_first_waits_for_a_stopped_host(tmp_path):
    with Run(tmp_path, *LONG, hosts=2) as run:
        run.wait_for(5)
        run.processes[1].send_signal(signal.SIGSTOP)
        run.processes[0].send_signal(signal.SIGTERM)
        run.wait_until(lambda: "again: the end at once" in run.output(), "the first SIGTERM's line")
        time.sleep(2)
        assert run.processes[0].poll() is None
        run.processes[0].send_signal(signal.SIGTERM)
        assert run.processes[0].wait(5) == 143


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_host_ends_when_one_is_killed(killed, tmp_path):
    with Run(tmp_path, *LONG, hosts=2) as run:
        run.wait_for(12)
        run.processes[killed].send_signal(signal.SIGKILL)
        began = time.monotonic()
        status = run.processes[1 - killed].wait(120)
        print(f"host {1 - killed} ended with {status} after {time.monotonic() - began:.1f} s")
        assert status not in (0, None)


def test_a_host_that_stops_is_noticed_and_the_stacks_are_shown(tmp_path):
    with Run(tmp_path, *LONG, "--train.hang-seconds", "30", hosts=2) as run:
        run.wait_for(5)
        run.processes[1].send_signal(signal.SIGSTOP)
        assert run.processes[0].wait(90) == 1
    assert "has taken over 30 s (hang_seconds); where each thread is:" in run.output()
    assert 'train/trainer/loop.py", line' in run.output()


def test_hosts_that_are_not_alike_are_refused_on_every_host(tmp_path):
    """Their config, the code they run, and their copy of the data."""
    pipeline.load(tiny.get_config().train.data, "train")  # prepares it
    shutil.copytree(ROOT / "runs" / "data" / "digits", tmp_path / "data" / "digits")
    (file,) = (tmp_path / "data" / "digits").rglob("labels-train.npz")
    labels = dict(np.load(file))
    labels["closed_loop"][5] ^= 1
    np.savez(file, **labels)
    of_files.write(file.parent, json_files.read(file.parent / of_files.FILE)["splits"])  # as if it had been prepared so
    for package in ("train", "vcreg_jax", "configs", "tests"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package)
    with (tmp_path / "code" / "train" / "ema.py").open("a") as source:
        source.write("# another version\n")

    options = ("--train.label-smoothing", "0.25", "--train.data.directory", str(tmp_path / "data"))
    with Run(tmp_path, hosts=2, of_last=options, root_of_last=tmp_path / "code") as run:
        assert run.statuses() == [2, 2]
    for host in (0, 1):
        line = run.output(host).strip().splitlines()[-1]
        assert line.startswith("error: All hosts of a run need the same config, code and data. Of host 1 (there) and")
        for difference in (
            "code.sources: '",
            "config.train.label_smoothing: 0.25 there, 0.0 here",
            "data.digits train: '",
        ):
            assert difference in line


def readers_of(process):
    """The processes that Grain has started for it."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")  # by the thread that started them
    children = [child for task in tasks for child in task.read_text().split()]
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in commands.items() if b"spawn_main" in command]


READER = ("--train.data.reader-processes", "1", "--train.data.no-in-memory")
READER += ("--train.steps", "100000", "--train.eval-every", "100000", "--train.save-every", "100000")


def test_a_killed_reader_process_is_one_clear_line(tmp_path):
    with Run(tmp_path, *READER) as run:
        run.wait_for(3)
        (reader,) = readers_of(run.processes[0])
        os.kill(reader, signal.SIGKILL)
        assert run.statuses(60) == [1]
    errors = [line for line in run.output().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: A process that reads data has ended")
    assert "Traceback" not in run.output()


def test_a_stopped_reader_process_is_noticed(tmp_path):
    with Run(tmp_path, *READER, "--train.hang-seconds", "30") as run:
        run.wait_for(3)
        (reader,) = readers_of(run.processes[0])
        os.kill(reader, signal.SIGSTOP)
        assert run.statuses(120) == [1]
        os.kill(reader, signal.SIGKILL)
    assert "error: reading a batch has taken over 30 s (hang_seconds); where each thread is:" in run.output()
