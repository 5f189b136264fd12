"""`probe` on files, scikit-learn's converged logistic regression being the oracle."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from train.__main__ import main
from train.config import ProbeConfig
from train.experiments import probe_files

FEATURES, LABELS = load_digits(return_X_y=True)
FEATURES = FEATURES / 16
PARTS = {"train": slice(0, 300), "val": slice(300, 500), "test": slice(500, 1000)}
STRENGTHS = ProbeConfig("label", l2_low=1e-3, l2_high=1e3, l2_count=7, tolerance=1e-6)


def _save(folder, names=("pixels",), labels=LABELS, key="labels"):
    folder.mkdir(exist_ok=True)
    wide = {"pixels": FEATURES, "half": FEATURES[:, :32]}
    for part, rows in PARTS.items():
        np.savez(folder / f"{part}.npz", **{name: wide[name][rows] for name in names}, **{key: labels[rows]})
    return [folder / f"{part}.npz" for part in PARTS]


def _by_sklearn(features, strengths):
    """Chosen strength, its validation accuracy and the test accuracy; of equals the strongest."""
    x, y = {part: features[rows] for part, rows in PARTS.items()}, {part: LABELS[rows] for part, rows in PARTS.items()}
    how = {"max_iter": 20_000, "tol": 1e-8}
    accuracies = [
        LogisticRegression(C=1 / l2, **how).fit(x["train"], y["train"]).score(x["val"], y["val"]) for l2 in strengths
    ]
    best = max(l2 for l2, accuracy in zip(strengths, accuracies, strict=True) if accuracy == max(accuracies))
    both = np.concatenate([x["train"], x["val"]]), np.concatenate([y["train"], y["val"]])
    return best, max(accuracies), LogisticRegression(C=1 / best, **how).fit(*both).score(x["test"], y["test"])


def test_the_choice_and_the_accuracy_are_scikit_learns_of_every_layer(tmp_path, capsys):
    files = _save(tmp_path / "a", ("pixels", "half"))
    options = ["--l2-low", "1e-2", "--l2-high", "1e2", "--l2-count", "5", "--tolerance", "1e-6"]
    main(["probe", *map(str, files), *options, "--json", str(tmp_path / "out.json")])
    said = capsys.readouterr().out
    found = {row["layer"]: row for row in json.loads((tmp_path / "out.json").read_text())["layers"]}
    for layer, features in (("pixels", FEATURES), ("half", FEATURES[:, :32])):
        l2, validation, test = _by_sklearn(features, np.geomspace(1e-2, 1e2, 5))
        row = found[layer]
        np.testing.assert_allclose(
            [row["l2"], row["validation_accuracy"], row["test_accuracy"]], [l2, validation, test]
        )
        assert row["converged"] and f"{100 * test:.2f}" in said
    assert "300 + 200 + 500 rows to train, validate and test" in said


@pytest.mark.parametrize(
    ("low", "high", "end"), [(1e2, 1e5, "weakest"), (1e-6, 1e-3, "strongest"), (1e-3, 1e3, ""), (1.0, 1.0, "")]
)
def test_strengths_that_end_too_soon_are_named(tmp_path, low, high, end, capsys):
    count = 1 if low == high else 4
    options = ["--l2-low", str(low), "--l2-high", str(high), "--l2-count", str(count)]
    main(["probe", *map(str, _save(tmp_path / "a")), *options])
    beyond = {"weakest": "lower l2_low", "strongest": "raise l2_high", "": ""}[end]
    said = capsys.readouterr().out
    assert (f"the {end} strength was best" in said and beyond in said) if end else "strength was best" not in said


def test_names_of_classes_and_other_keys_mean_the_same(tmp_path):
    names = np.array([f"digit {label}" for label in range(10)])[LABELS]
    numbers, words = (
        _save(tmp_path / key, labels=labels, key=key) for key, labels in (("y", LABELS), ("label", names))
    )
    assert probe_files.run(*numbers, STRENGTHS) == probe_files.run(*words, STRENGTHS)


def test_arrays_beside_their_labels_and_folders_of_files_are_probed(tmp_path):
    for part, rows in PARTS.items():
        (tmp_path / part).mkdir()
        for name, features in (("pixels", FEATURES), ("half", FEATURES[:, :32])):
            np.save(tmp_path / part / f"{name}.npy", features[rows])
            np.save(tmp_path / part / f"{name}_labels.npy", LABELS[rows])
    found = probe_files.run(*(tmp_path / part for part in PARTS), STRENGTHS)
    assert [row["layer"] for row in found] == ["half.npy: features", "pixels.npy: features"]
    together = probe_files.run(*_save(tmp_path / "a", ("pixels", "half")), STRENGTHS)
    assert [row["test_accuracy"] for row in found] == [row["test_accuracy"] for row in together]


def test_without_validation_a_fifth_of_every_class_chooses_and_all_rows_are_fitted(tmp_path):
    train, _, test = _save(tmp_path / "a")
    (row,) = probe_files.run(train, None, test, STRENGTHS)
    counts = np.bincount(LABELS[PARTS["train"]])
    held_out = sum(max(1, round(0.2 * count)) for count in counts.tolist())
    assert row["rows"] == [300 - held_out, held_out, 500]
    model = LogisticRegression(C=1 / row["l2"], max_iter=20_000, tol=1e-8)
    model.fit(FEATURES[PARTS["train"]], LABELS[PARTS["train"]])
    assert row["test_accuracy"] == pytest.approx(model.score(FEATURES[PARTS["test"]], LABELS[PARTS["test"]]))


def _two(tmp_path, train, test):
    np.savez(tmp_path / "train.npz", **train)
    np.savez(tmp_path / "test.npz", **test)
    return tmp_path / "train.npz", None, tmp_path / "test.npz"


X, Y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"features": X, "labels": Y}, {"features": X, "labels": Y + 1}, "labels of test have 1 classes without .*: 2"),
        ({"features": X}, {"features": X}, "needs features .* and labels"),
        ({"features": Y, "labels": Y}, {"features": X, "labels": Y}, "needs features"),
        ({"a": X, "labels": Y}, {"b": X, "labels": Y}, "Every file needs the same layers: test differs in a, b"),
        ({"features": X, "labels": Y[:3]}, {"features": X, "labels": Y}, "has 4 rows of features but 3 labels"),
        ({"features": X, "labels": Y}, {"features": X, "labels": Y.astype(str)}, "the same in all files"),
        ({"features": X, "labels": Y + 0.5}, {"features": X, "labels": Y}, "whole numbers or names"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path, train, test, message):
    with pytest.raises(ValueError, match=message):
        probe_files.run(*_two(tmp_path, train, test), STRENGTHS)


def test_pickles_and_other_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "a_labels.npy", Y)
    with pytest.raises(ValueError, match=r"a.npy cannot be read"):
        probe_files.read(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"must end in .npz or .npy"):
        probe_files.read(tmp_path / "a.pt")
