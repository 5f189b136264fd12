"""The types of which experiments are made: every field has its unit, and its only default, here.

A field that is added later gets an empty default (None, 0, False, ""), which keeps what was before. So run folders of
earlier versions go on: `train.run.folder.differences`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from train.augment import AugmentConfig, EvalTransformConfig, MixConfig
from vcreg_jax import Sites, identity
from vcreg_jax.losses import BarlowTwins, NTXent, VICReg


def _check(config: Any, **ranges: tuple[float, float]) -> None:
    """Raises a ValueError for a number of `config` that is outside of its range, the ends included; None is none."""
    for name, (low, high) in ranges.items():
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None and not low <= value <= high:  # nor is NaN
                wanted = f"at least {low:g}" if high in (_MOST, math.inf) else f"in {low:g}..{high:g}"
                raise ValueError(f"{type(config).__name__}.{name} must be {wanted}, got {value}.")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raises a ValueError for a seed that is none, or there twice: it would count as two runs."""
    for seed in seeds:
        if not _SEED[0] <= seed <= _SEED[1]:
            raise ValueError(f"A seed must lie in 0..{_SEED[1]}, got {seed}.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"Seeds must differ, got {', '.join(map(str, seeds))}.")


_SEED = (0, 2**32 - 1)
_LEAST, _MOST = 5e-324, 1.7976931348623157e308  # the smallest positive float and the largest: what is finite
_SHARE, _POSITIVE, _NOT_NEGATIVE, _COUNT = (0.0, 1.0), (_LEAST, _MOST), (0.0, _MOST), (1, math.inf)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and which of their labels to train on."""

    name: str  # of a data set prepared under `directory`, of a part of one (`train.data.views`), or "synthetic"
    label: str  # the record's field that is the target
    mean: tuple[float, ...]  # of each channel, of pixels in 0..1
    std: tuple[float, ...]
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of training images
    evaluation: EvalTransformConfig = field(default_factory=EvalTransformConfig)  # and of all where nothing is cropped
    repeats: int = 1  # times that an epoch takes an image in a row; it has as many examples, so as many fewer images
    second_view: AugmentConfig | None = None  # of each training image another one, so changed: for losses of two views
    channels: Literal[1, 3] | None = None  # None: as stored
    long_tail: float | None = None  # most over fewest training images of a class; `train.data.views`
    train_split: str = "train"  # TFDS's names, parts such as "train[:90%]" among them
    validation_split: str = "validation"
    test_split: str = "test"
    allow_missing_classes: bool = False  # a split may have no image of a class that another has
    bad_images: Literal["raise", "skip", "convert"] = "convert"  # `train.data.images.Policy`
    directory: str = "runs/data"  # where prepared data sets lie
    in_memory: bool = False  # small images: decode once, then make whole batches at a time
    reader_threads: int = 2  # that read and decode records, in each process
    reader_processes: int = 0  # beside this one; 0: threads alone
    synthetic_size: int = 224  # pixels along a side of the images of "synthetic", which are cut and not augmented
    synthetic_classes: int = 1000
    synthetic_images: int = 1_281_167

    def __post_init__(self):
        _check(self, std=(_LEAST, 1.0), mean=_SHARE, repeats=_COUNT, long_tail=(1.0, _MOST))
        _check(self, reader_threads=(0, 1024), reader_processes=(0, 1024), synthetic_size=_COUNT)
        _check(self, synthetic_classes=_COUNT, synthetic_images=_COUNT)


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: str  # one of `vc.models.names()`
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    stochastic_depth: float = 0.0  # drop rate of the last block, linear from 0 at the first
    norm_scope: Literal["global"] | int = "global"  # whose statistics batch norms take, the batch's or k groups'
    zero_init_residual: bool = False  # each block of a ResNet starts as its shortcut: the scale of its last norm is 0
    image_size: int | None = None  # side of the images, for ViTs and MLPs, which are made for one size; None: their own
    # Widths of layers with batch norm and ReLU between features and classifier, for training alone: features are those
    # before. None: none.
    projector: tuple[int, ...] | None = None

    def __post_init__(self):
        _check(self, stochastic_depth=_SHARE, projector=_COUNT, image_size=_COUNT)


@dataclass(frozen=True)
class Cosine:
    """Linear from `warmup_start` times the peak over the warm-up, then half a cosine down to `end` times the peak."""

    peak_learning_rate: float
    warmup_steps: int
    warmup_start: float = 0.0  # share of the peak at step 0
    hold_steps: int = 1  # between changes of the rate: an epoch's where a recipe changes it once per epoch
    end: float = 0.0  # share of the peak at the last step

    def __post_init__(self):
        _check(self, peak_learning_rate=_NOT_NEGATIVE, warmup_steps=(0, math.inf), warmup_start=_SHARE)
        _check(self, hold_steps=_COUNT, end=_SHARE)


@dataclass(frozen=True)
class StepDecay:
    """The peak, multiplied by `factor` after every `every_steps`."""

    peak_learning_rate: float
    every_steps: int
    factor: float = 0.1

    def __post_init__(self):
        _check(self, peak_learning_rate=_NOT_NEGATIVE, every_steps=_COUNT, factor=_SHARE)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    weight_decay: float
    decay_norms: bool = False  # the parameters of normalization layers too
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        _check(self, weight_decay=_NOT_NEGATIVE, b1=(0.0, 1 - 1e-12), b2=(0.0, 1 - 1e-12))


@dataclass(frozen=True)
class SGD:
    """Momentum without dampening; weight decay is added to every parameter's gradient, as PyTorch does."""

    weight_decay: float
    momentum: float = 0.9

    def __post_init__(self):
        _check(self, weight_decay=_NOT_NEGATIVE, momentum=_SHARE)


@dataclass(frozen=True)
class LARS:
    """Momentum SGD with every layer's gradient scaled to its weights; biases and norms are plain momentum SGD."""

    weight_decay: float
    momentum: float = 0.9
    trust_coefficient: float = 1e-3
    bias_rate: float | None = None  # of biases and norms, as a share of the learning rate; None: the same rate

    def __post_init__(self):
        _check(self, weight_decay=_NOT_NEGATIVE, momentum=_SHARE, trust_coefficient=_POSITIVE, bias_rate=_POSITIVE)


@dataclass(frozen=True)
class OptimizerConfig:
    """An update rule under a schedule of the learning rate."""

    rule: AdamW | SGD | LARS
    schedule: Cosine | StepDecay
    clip_norm: float | None = None  # largest norm of all gradients together

    def __post_init__(self):
        _check(self, clip_norm=_POSITIVE)


@dataclass(frozen=True)
class EMAConfig:
    """An exponential moving average of parameters and batch statistics, used in place of the last ones."""

    decay: float  # of one update; `train.trainer.ema.adjusted_decay` gives torchvision's
    steps_per_epoch: int  # updates are counted from the start of every epoch
    every_steps: int = 32  # between updates
    copy_steps: int = 0  # up to this step an update is a plain copy: the warm-up's

    def __post_init__(self):
        _check(self, decay=_SHARE, steps_per_epoch=_COUNT, every_steps=_COUNT, copy_steps=(0, math.inf))


@dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis. The batch is split over both; parameters over `fsdp`."""

    data: int = -1  # -1: all devices that `fsdp` leaves
    fsdp: int = 1

    def __post_init__(self):
        _check(self, data=(-1, math.inf), fsdp=_COUNT)
        if self.data == 0:
            raise ValueError("MeshConfig.data must be at least 1, or -1 for all devices, got 0.")


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept, and what becomes of a run that cannot write one."""

    keep_newest: int = 2  # of which one may turn out to be damaged
    keep_best: int = 1  # by validation accuracy or `tested_by`, of the steps that are evaluated and saved
    on_save_error: Literal["continue", "stop"] = "continue"  # with a warning in metrics.jsonl, too

    def __post_init__(self):
        if self.keep_newest < 1 or self.keep_best < 0:
            raise ValueError(
                f"Needed: keep_newest >= 1 and keep_best >= 0, got {self.keep_newest} and {self.keep_best}."
            )


@dataclass(frozen=True)
class JointEmbedding:
    """Learning without labels: two views of each image, a projector of their features, and a loss of the embeddings.

    `DataConfig.augment` and `second_view` say how the views differ.
    """

    loss: NTXent | VICReg | BarlowTwins
    projector: tuple[int, ...]  # widths of its layers, the last the embedding's
    norm_last: bool = True  # a batch norm after the last layer, too
    views_together: bool = True  # in one batch, of which norms and regularizers take statistics: SimCLR; or one by one


@dataclass(frozen=True)
class GuardConfig:
    """When an update is not taken: always if the loss or a gradient is not finite; then parameters, batch statistics,
    optimizer and moving average stay as they are, and the step counts."""

    stop_after: int = 10  # such updates in a row, with an error that names the first bad layer
    spike_sigmas: float | None = None  # nor if the loss or the gradient norm is so many deviations above its mean
    spike_window: int = 128  # steps over which mean and deviation are taken

    def __post_init__(self):
        if self.stop_after < 1 or self.spike_window < 4 or (self.spike_sigmas is not None and self.spike_sigmas <= 0):
            raise ValueError(f"Needed: stop_after >= 1, spike_window >= 4 and spike_sigmas > 0, got {self}.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    steps: int
    batch_size: int  # images a step, over all devices of all hosts
    label_smoothing: float = 0.0
    mix: MixConfig = field(default_factory=MixConfig)
    joint_embedding: JointEmbedding | None = None  # in place of the label's cross-entropy
    ema: EMAConfig | None = None
    initial_weights: str = ""  # a PyTorch or safetensors file, or a run's arm and seed; none: the seed draws them
    initial_head: bool = False  # of these the classifier's too, not drawn by the seed
    eval_every: int = 100  # steps
    save_every: int = 500  # steps
    log_every: int = 10  # steps
    monitor_images: int = 0  # training images whose features are probed at every evaluation
    # Of the checkpoints that are evaluated, the one with the most of this is tested; RankMe needs no label, and
    # monitor_images > 0. None: the last step is.
    tested_by: Literal["accuracy", "rankme"] | None = None
    diagnose_every: int = 0  # steps between looks into every layer, beside step 1; 0: never
    tensorboard: bool = False  # event files beside metrics.jsonl; needs the extra `tensorboard`
    hang_seconds: float = 600.0  # for a step, a batch or a checkpoint, then the run ends; ten times as long to compile
    checkpoints: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        _check(self, steps=_COUNT, batch_size=_COUNT, label_smoothing=_SHARE, monitor_images=(0, math.inf))
        _check(self, eval_every=_COUNT, save_every=_COUNT, log_every=_COUNT, diagnose_every=(0, math.inf))
        _check(self, hang_seconds=_POSITIVE)


@dataclass(frozen=True)
class ProbeConfig:
    """The linear probe on frozen features: L2-regularized logistic regression, strength chosen on validation."""

    label: str  # the record's field that is the target
    protocol: str = "VCReg, Appendix C.1"  # its name, which is shown with every result
    l2_low: float = 1e-5  # the paper's grid, Appendix C.1
    l2_high: float = 1e5
    l2_count: int = 45
    metric: Literal["top1", "mean_per_class"] = "top1"
    standardize: bool = False  # features to zero mean and unit variance first
    tolerance: float = 1e-4  # of the gradient's norm; see `vcreg_jax.probes.linear.fit`
    max_iterations: int = 2000
    warm_start: bool = True  # along the strengths

    def __post_init__(self):
        _check(self, l2_low=_POSITIVE, l2_high=_POSITIVE, l2_count=_COUNT, tolerance=_POSITIVE, max_iterations=_COUNT)


@dataclass(frozen=True)
class GradientProbeConfig:
    """The linear probe by gradient steps, for sets too large for L-BFGS; learning rate chosen on validation."""

    label: str  # the record's field that is the target
    rule: AdamW | SGD
    learning_rates: tuple[float, ...]  # peaks, all trained at once
    epochs: int
    protocol: str  # its name, which is shown with every result
    batch_size: int = 256
    drops: int | None = None  # to a tenth, equally spaced; None: half a cosine down to 0
    metric: Literal["top1", "mean_per_class"] = "top1"
    standardize: bool = False  # features to zero mean and unit variance first
    seed: int = 0  # of the order of the images

    def __post_init__(self):
        _check(self, learning_rates=_POSITIVE, epochs=_COUNT, batch_size=_COUNT, drops=(0, math.inf), seed=_SEED)


@dataclass(frozen=True)
class NearestNeighborsConfig:
    """The vote of the nearest training rows by cosine, weighted by exp(cosine / temperature); nothing is chosen."""

    label: str  # the record's field that is the target
    neighbours: int = 20
    temperature: float = 0.07
    protocol: str = "20 nearest neighbours"  # its name, which is shown with every result

    def __post_init__(self):
        _check(self, neighbours=_COUNT, temperature=_POSITIVE)


@dataclass(frozen=True)
class Target:
    """A data set that frozen features are probed on."""

    probe: ProbeConfig | GradientProbeConfig | NearestNeighborsConfig
    data: DataConfig | None = None  # None: what the network was trained on
    held_out: float | int | None = None  # training images that validate: a share, or so many a class; None: a split
    images: tuple[int, int, int] | None = None  # to train, validate and test, as the protocol has them; None: any


@dataclass(frozen=True)
class Candidate:
    """One point of an arm's search."""

    sites: Sites = field(default_factory=Sites)
    weight_decay: float | None = None  # None: the recipe's
    peak_learning_rate: float | None = None  # None: the recipe's
    projector: tuple[int, ...] | None = None  # None: the recipe's
    given: str = ""  # weights with their classifier, as `initial_weights`: probed as they are, without a training step

    def __post_init__(self):
        _check(self, weight_decay=_NOT_NEGATIVE, peak_learning_rate=_NOT_NEGATIVE)


@dataclass(frozen=True)
class Experiment:
    """Train under every arm with every seed, test, and probe the frozen features on every target.

    The first arm is what the others are compared with. An arm says where which regularizer is applied, or it lists
    candidates, of which one goes on: the one whose probes, with the tuning seed, are best on the targets' validation
    images, on average over targets. All arms that list candidates must list as many.
    """

    name: str  # of the folder under `runs_directory`
    title: str  # of the report
    train: TrainConfig  # what all runs share
    arms: Mapping[str, Sites | tuple[Candidate, ...]]
    targets: dict[str, Target] = field(default_factory=dict)  # none: only the networks' own accuracies are compared
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int | None = None  # with which candidates are tried
    runs_directory: str = "runs"
    # The paper's results in %, by arm and target; of the label that the networks are trained on under "pretraining".
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences for the report

    def __post_init__(self):
        check_seeds(self.seeds if self.tuning_seed is None else (*self.seeds, self.tuning_seed))
        for arm, own in self.arms.items():
            tried = [own] if isinstance(own, Sites) else [candidate.sites for candidate in own]
            if len({sites.map(lambda _, reg: identity) for sites in tried}) > 1:
                raise ValueError(f"The candidates of {arm!r} must remove means at the same sites: make them two arms.")


def Pretraining(  # noqa: N802 - the name of a class that there was
    name: str,
    train: TrainConfig,
    arms: Mapping[str, Sites],
    seeds: tuple[int, ...] = (0,),
    runs_directory: str = "runs",
) -> Experiment:
    """Return an experiment without targets, under the name by which configs of earlier versions ask for one."""
    return Experiment(name, name, train, arms, seeds=seeds, runs_directory=runs_directory)
