import dataclasses
import json

import numpy as np
import pytest
import torch

from train import config
from train.__main__ import main
from train.interop.crosscheck import command, networks, parts, torch_networks, torch_side
from train.interop.crosscheck.item import Item, compare, line

VIT = next(family for family in networks.FAMILIES if family.name == "ViT")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(
    ("items", "count"),
    [
        (parts.regularizer, 4),
        (parts.label_smoothing, 2),
        (parts.schedules, 4),
        (parts.optimizers, 5),
        (parts.moving_average, 1),
        (lambda: networks.one_step(VIT, "float64"), 4),
        (lambda: networks.training(VIT, "float64"), 1),
    ],
    ids=["regularizer", "label smoothing", "schedules", "optimizers", "moving average", "one step", "20 steps"],
)
def test_the_quick_comparisons_pass(items, count):
    rows = list(items())
    assert len(rows) == count
    assert all(row.passed for row in rows), [line(row) for row in rows]


def test_the_penalty_and_its_delta_are_felt_in_the_twenty_losses():
    """Else their agreement would say nothing about either."""
    rng = np.random.default_rng(0)
    batches = [(images / 255, labels) for images, labels in (networks._batch(VIT, rng) for _ in range(4))] * 5

    def losses(alpha, beta, delta):
        net = torch_networks.create(VIT.theirs, 0).double()
        return torch_side.losses(VIT.theirs, net, batches, (alpha, beta, delta), VIT.learning_rate)

    ours = losses(0.64, 0.08, VIT.delta)
    for other in (
        losses(0.0, 0.0, None),
        losses(0.64, 0.0, None),
        losses(0.0, 0.08, VIT.delta),
        losses(0.64, 0.08, None),
    ):
        assert np.abs(ours / other - 1)[1:].max() > 1e-5  # float64's tolerance is 1e-9
    assert ours[-1] < 0.8 * ours[0]


@pytest.mark.parametrize(
    ("ours", "passed"), [([1.0, 2.0], True), ([1.0, 2.0 + 1e-6], False), ([1.0, np.nan], False), ([1.0], False)]
)
def test_an_item_passes_within_its_tolerance_only(ours, passed):
    assert compare("x, float64", np.array(ours), np.array([1.0, 2.0]), 1e-9).passed is passed


def test_a_number_of_another_precision_does_not_pass_for_float64():
    assert not compare("x, float64", np.ones(2, np.float32), np.ones(2), 1e-9).passed


def test_a_wrong_number_is_reported_and_ends_with_exit_status_one(monkeypatch, tmp_path, capsys):
    right = torch_side.penalty_gradient
    monkeypatch.setattr(torch_side, "penalty_gradient", lambda *args: right(*args) * (1 + 1e-9))
    monkeypatch.setattr(command, "all_items", parts.regularizer)
    with pytest.raises(SystemExit) as stop:
        main(["crosscheck", "--json", str(tmp_path / "result.json")])
    assert stop.value.code == 1
    table = capsys.readouterr().out
    assert table.count("FAIL") == 3 and table.count("  pass") == 1 and "1 of 4 passed; failed: VCReg: gradient" in table
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["passed"] and [item["passed"] for item in result["items"]] == [False, False, True, False]
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or result["versions"]["torch"]


def test_a_folder_that_is_not_there_is_found_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "all_items", lambda: pytest.fail("it was begun"))
    with pytest.raises(SystemExit) as stop:
        main(["crosscheck", "--json", str(tmp_path / "nowhere" / "result.json")])
    assert stop.value.code == 2
    assert "There is no folder" in capsys.readouterr().err


def test_an_item_is_a_value():
    assert dataclasses.asdict(Item("x", 1.0, 2.0, 3.0)) == {
        "name": "x",
        "absolute": 1.0,
        "relative": 2.0,
        "tolerance": 3.0,
    }


@pytest.mark.parametrize(
    ("changed", "compare", "failing"),
    [
        (("sgd_momentum", 0.91), parts.optimizers, "SGD"),
        (("adam_decay", 0.051), parts.optimizers, "AdamW"),
        (("trust", 1.001e-3), parts.optimizers, "LARS"),
        (("start", 0.034), parts.schedules, "per epoch"),
    ],
)
def test_a_constant_that_differs_is_found(monkeypatch, changed, compare, failing):
    """What is changed is PyTorch's side of it only."""
    name, value = changed
    fields = {
        "sgd_momentum": (config.SGD, "momentum"),
        "adam_decay": (config.AdamW, "weight_decay"),
        "trust": (config.LARS, "trust_coefficient"),
        "start": (config.Cosine, "warmup_start"),
    }
    kind, field = fields[name]
    theirs = {function: getattr(torch_side, function) for function in ("update", "rates")}

    def altered(given):
        given = dataclasses.replace(given, rule=altered(given.rule)) if hasattr(given, "rule") else given
        is_meant = isinstance(given, kind) and getattr(given, field)
        return dataclasses.replace(given, **{field: value}) if is_meant else given

    for function, right in theirs.items():
        monkeypatch.setattr(torch_side, function, lambda first, *rest, right=right: right(altered(first), *rest))
    rows = list(compare())
    assert [failing in row.name for row in rows] == [not row.passed for row in rows]
