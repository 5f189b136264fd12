import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs import digits
from train.data import builders, pipeline

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    # With random shifts, so that what is compared between streams includes their random draws.
    return replace(digits.get_config().train.data, max_shift=1, directory=str(tmp_path_factory.mktemp("data")))


def _whole(split: pipeline.Split) -> tuple[np.ndarray, np.ndarray]:
    batches = list(split.eval_batches(64))
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    return images, np.concatenate([batch["label"][batch["mask"]] for batch in batches])


def test_the_three_splits_hold_scikit_learns_digits_bit_for_bit_and_once_each(config):
    images, labels = zip(
        *(_whole(pipeline.load(config, s, "digit")) for s in ("train", "validation", "test")), strict=True
    )
    restored = np.concatenate(images).astype(float).squeeze(-1) * 16 / 255
    expected, digits_of = load_digits(return_X_y=True)
    rows = {(*np.rint(image).ravel(), label) for image, label in zip(restored, np.concatenate(labels), strict=True)}
    assert rows == {(*image, label) for image, label in zip(expected, digits_of, strict=True)}
    assert sum(map(len, labels)) == len(expected) == 1797
    for split_labels in labels:  # stratified: no digit differs from a tenth by more than the rounding of its own count
        assert np.ptp(np.bincount(split_labels)) <= 6


def test_the_superclass_is_whether_the_digit_has_a_closed_loop(config):
    _, digit = _whole(pipeline.load(config, "test", "digit"))
    _, superclass = _whole(pipeline.load(config, "test"))
    assert (superclass == np.isin(digit, [0, 6, 8, 9])).all()


def test_the_configs_pixel_statistics_are_those_of_the_training_images(config):
    images, _ = _whole(pipeline.load(config, "train"))
    np.testing.assert_allclose(config.mean, (images / 255).mean(), atol=5e-5)
    np.testing.assert_allclose(config.std, (images / 255).std(), atol=5e-5)


def test_preparing_and_reading_need_no_tensorflow(tmp_path):
    program = f"""
import sys
from train.data import builders, pipeline
from train.config import DataConfig
split = pipeline.load(DataConfig("digits", "digit", (0.0,), (1.0,), directory={str(tmp_path)!r}), "test")
print(next(split.train_batches(8, seed=0, start_step=0))["image"].dtype, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["uint8", "False"], done.stderr


def _first_batches(config, count, batch_size=32, start=0, threads=2):
    split = pipeline.load(replace(config, reader_threads=threads), "train")
    batches = split.train_batches(batch_size, seed=7, start_step=start)
    return [next(batches) for _ in range(count)]


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(config):
    config = replace(config, max_shift=0)
    images, _ = _whole(pipeline.load(config, "train"))
    seen = np.concatenate([batch["image"] for batch in _first_batches(config, 2 * len(images) // 32 + 1)])
    as_rows = [image.tobytes() for image in images]
    first, second = ([image.tobytes() for image in epoch] for epoch in (seen[: len(images)], seen[len(images) :]))
    assert sorted(first) == sorted(as_rows)
    assert sorted(second[: len(images)]) == sorted(as_rows)
    assert first != second[: len(images)] != as_rows


@pytest.mark.parametrize("threads", [0, 3])
def test_batches_do_not_depend_on_reader_threads(config, threads):
    for ours, theirs in zip(_first_batches(config, 5, threads=threads), _first_batches(config, 5), strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        np.testing.assert_array_equal(ours["label"], theirs["label"])


@pytest.mark.parametrize("start", [1, 3, 40])
def test_a_restart_at_any_step_continues_the_same_stream(config, start):
    straight = _first_batches(config, start + 2)[start:]
    for ours, theirs in zip(_first_batches(config, 2, start=start), straight, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_parts_put_together_are_the_one_hosts_batches(config, hosts, monkeypatch):
    whole, whole_eval = _first_batches(config, 3, start=2), list(pipeline.load(config, "test").eval_batches(64))
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    parts, eval_parts = [], []
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts.append(_first_batches(config, 3, start=2))
        eval_parts.append(list(pipeline.load(config, "test").eval_batches(64)))
    for all_parts, expected in ((parts, whole), (eval_parts, whole_eval)):
        for step, batch in enumerate(expected):
            for key, rows in batch.items():
                np.testing.assert_array_equal(np.concatenate([part[step][key] for part in all_parts]), rows)


def test_unknown_names_are_answered_with_the_known_ones(config):
    with pytest.raises(ValueError, match="Data set 'digit' is not prepared under .* Known: digits, cifar10"):
        builders.prepared("digit", config.directory)
    with pytest.raises(ValueError, match="Unknown label of digits: 'fine'. Known: digit, closed_loop"):
        pipeline.load(config, "train", "fine")
    with pytest.raises(ValueError, match="Unknown split of digits: 'val'. Known: train, validation, test"):
        pipeline.load(config, "val")
