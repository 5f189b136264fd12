"""kill -9 at 20 random moments of an asynchronous save, against the run without.

python -m tests.faults.kill_during_save FOLDER
"""

import collections
import random
import signal
import sys
import time
from pathlib import Path

from tests.faults.victim import Victim, check_equal, fresh, wait_for

TRIALS = 20
LONGEST = 0.15  # seconds from the first sign of a save to the kill; a save takes about 0.1


def main(folder: Path) -> None:
    """Prints a line for each kill and, at the end, what was compared; fails if anything differs."""
    draw = random.Random(0)
    straight, killed = Victim(fresh(folder / "unkilled")), Victim(fresh(folder / "killed"))
    assert straight.finish() == 0, straight.said()
    moments = collections.Counter()
    for trial in range(1, TRIALS + 1):
        before, process = killed.saved(), killed.start()
        assert wait_for(lambda: _unfinished(killed), process, 0.0005), killed.said()
        time.sleep(draw.uniform(0, LONGEST))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        left = _unfinished(killed)
        moment = "within the save" if left else "after its end"
        moments[moment] += 1
        print(f"kill {trial}: {moment}; whole {before} -> {killed.saved()}, left over {left}", flush=True)
    assert killed.finish() == 0, killed.said()
    assert "Set aside" not in killed.said()
    print(f"{TRIALS} kills, {dict(moments)}: {check_equal(killed, straight)}")


def _unfinished(victim: Victim) -> list[str]:
    names = victim.checkpoints.iterdir() if victim.checkpoints.exists() else ()
    return [path.name for path in names if "tmp" in path.name]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
