"""The config as a file: a lab note that says of every choice why it was made, and that runs by itself."""

import math
from pathlib import Path

from train.experiments.try_folder.choices import ARMS, SEEDS, Choice
from train.experiments.try_folder.images import Facts

MARK = "Written by `python -m train try`"  # by which such a file is known


def format_note(
    name: str,
    facts: Facts,
    choice: Choice,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    minutes: float,
    hardware: str,
) -> str:
    """The file `configs/<name>.py`."""
    splits = [
        format_part(split, used, there)
        for split, used, there in zip(facts.splits, choice.counts, facts.counts, strict=True)
    ]
    shift = max(1, choice.side // 8)
    transfer = facts.label != facts.probe_label
    title = f"{facts.name}: trained on {facts.label}, probed on {facts.probe_label}" if transfer else f"{facts.name}"
    task = (
        f"Trained on {facts.classes:,} classes of `{facts.label}`, then probed on {facts.probe_classes:,} of "
        f"`{facts.probe_label}`, each of which\nbelongs to one of those: what does the network keep that it was not "
        "asked for?"
        if transfer
        else f"Trained on its {facts.classes:,} classes, then probed on the same."
    )
    augment = (
        f"AugmentConfig(max_shift={shift})"
        if choice.in_memory
        else f"AugmentConfig(crop_size={choice.side}, crop_scale=(0.35, 1.0))"
    )
    augment_reason = (
        "By up to an eighth of the side." if choice.in_memory else "A random part of a third of the image or more."
    )
    memory = "decoded once" if choice.in_memory else "more than fits: decoded anew in each epoch"
    runs = ARMS * len(SEEDS)
    of_splits = ", ".join(f"{used:,}" for used in choice.counts)
    fewer = ""
    if choice.counts != facts.counts:
        fewer = f"\nOf {', '.join(f'{n:,}' for n in facts.counts)} images: more do not fit into the time."
    long_side = f", the longer up to {facts.longest_ratio:.1f} times it" if facts.longest_ratio > 1.05 else ""
    same = "The finer label." if transfer else "The same label: what a linear classifier makes of the frozen features."
    return f'''"""{title}. Does VCReg help? {MARK}.

Paper  not in it
Ours   not run when this was written: runs/{name}/report.html has what came out
Run    python -m train run {name} [--train.steps {2 * choice.steps}] [--seeds 3 4 5 --name {name}_more]
Cost   {minutes:g} minutes were asked for; a step took {_seconds(choice.step_seconds)} on {hardware}

{task}
{of_splits} images to train, validate and test; the rarest class has {facts.fewest:,} to train on.{fewer}
Images: {"grey" if facts.channels == 1 else "colour"}, the shorter side {facts.shorter_side} pixels (median){long_side}.
"""

from train.augment import AugmentConfig, EvalTransformConfig
from train.config import (
    AdamW,
    Cosine,
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    Target,
    TrainConfig,
)
from vcreg_jax import Sites, VCReg


def get_config() -> Experiment:
    """No regularizer against VCReg at the output of every block, {len(SEEDS)} seeds each."""
    data = DataConfig(
        name="{facts.name}",
        label="{facts.label}",
        mean={mean},  # measured on training images
        std={std},
        # The shorter side becomes {choice.side} pixels, and the square in the centre stays: what fits into the time
        # with {choice.epochs:.0f} epochs.
        evaluation=EvalTransformConfig(resize={choice.side}, crop={choice.side}),
        # {augment_reason} No flips: they turn a left arrow into a right one. Where a
        # mirror image is as good set flip=0.5.
        augment={augment},
        channels={facts.channels},
        train_split="{splits[0]}",
        validation_split="{splits[1]}",
        test_split="{splits[2]}",
        directory="{facts.directory}",
        in_memory={choice.in_memory},  # {memory}
    )
    return Experiment(
        name="{name}",
        title="{title}, with and without VCReg",
        train=TrainConfig(
            data=data,
            model=ModelConfig("{choice.network}", dtype="{choice.dtype}"),  # {_network_reason(choice)}
            optimizer=OptimizerConfig(
                AdamW(weight_decay=0.05),  # as the small experiments here have it
                Cosine({choice.learning_rate:g}, warmup_steps={max(1, choice.steps // 10)}),  # a tenth to warm up
            ),
            steps={choice.steps},  # {choice.epochs:.1f} epochs: what {minutes:g} minutes leave to each of {runs} runs
            batch_size={choice.batch_size},  # {_batch_reason(choice)}
            eval_every={choice.steps},  # at the end alone: validation images choose the probe's strength, not the step
            save_every={choice.steps},
            log_every={max(1, choice.steps // 20)},
            hang_seconds=1800.0,
        ),
        arms={{
            "none": Sites(),
            # docs/choosing.md: the mild default at every block. Stronger helped some data sets and ruined others.
            "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08)),
        }},
        # {same}
        # In small: 15 strengths in place of the paper's 45, in a part of its range.
        targets={{
            "{facts.probe_label}": Target(
                ProbeConfig(
                    "{facts.probe_label}",
                    "in small",
                    l2_low=1e-3,
                    l2_high=1e4,
                    l2_count=15,
                    tolerance=1e-3,
                    max_iterations=300,
                )
            )
        }},
        seeds={SEEDS},
    )
'''


def format_part(split: str, used: int, there: int) -> str:
    """The first `used` images of a split, where it can be said; of a part at the end of a split all."""
    if used == there or ("[" in split and not split.startswith("train[:")):
        return split
    return f"{split.partition('[')[0]}[:{used}]"


def find_place(name: str, configs: Path = Path("configs")) -> Path:
    """Where the note goes.

    Raises:
      ValueError: where a file is already.
    """
    path = configs / f"{name}.py"
    if path.exists():
        raise ValueError(
            f"{path} is there already: python -m train run {name} runs it, or goes on with it. To start anew delete "
            "it, or give another --name."
        )
    return path


def _network_reason(choice: Choice) -> str:
    if choice.dtype == "float32":
        return "small enough for a CPU"
    return "for small images" if choice.network.startswith("resnet20") else "for photographs"


def _batch_reason(choice: Choice) -> str:
    if choice.batch_size in (128, 512):
        return "VCReg's statistics want large ones"
    return "at least eight batches an epoch"


def _seconds(seconds: float) -> str:
    return f"{seconds:.{max(0, 1 - math.floor(math.log10(max(seconds, 1e-6))))}f} s"
