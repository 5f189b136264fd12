"""A disk that is really full, a tmpfs, while a run saves and logs; needs the right to mount one.

python -m tests.faults.full_disk FOLDER
"""

import subprocess
import sys
from pathlib import Path

from tests.faults.victim import STEPS, Victim, check_equal, fresh, wait_for

MEGABYTES = 24


def main(folder: Path) -> None:
    """Prints what happened; fails if a step is lost or the run ends with other bits than one with room."""
    straight = Victim(fresh(folder / "with_room"))
    assert straight.finish() == 0, straight.said()
    for on_save_error in ("continue", "stop"):
        disk = fresh(folder / f"disk_{on_save_error}")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)], check=True)
        try:
            victim = Victim(disk, "--train.checkpoints.on-save-error", on_save_error)
            process, ballast = victim.start(), disk / "ballast"
            assert wait_for(lambda v=victim: v.step() >= 60, process), victim.said()
            _fill(ballast)
            full_at, saved = victim.step(), victim.saved()
            if on_save_error == "stop":
                status = process.wait()
                (line,) = [line for line in victim.said().splitlines() if line.startswith("error: ")]
                assert status == 2 and "could not be saved" in line and "No space left" in line, victim.said()
                assert saved[-1] in victim.saved()
                print(f"stop: full at step {full_at}, exit status {status}, checkpoints {victim.saved()}; {line[:160]}")
                ballast.unlink()
                assert victim.finish() == 0, victim.said()
            else:
                assert wait_for(lambda v=victim: v.said().count("could not be saved") >= 3, process), victim.said()
                assert saved[-1] in victim.saved(), "an older checkpoint is gone"
                ballast.unlink()
                assert process.wait() == 0, victim.said()
                warnings = [line for line in victim.lines() if line["split"] == "warning"]
                assert len(warnings) >= 3 and all("No space left" in line["message"] for line in warnings)
                print(f"continue: full at step {full_at}, {len(warnings)} saves failed, each a line in metrics.jsonl")
                print(f"  {warnings[0]['message'][:160]}")
            print(f"{on_save_error}: after {STEPS} steps {check_equal(victim, straight)}", flush=True)
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def _fill(ballast: Path) -> None:
    """Writes until nothing fits any more."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


if __name__ == "__main__":
    main(Path(sys.argv[1]))
