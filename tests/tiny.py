"""A run that takes seconds, for tests of whole processes: `python -m train run tests/tiny.py`."""

from dataclasses import replace

from configs import digits
from tests.tiny_network import SMALLEST, add_smallest
from train.config import Experiment
from vcreg_jax import Sites, VCReg

add_smallest()


def get_config() -> Experiment:
    """Twelve steps on digits, logged one by one, evaluated at every fourth and saved at every sixth."""
    train = digits.get_config().train
    optimizer = replace(train.optimizer, schedule=replace(train.optimizer.schedule, warmup_steps=2))
    model = replace(train.model, name=SMALLEST, stochastic_depth=0.3)
    every = {"log_every": 1, "eval_every": 4, "save_every": 6}
    train = replace(train, model=model, optimizer=optimizer, steps=12, batch_size=32, hang_seconds=300.0, **every)
    return Experiment("tiny", "tiny", train, {"VCReg": Sites(block=VCReg())}, seeds=(0,))
