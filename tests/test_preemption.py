"""Real signals to real processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys, time, jax
jax.config.update("jax_platforms", "cpu")
from jax.sharding import Mesh
from train.preemption import Preemption, ends_at_once

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


def _ended(moment, signals):
    """Exit status and stderr of a process that is given a signal for each delay of `signals`, in seconds."""
    command = [sys.executable, "-c", PROGRAM, moment]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        for delay in signals:
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "trained" not in out
    return process.returncode, error


@pytest.mark.parametrize(
    ("moment", "signals", "said"),
    [
        ("before a step", [0.1], "SIGTERM: ended\n"),  # in a compiler, say: the main thread does not answer
        ("between steps", [0.1], "SIGTERM: a checkpoint at the next step, then the end; again: the end at once\n"),
        ("twice", [0.1, 0.5], "again: the end at once\nSIGTERM: ended\n"),
        ("after the last check", [0.1], "a checkpoint at the next step"),
    ],
)
def test_sigterm_ends_with_status_143(moment, signals, said):
    status, error = _ended(moment, signals)
    assert status == 143
    assert said in error
