"""What becomes of a run when nobody can hear it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, pathlib
from train.run.log import Bar, outliving_its_readers
with outliving_its_readers():
    with Bar("a run", 1000, 0) as bar:
        for step in range(1000):
            print("a line that is long enough to fill buffers soon", step, flush=step % 3 == 0)
            print("the same", file=sys.stderr)
            bar.line(step, "a warning")
            bar.update(step, "0.5")
pathlib.Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("where", ["full disk", "closed pipe"])
def test_a_full_disk_or_a_closed_pipe_under_stdout_and_stderr_ends_no_run(tmp_path, where):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "done")]
    if where == "full disk":
        with open("/dev/full", "w") as full:
            process = subprocess.run(command, cwd=ROOT, stdout=full, stderr=full, timeout=60)
    else:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        process.stdout.close()
        process.wait(60)
    assert process.returncode == 0
    assert (tmp_path / "done").exists()
