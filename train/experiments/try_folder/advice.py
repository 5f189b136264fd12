"""What to try after a first comparison: only what the numbers and the measured maps of strengths support."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train import config_file
from train.data import pipeline
from train.files import json_files


@dataclass(frozen=True)
class Outcome:
    """What came out of a run, in percent and points."""

    name: str  # of the run
    none: float  # the probe's accuracy without VCReg, mean over seeds
    difference: float  # with VCReg less without
    error: float  # of the difference, paired by seeds; NaN of one seed
    test_images: int
    classes: int  # that the network was trained to tell apart
    epochs: float
    loss: float  # of training, at the end, without VCReg


def read_outcome(path: Path) -> Outcome:
    """What the finished run of the config at `path` found."""
    config = config_file.load(path)
    folder, (none, vcreg) = Path(config.runs_directory) / config.name, config.arms
    paths = {arm: [folder / arm / f"seed{seed}" / "result.json" for seed in config.seeds] for arm in (none, vcreg)}
    (target,) = config.targets
    results = {arm: [json_files.read(path)["targets"][target] for path in own] for arm, own in paths.items()}
    accuracies = {arm: [100 * each["accuracy"] for each in own] for arm, own in results.items()}
    apart = [after - before for before, after in zip(accuracies[none], accuracies[vcreg], strict=True)]
    logged = map(json.loads, (folder / none / f"seed{config.seeds[0]}" / "metrics.jsonl").read_text().splitlines())
    train = pipeline.load(config.train.data, "train")
    return Outcome(
        name=config.name,
        none=statistics.mean(accuracies[none]),
        difference=statistics.mean(apart),
        error=statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan,
        test_images=len(pipeline.load(config.train.data, "test")),
        classes=train.num_classes,
        epochs=config.train.steps * config.train.batch_size / len(train),
        loss=[line["loss"] for line in logged if line["split"] == "train"][-1],
    )


def suggest(found: Outcome) -> list[str]:
    """One line each, the most useful first."""
    run = f"python -m train run {found.name} --name {found.name}"
    weaker = f"{run}_weaker --arms.VCReg.block.alpha 0.32 --arms.VCReg.block.beta 0.04"
    stronger = f"{run}_stronger --arms.VCReg.block.beta 1"
    more_seeds = f"{run}_seeds --seeds {' '.join(map(str, range(10)))}"
    points = f"{abs(found.difference):.1f} ± {found.error:.1f} points"
    certain = abs(found.difference) > 2 * found.error
    if certain and found.difference < 0:
        lines = [f"VCReg lost {points}: try half of alpha and beta. {weaker}"]
    elif certain:
        lines = [f"VCReg gained {points}: see whether a stronger beta gains more. {stronger}"]
        lines += [f"Confirm it with more seeds. {more_seeds}"]
    else:
        lines = [f"No difference that these seeds can show ({points}): try beta 1, then 10. {stronger}"]
        lines += [f"More seeds tell smaller differences apart. {more_seeds}"]
    if found.loss > 0.5 * math.log(found.classes) or found.epochs < 5:
        lines.append(
            f"The networks have learned little (training loss {found.loss:.2f} after {found.epochs:.1f} epochs): train "
            f"longer before you judge. python -m train try {found.name} --name {found.name}_long --minutes N"
        )
    share = (found.none / 100 * found.test_images + 2) / (found.test_images + 4)  # Agresti and Coull: 8 of 8 is not 1
    spread = 100 * math.sqrt(share * (1 - share) / (found.test_images + 4))
    if spread > 2:
        lines.append(
            f"{found.test_images:,} test images leave each accuracy uncertain by {spread:.1f} points: use more images."
        )
    return lines


def format_list(lines: Sequence[str]) -> str:
    """The lines as a list."""
    return "\n".join(["What to try next:", *(f"  - {line}" for line in lines)])
