import dataclasses
import json

import numpy as np
import pytest
import torch

from train import crosscheck, torch_reference
from train.__main__ import main
from train.crosscheck import FAMILIES, Item

VIT = FAMILIES[-1]


@pytest.fixture(autouse=True)
def one_thread():
    """Of PyTorch's, as in the command."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("items", "count"),
    [
        (crosscheck.regularizer, 3),
        (crosscheck.label_smoothing, 2),
        (crosscheck.schedule, 1),
        (crosscheck.optimizers, 2),
        (lambda: crosscheck.one_step(VIT, "float64"), 4),
        (lambda: crosscheck.training(VIT, "float64"), 1),
    ],
    ids=["regularizer", "label smoothing", "schedule", "optimizers", "one step", "20 steps"],
)
def test_the_quick_comparisons_pass(items, count):
    rows = list(items())
    assert len(rows) == count
    assert all(row.passed for row in rows), [crosscheck.line(row) for row in rows]


def test_the_penalty_and_its_delta_are_felt_in_the_twenty_losses():
    """Else their agreement would say nothing about either."""
    rng = np.random.default_rng(0)
    batches = [(images / 255, labels) for images, labels in (crosscheck._batch(VIT, rng) for _ in range(4))] * 5

    def losses(alpha, beta, delta):
        net = torch_reference.create(VIT.theirs, 0).double()
        return torch_reference.losses(VIT.theirs, net, batches, (alpha, beta, delta), VIT.learning_rate)

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
    assert crosscheck._item("x, float64", np.array(ours), np.array([1.0, 2.0]), 1e-9).passed is passed


def test_a_number_of_another_precision_does_not_pass_for_float64():
    assert not crosscheck._item("x, float64", np.ones(2, np.float32), np.ones(2), 1e-9).passed


def test_a_wrong_number_is_reported_and_ends_with_exit_status_one(monkeypatch, tmp_path, capsys):
    right = torch_reference.penalty_gradient
    monkeypatch.setattr(torch_reference, "penalty_gradient", lambda *args: right(*args) * (1 + 1e-9))
    monkeypatch.setattr(crosscheck, "all_items", crosscheck.regularizer)
    with pytest.raises(SystemExit) as stop:
        main(["crosscheck", "--json", str(tmp_path / "result.json")])
    assert stop.value.code == 1
    table = capsys.readouterr().out
    assert table.count("FAIL") == 2 and table.count("  pass") == 1 and "1 of 3 passed; failed: VCReg: gradient" in table
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["passed"] and [item["passed"] for item in result["items"]] == [False, False, True]
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or result["versions"]["torch"]


def test_what_does_not_exist_is_said_and_does_not_count_as_passed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(crosscheck, "all_items", crosscheck.label_smoothing)
    main(["crosscheck", "--json", str(tmp_path / "result.json")])
    table = capsys.readouterr().out
    assert "2 of 2 passed" in table
    for name in crosscheck.NOT_IMPLEMENTED:
        assert any(name in line and "not implemented" in line for line in table.splitlines())
    assert json.loads((tmp_path / "result.json").read_text())["not_implemented"] == list(crosscheck.NOT_IMPLEMENTED)


def test_a_folder_that_is_not_there_is_found_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(crosscheck, "all_items", lambda: pytest.fail("it was begun"))
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
