"""kill -9 at 20 random moments of an asynchronous save, against the run without.

python -m tests.faults.kill_during_save FOLDER
"""

import collections
import contextlib
import random
import signal
import sys
import time
from pathlib import Path

from tests.faults.victim import Victim, check_equal, fresh, wait_for

TRIALS = 20
LONGEST = 0.5  # seconds from the first sign of a save to the kill; a save takes 0.1 or, on a busy machine, more


def main(folder: Path) -> None:
    """Prints a line for each kill and, at the end, what was compared; fails if anything differs."""
    draw = random.Random(0)
    options = ("--train.steps", "600")  # a save every 10; a kill lets up to a handful go by
    straight, killed = Victim(fresh(folder / "unkilled"), *options), Victim(fresh(folder / "killed"), *options)
    assert straight.finish() == 0, straight.said()
    moments = collections.Counter()
    for trial in range(1, TRIALS + 1):
        before, known, process = killed.saved(), _unfinished(killed), killed.start()
        for _ in range(draw.randint(1, 3)):
            assert wait_for(lambda known=known: _unfinished(killed) - known, process, 0.0005), killed.said()
            known |= _unfinished(killed)
        time.sleep(draw.uniform(0, LONGEST))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        within = bool(_unfinished(killed))
        moments["within the save" if within else "after its end"] += 1
        print(f"kill {trial}: {'within' if within else 'after'} a save; whole {before} -> {killed.saved()}", flush=True)
    assert killed.finish() == 0, killed.said()
    assert "Set aside" not in killed.said()
    print(f"{TRIALS} kills, {dict(moments)}: {check_equal(killed, straight)}")


def _unfinished(victim: Victim) -> set[tuple[str, int]]:
    """The saves that are not whole, each with what tells it from an earlier one of the same step."""
    found = set()
    for path in victim.checkpoints.iterdir() if victim.checkpoints.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # whole by now
            found |= {(path.name, path.stat().st_ino)} if "tmp" in path.name else set()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
