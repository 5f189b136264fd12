"""The check-up against scikit-learn's probe and NumPy, and its page; features made to collapse are said to."""

import json

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

import vcreg_jax as vc
from tests.reports.test_report import Page
from train.__main__ import main
from train.reports import checkup_page
from vcreg_jax.metrics.doctor import STRENGTHS, Block

CLASSES, N = 4, 240
LABELS = np.random.default_rng(0).integers(0, CLASSES, N)


def spread(width: int = 6, within: float = 1.0) -> np.ndarray:
    """Features around their class's mean."""
    rng = np.random.default_rng(1)
    return 2 * rng.normal(size=(CLASSES, width))[LABELS] + within * rng.normal(size=(N, width))


def one(h: np.ndarray, name: str = "features") -> Block:
    return vc.doctor({name: h}, LABELS, CLASSES).blocks[0]


def test_scatters_are_numpys():
    h = spread()
    found = one(h)
    means = np.stack([h[c == LABELS].mean(axis=0) for c in range(CLASSES)])
    within = sum((c == LABELS).mean() * np.cov(h[c == LABELS].T, bias=True) for c in range(CLASSES))
    between = sum((c == LABELS).mean() * np.outer(m - h.mean(0), m - h.mean(0)) for c, m in enumerate(means))
    np.testing.assert_allclose(found.between_classes, np.trace(between) / np.trace(np.cov(h.T, bias=True)), rtol=1e-5)
    np.testing.assert_allclose(found.nc1, np.trace(within @ np.linalg.pinv(between, rcond=1e-6)) / CLASSES, rtol=1e-4)
    p = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    p /= p.sum()
    np.testing.assert_allclose(found.effective_rank, np.exp(-(p * np.log(p)).sum()), rtol=1e-4)


def test_the_probe_is_scikit_learns_on_the_last_quarter():
    h = spread(within=2.0)
    half, last = N // 2, N * 3 // 4
    x = (h - h[:half].mean(0)) / h[:half].std(0)
    best, accuracy = -1.0, 0.0
    for strength in STRENGTHS:
        probe = RidgeClassifier(alpha=strength * half).fit(x[:half], LABELS[:half])
        if (chosen := probe.score(x[half:last], LABELS[half:last])) > best:
            best, accuracy = chosen, probe.score(x[last:], LABELS[last:])
    assert one(h).probe_accuracy == pytest.approx(accuracy, abs=1e-6) and 0.4 < accuracy < 0.98


def test_dead_and_duplicated_features_are_counted():
    h = spread(8)
    h[:, 0] = 3.0
    h[:, 2], h[:, 5] = -2 * h[:, 1], h[:, 1] + 1
    found = one(h)
    assert found.dead == pytest.approx(1 / 8) and found.duplicated == pytest.approx(2 / 7)
    nothing = one(np.ones((N, 3)))
    assert nothing.dead == 1.0 and nothing.effective_rank == 1.0


def test_maps_are_averaged_over_positions():
    h = spread()[:, None, None] + np.array([-1.0, 1.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(one(h)[2:], one(spread())[2:], rtol=1e-4)


def test_what_is_said_follows_from_what_was_found():
    fine, poor = spread(), spread(within=6.0)
    forgets = vc.doctor({"block 1": fine, "block 2": poor}, LABELS, CLASSES).sentences
    assert "behind block 1 the network forgets" in forgets[0]
    assert "has something to keep" in forgets[1] and "of the blocks behind block 1" in forgets[2]
    collapsed = vc.doctor({"block 1": spread(9), "features": spread(9, 0.05)}, LABELS, CLASSES).sentences
    assert "hold little else than classes" in collapsed[0] and "use 3 of 9 directions" in collapsed[1]
    healthy = vc.doctor({"block 1": poor, "features": spread(within=2.5)}, LABELS, CLASSES).sentences
    assert "are not collapsed" in healthy[0] and "little for a regularizer to keep or to spread" in healthy[1]
    with pytest.raises(ValueError, match="two or more classes in 0..3, got 1 outputs and 240 labels of 1 classes"):
        vc.doctor({"features": fine}, np.zeros(N, int), CLASSES)


def test_the_command_examines_weights_and_writes_a_page(tmp_path, capsys):
    from flax import nnx

    from train.data import builders
    from vcreg_jax import torch_weights

    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", images=rng.integers(0, 256, (90, 16, 16, 3), np.uint8), labels=np.arange(90) % 3)
    builders.prepare("few", tmp_path / "few.npz", tmp_path / "data", "convert")
    model = vc.models.create("resnet20", num_classes=3, rngs=nnx.Rngs(0))
    torch.save(
        {name: torch.tensor(value) for name, value in torch_weights.export(model).items()}, tmp_path / "weights.pth"
    )
    main(
        [
            *("doctor", str(tmp_path / "weights.pth"), "few", "--model", "resnet20", "--label", "label"),
            *("--split", "train", "--images", "80", "--directory", str(tmp_path / "data"), "--output", str(tmp_path)),
        ]
    )
    assert "To try one, begin with" in capsys.readouterr().out
    found = json.loads((tmp_path / "checkup.json").read_text())
    assert [block["name"] for block in found["blocks"]] == [*(f"block {i}" for i in range(1, 10)), "features"]
    assert [block["width"] for block in found["blocks"]] == [16] * 3 + [32] * 3 + [64] * 4
    assert found["config"]["images"] == 80
    last, features = found["blocks"][-2:]
    assert last["effective_rank"] == pytest.approx(features["effective_rank"], rel=1e-4)  # its means over positions
    page = Page((tmp_path / "checkup.html").read_text())
    assert page.wrong == [] and "Check-up of resnet20 on few" in page.text["h1"]


def test_names_on_the_page_are_shown_and_not_run():
    bad = "<img src=x onerror=alert(1)>"
    found = vc.doctor({bad: spread(), "features": spread()}, LABELS, CLASSES)
    config = dict.fromkeys(("model", "data", "label", "split"), bad) | {"images": 3, "classes": 2}
    made = {"hardware": bad, "commit": bad, "command": bad, "versions": {bad: bad}, "config": config}
    text = checkup_page.text(found, made)
    assert "<img" not in text.lower() and Page(text).wrong == []
