"""Real signals to real processes."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, sys, time, jax
signal.signal(signal.SIGINT, signal.default_int_handler)  # of those that run the tests some ignore both
signal.signal(signal.SIGHUP, signal.SIG_DFL)
jax.config.update("jax_platforms", "cpu")
from jax.sharding import Mesh
from train.run.preemption import Preemption, ends_at_once

moment = sys.argv[1]
with ends_at_once():
    with Preemption(Mesh(jax.devices(), ("data",))) as preemption:
        if moment != "before a step":
            preemption.step_taken()
        print("ready", flush=True)
        if moment == "after the last check":
            time.sleep(2)
        for step in range(10_000 * (moment != "after the last check")):
            if moment != "twice":
                preemption.check()
            time.sleep(600 if moment == "before a step" else 0.01)
    print("trained", flush=True)
"""


def _ended(moment, signals, number=signal.SIGTERM):
    """Exit status and stderr of a process that is given a signal for each delay of `signals`, in seconds."""
    command = [sys.executable, "-c", PROGRAM, moment]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        for delay in signals:
            time.sleep(delay)
            process.send_signal(number)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "trained" not in out
    return process.returncode, error


ENDED = "SIGTERM: ended. Start it again to go on where its last checkpoint is.\n"


@pytest.mark.parametrize(
    ("moment", "signals", "said"),
    [
        ("before a step", [0.1], ENDED),  # in a compiler, say: the main thread does not answer
        ("between steps", [0.1], "SIGTERM: a checkpoint at the next step, then the end; again: the end at once\n"),
        ("twice", [0.1, 0.5], f"again: the end at once\n{ENDED}"),
        ("after the last check", [0.1], "a checkpoint at the next step"),
    ],
)
def test_sigterm_ends_with_status_143(moment, signals, said):
    status, error = _ended(moment, signals)
    assert status == 143
    assert said in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_key_of_a_terminal_and_its_end_do_the_same(number):
    status, error = _ended("between steps", [0.1], number)
    assert status == 143
    assert "a checkpoint at the next step" in error


OF_TWO = """
import sys, time, jax
jax.config.update("jax_platforms", "cpu")
from jax.sharding import Mesh
from train.run.preemption import Preempted, Preemption
from train.run.watchdog import Watchdog

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with Watchdog(float(sys.argv[3])) as watchdog, Preemption(Mesh(jax.devices(), ("data",))) as preemption:
    try:
        for step in range(10_000):
            watchdog.beat(f"step {step}")
            preemption.check()
            if step == 5:
                preemption.step_taken()
                watchdog.compiled()
                print("ready", flush=True)
            time.sleep(0.01)
    except Preempted:
        print(step, flush=True)
        raise
"""


def _two(hang_seconds):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-c", OF_TWO, address, str(host), hang_seconds] for host in (0, 1)]
    processes = [subprocess.Popen(command, cwd=ROOT, **piped) for command in commands]
    for process in processes:
        while (line := process.stdout.readline()) != "ready\n":
            assert line, process.communicate()
    return processes


def test_sigterm_on_one_of_two_hosts_ends_both_at_the_same_step():
    processes = _two("300")
    processes[1].send_signal(signal.SIGTERM)
    steps = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert steps[0] == steps[1] and int(steps[0]) > 5


def test_a_host_that_stops_is_noticed_by_the_other():
    processes = _two("5")
    processes[1].send_signal(signal.SIGSTOP)
    try:
        _, error = processes[0].communicate(timeout=120)
    finally:
        processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 1
    assert "has taken over 5 s (hang_seconds); where each thread is:" in error
    assert "in check" in error
