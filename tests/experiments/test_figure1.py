import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from configs import fig1_two_moons
from train.experiments import two_moons
from train.experiments.two_moons import EDGE, GRID, Method, TwoMoons
from train.reports import figure1

AXIS = np.linspace(-EDGE, EDGE, GRID)
X, Y = np.meshgrid(AXIS, AXIS, indexing="ij")
SMALL = TwoMoons("small", {"two layers": (16,)}, {}, seeds=(0, 1), steps=60, samples=40)


def test_the_first_coordinate_separates_the_points_by_the_margin_and_the_second_does_not():
    x, sign = two_moons.points(fig1_two_moons.get_config(), seed=3)
    assert x.shape == (300, 2) and set(sign) == {-1, 1}
    gap = (-sign * x[:, 0]).min()
    assert 0.1 <= gap < 0.12
    assert min((sign * x[:, 1] > 0).mean(), (sign * x[:, 1] < 0).mean()) > 0.2
    turned, _ = two_moons.points(fig1_two_moons.get_config(), seed=3, rotation=45)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x, axis=1))
    np.testing.assert_allclose(turned[:, 0], (x[:, 0] + x[:, 1]) / np.sqrt(2))


def test_the_boundary_of_known_functions_is_found_and_so_is_the_distance_to_it():
    line = figure1.boundary(X - 0.3)
    np.testing.assert_allclose(line[:, 0], 0.3, atol=1e-12)
    assert len(line) == GRID
    circle = figure1.boundary(X**2 + Y**2 - 1.5**2)
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1.5, atol=1e-3)
    x, _ = two_moons.points(SMALL, 0)
    found, exact = figure1.distances(X - 0.3, SMALL, 0), np.abs(x[:, 0] - 0.3)
    half_a_cell = EDGE / (GRID - 1)
    assert (found >= exact - 1e-12).all() and (found <= np.hypot(exact, half_a_cell) + 1e-12).all()
    assert np.isnan(figure1.distances(X + 5, SMALL, 0)).all()


def _torch_net(params):
    layers = []
    for layer in params:
        linear = torch.nn.Linear(*layer["kernel"].shape)
        linear.weight.data = torch.tensor(np.asarray(layer["kernel"]).T)
        linear.bias.data = torch.tensor(np.asarray(layer["bias"]))
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    "method",
    [Method(), Method(weight_decay=0.1), Method(rule="adam", learning_rate=3e-3), Method(spectral_decoupling=0.1)],
    ids=["plain", "weight decay", "Adam", "spectral decoupling"],
)
def test_every_seed_trains_as_pytorch_does_from_the_same_weights(method):
    found = two_moons.train(SMALL, (16,), method)
    key = jax.random.fold_in(jax.random.key(1), 0)
    net = _torch_net(two_moons._initial((2, 16, 1), key))
    if method.rule == "adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=method.learning_rate)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=method.weight_decay)
    x, y = (torch.tensor(part, dtype=torch.float32) for part in two_moons.points(SMALL, 1))
    for _ in range(SMALL.steps):
        f = net(x)[:, 0]
        loss = torch.nn.functional.softplus(-y * f).mean() + method.spectral_decoupling * (f**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grid = torch.tensor(np.stack([X, Y], axis=-1), dtype=torch.float32)
    np.testing.assert_allclose(found.values[1], net(grid)[..., 0].detach(), rtol=1e-3, atol=1e-4)
    x.requires_grad_(True)
    (slopes,) = torch.autograd.grad(net(x).sum(), x)
    np.testing.assert_allclose(found.slopes[1], slopes, rtol=1e-3, atol=1e-4)


def test_the_regularizer_acts_in_training_only():
    with np.errstate(all="raise"):  # and not on the single points of the slopes, of which it would warn
        plain, regularized = (
            two_moons.train(SMALL, (16,), Method(regularizer=reg)) for reg in (vc.identity, vc.VCReg(10.0, 10.0))
        )
    assert np.abs(plain.values - regularized.values).max() > 0.05


@pytest.mark.parametrize("rotation", [0.0, 90.0])
def test_slopes_are_by_the_axes_before_the_rotation(rotation):
    found = two_moons.train(replace(SMALL, steps=500), (16,), Method(rotation=rotation))
    assert (figure1.sensitivity(found.slopes) > 1.5).all()  # by the data's own axes one of the two would be below 1


def test_a_run_leaves_numbers_a_picture_and_a_page_and_does_not_train_twice(tmp_path, monkeypatch, capsys):
    methods = {"plain": Method(), "wide": Method(widths=(8,))}
    config = replace(
        SMALL, networks={"two": (16,), "three": (8, 8)}, methods=methods, steps=100, runs_directory=str(tmp_path)
    )
    folder = figure1.run(config, "python -m train run moons.py")
    found = json.loads((folder / "figure1.json").read_text())
    assert found["command"] == "python -m train run moons.py"
    assert [(row["network"], row["method"]) for row in found["rows"]] == [
        (n, m) for n in ("two", "three") for m in methods
    ]
    wide = [row for row in found["rows"] if row["method"] == "wide"]
    assert wide[0]["distance"] == wide[1]["distance"] and len(list((folder / "trained").iterdir())) == 3
    assert found["rows"][0]["sensitivity"] != found["rows"][2]["sensitivity"]
    for text in ((folder / "figure1.svg").read_text(), (folder / "report.html").read_text()):
        assert "three" in text and "wide" in text
    two, three = (folder / "report.html").read_text().split("<h2>")[1:3]
    for network, section, rows in (("two", two, found["rows"][:2]), ("three", three, found["rows"][2:])):
        assert section.startswith(network)
        assert re.findall("<figcaption>(.*?)</figcaption>", section) == list(methods)
        assert section.count("<svg") == len(methods)
        for distance in (np.array(row["distance"]) for row in rows):
            assert f"{distance.mean():.3f} ± {distance.std(ddof=1):.3f}" in section
    monkeypatch.setattr(figure1, "train", None)  # would fail when called
    assert figure1.run(config, "again") == folder
    with pytest.raises(ValueError, match="needs a seed, a network and a method"):
        figure1.run(replace(config, seeds=()), "")


@pytest.mark.parametrize(
    "changes", [{"methods": {"VCReg": Method(regularizer=vc.VCReg(20.0, 20.0))}}, {"seeds": (7,)}, {"seeds": (0, 1, 2)}]
)
def test_what_was_trained_under_another_weight_or_other_seeds_is_not_shown_again(tmp_path, changes):
    def rows(name, config):
        folder = figure1.run(replace(config, runs_directory=str(tmp_path / name)), "")
        return json.loads((folder / "figure1.json").read_text())["rows"]

    config = replace(SMALL, steps=100, methods={"VCReg": Method(regularizer=vc.VCReg(0.1, 0.1))})
    before = rows("kept", config)
    after = rows("kept", replace(config, **changes))
    assert after == rows("fresh", replace(config, **changes)) and after != before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_network_is_trained_anew_and_named(tmp_path, capsys, damage):
    config = replace(SMALL, methods={"plain": Method()}, seeds=(0,), steps=5, runs_directory=str(tmp_path))
    folder = figure1.run(config, "")
    before = json.loads((folder / "figure1.json").read_text())["rows"]
    (path,) = (folder / "trained").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[damage])
    figure1.run(config, "")
    assert f"is trained anew: {path} cannot be read" in capsys.readouterr().err
    assert json.loads((folder / "figure1.json").read_text())["rows"] == before


def test_configs_of_earlier_versions_find_its_parts():
    from train import two_moons as earlier

    assert earlier.Method is Method and earlier.TwoMoons is TwoMoons
