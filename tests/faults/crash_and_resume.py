"""1,000 steps of the digits run with kill -9 every 50 steps or so, against the run without.

python -m tests.faults.crash_and_resume FOLDER
"""

import random
import signal
import sys
from pathlib import Path

from tests.faults.victim import Victim, check_equal, fresh, wait_for

STEPS, EVERY = 1000, 50


def main(folder: Path) -> None:
    """Prints a line for each crash and, at the end, what was compared; fails if anything differs."""
    draw = random.Random(0)
    options = ("--train.steps", str(STEPS))
    straight, crashed = Victim(fresh(folder / "straight"), *options), Victim(fresh(folder / "crashed"), *options)
    assert straight.finish() == 0, straight.said()
    crashes = 0
    while True:
        at = crashed.step() + draw.randint(EVERY // 2, EVERY * 3 // 2)
        process = crashed.start()
        if not wait_for(lambda at=at: crashed.step() >= at, process):
            assert process.returncode == 0, crashed.said()
            break
        process.kill()
        assert process.wait() == -signal.SIGKILL
        crashes += 1
        print(f"crash {crashes}: after step {crashed.step()}, checkpoints {crashed.saved()}", flush=True)
    print(f"{crashes} crashes in {STEPS} steps: {check_equal(crashed, straight)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
