"""Linear probes by gradient steps against PyTorch's optimizers, each learning rate on its own."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from train.config import SGD, AdamW, GradientProbeConfig
from train.experiments import gradient_probe
from vcreg_jax.probes.linear import Split


class Rows(NamedTuple):
    """A split whose fields are NumPy's arrays."""

    features: np.ndarray
    labels: np.ndarray


def select(config, train, val):
    return gradient_probe.select(config, Split(*train), Split(*val), CLASSES)


CLASSES = 4
ADAMW = GradientProbeConfig(
    "label", AdamW(weight_decay=0.05), (0.016, 0.1), epochs=5, batch_size=32, protocol="subclass"
)
STEPS = GradientProbeConfig(
    "label", SGD(weight_decay=5e-4), (0.01, 0.3), epochs=6, batch_size=32, protocol="s", drops=2
)


def clusters(n, seed, d=9):
    labels = np.random.default_rng(seed + 50).integers(CLASSES, size=n)
    centres = np.random.default_rng(99).normal(size=(CLASSES, d))
    rows = centres[labels] + np.random.default_rng(seed).normal(size=(n, d)) + 1
    return Rows((rows * np.geomspace(2, 0.3, d)).astype(np.float32), labels)


def in_torch(config, train, rate):
    """The same training with torch's own optimizer and schedule, in float64."""
    n, d = train.features.shape
    layer = torch.nn.Linear(d, CLASSES).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    per_epoch = -(-n // config.batch_size)
    total = config.epochs * per_epoch
    if isinstance(config.rule, AdamW):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=config.rule.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=config.rule.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=total // (config.drops + 1))
    x, y = torch.from_numpy(train.features).double(), torch.from_numpy(train.labels)
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(n)
        order = np.concatenate([order, order])[: per_epoch * config.batch_size]
        for rows in order.reshape(per_epoch, -1):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return layer


@pytest.mark.parametrize("config", [ADAMW, STEPS], ids=["adamw", "sgd"])
def test_every_learning_rate_ends_where_torch_ends_with_it_alone(config, one_torch_thread):
    train, val, test = clusters(150, 0), clusters(80, 1), clusters(90, 2)
    found = select(config, train, val)
    for i, rate in enumerate(config.learning_rates):
        layer = in_torch(config, train, rate)
        np.testing.assert_allclose(found.heads.weights[:, i], layer.weight.detach().T, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(found.heads.bias[i], layer.bias.detach(), rtol=2e-4, atol=2e-5)
        right = layer(torch.from_numpy(val.features).double()).argmax(1).numpy() == val.labels
        np.testing.assert_allclose(found.validation_accuracy[i], right.mean())
    best = config.learning_rates[found.best]
    assert found.best == np.argmax(found.validation_accuracy)
    result = gradient_probe.select_and_test(config, Split(*train), Split(*val), Split(*test), CLASSES)
    right = in_torch(config, train, best)(torch.from_numpy(test.features).double()).argmax(1).numpy() == test.labels
    np.testing.assert_allclose(result.test_accuracy, right.mean())
    assert result.learning_rate == best
    assert result.protocol.startswith(f"{config.protocol}: {type(config.rule).__name__} linear probe")


def test_standardized_features_are_those_of_numpy_and_a_constant_one_is_kept_finite():
    train, val = clusters(150, 0), clusters(80, 1)
    train.features[:, 3] = val.features[:, 3] = 7
    found = select(replace(ADAMW, standardize=True), train, val)
    mean, std = train.features.mean(axis=0), train.features.std(axis=0)
    std[3] = 1
    by_hand = [Rows((split.features - mean) / std, split.labels) for split in (train, val)]
    other = select(ADAMW, by_hand[0], by_hand[1])
    np.testing.assert_allclose(found.heads.weights, other.heads.weights, rtol=1e-3, atol=1e-4)


def test_mean_per_class_weighs_classes_alike():
    train, val = clusters(150, 0), clusters(400, 1)
    rare = Rows(val.features[val.labels > 0], val.labels[val.labels > 0])  # a class is not there at all
    uneven = Rows(np.concatenate([rare.features, val.features[:9]]), np.concatenate([rare.labels, val.labels[:9]]))
    config = replace(ADAMW, metric="mean_per_class")
    for split in (rare, uneven):
        found = select(config, train, split)
        logits = (
            split.features @ np.asarray(found.heads.weights)[:, found.best] + np.asarray(found.heads.bias)[found.best]
        )
        recalls = [(logits.argmax(1) == c)[split.labels == c].mean() for c in np.unique(split.labels)]
        np.testing.assert_allclose(found.validation_accuracy[found.best], np.mean(recalls), rtol=1e-6)


def test_a_rate_that_diverges_is_not_chosen_and_none_but_such_is_an_error():
    train, val = clusters(150, 0), clusters(80, 1)
    wild = replace(STEPS, rule=SGD(weight_decay=1.0), learning_rates=(1e6, 0.1), epochs=20)
    assert select(wild, train, val).best == 1
    with pytest.raises(ValueError, match=r"diverged at every learning rate of \(1000000.0,\). Try smaller ones"):
        select(replace(wild, learning_rates=(1e6,)), train, val)


def test_rows_of_a_file_are_read_batch_by_batch(tmp_path):
    train, val = clusters(150, 0), clusters(80, 1)
    train.features.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=train.features.shape)
    a, b = (select(ADAMW, Rows(rows, train.labels), val) for rows in (mapped, train.features))
    np.testing.assert_array_equal(a.heads.weights, b.heads.weights)


@pytest.mark.parametrize(
    "changes, train, message",
    [
        ({"learning_rates": ()}, None, "learning rates above 0, epochs and a batch size"),
        ({"epochs": 0}, None, "epochs must be at least 1, got 0"),
        ({}, Split(np.full((9, 9), np.nan), np.arange(9) % 4), "features must be finite"),
        ({}, Split(np.zeros((9, 9)), np.arange(9)), r"labels must be integers in 0\.\.3, got int64 in 0\.\.8"),
        ({}, Split(np.zeros((0, 9)), np.zeros(0, int)), r"train: features must be \(n, d\)"),
        ({}, Split(np.zeros((9, 9)), np.zeros(9, int), np.arange(9) < 5), "leave masked rows out"),
    ],
)
def test_bad_input_is_named(changes, train, message):
    with pytest.raises(ValueError, match=message):
        select(replace(ADAMW, **changes), train or clusters(50, 0), clusters(50, 1))
