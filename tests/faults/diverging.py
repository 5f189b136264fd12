"""A run whose learning rate is far too large: it stops in one line that names the layer, with its last good weights.

python -m tests.faults.diverging FOLDER
"""

import json
import sys
from pathlib import Path

from tests.faults.victim import Victim, fresh


def main(folder: Path) -> None:
    """Prints the line that the run ended with."""
    victim = Victim(fresh(folder / "diverging"), "--train.optimizer.schedule.peak-learning-rate", "1e30")
    status = victim.finish()
    (line,) = [line for line in victim.said().splitlines() if line.startswith("error: ")]
    assert status == 1 and "updates in a row were not finite" in line, victim.said()
    (details,) = victim.folder.rglob("nonfinite.json")
    found = json.loads(details.read_text())
    skipped = [record["skipped"] for record in victim.lines() if record["split"] == "train"]
    print(
        f"exit status {status}; {line}\n{details.name}: step {found['step']}, {len(found['outputs'])} layers in order"
    )
    print(f"updates skipped by step: {skipped}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
