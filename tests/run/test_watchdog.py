import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, threading, time
from train.run.watchdog import Watchdog

def reading_from_a_reader_that_is_gone():
    threading.Event().wait()

with Watchdog(0.5) as watchdog:
    for step in range(20):
        watchdog.beat(f"step {step}")
        time.sleep(0.05)
    time.sleep(0.8)  # longer than it may last once all is compiled
    watchdog.compiled()
    print("went on", flush=True)
    if sys.argv[1] == "hang":
        watchdog.beat("reading a batch")
        reading_from_a_reader_that_is_gone()
time.sleep(1)
"""


def _run(what):
    return subprocess.run([sys.executable, "-c", PROGRAM, what], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_run_that_hangs_ends_with_status_one_and_says_where():
    command = [sys.executable, "-c", PROGRAM, "hang"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "went on\n"
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 0.3 < time.monotonic() - began < 2.0  # and not ten times as long, as before all was compiled
    first, *stacks = said.splitlines()
    assert first == "error: reading a batch has taken over 0.5 s (hang_seconds); where each thread is:"
    assert any("in reading_from_a_reader_that_is_gone" in line for line in stacks)


def test_a_run_that_goes_on_and_one_that_has_ended_are_left_alone():
    done = _run("end")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_a_process_that_was_stopped_for_longer_than_the_limit_goes_on_as_scontrol_suspend_has_it():
    program = PROGRAM.replace("time.sleep(1)\n", "").replace('print("went on", flush=True)', LONG)
    command = [sys.executable, "-c", program.replace("_LATE", "0"), "end"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "went on\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(7)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


LONG = """print("went on", flush=True)
    for step in range(100):
        watchdog.beat(f"step {step}")
        time.sleep(0.02)"""
