"""Frozen features of a split: their order, their cache, and that no cache is taken for another's."""

import json
import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs import digits
from train.config import MeshConfig
from train.data import pipeline
from train.trainer import features
from train.trainer.evaluation import Trained
from train.trainer.mesh import make_mesh

BATCH = 240  # 710 test images: the last batch is padded


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    whole = digits.get_config().train
    data = replace(whole.data, in_memory=False, directory=str(tmp_path_factory.mktemp("data")))
    return replace(whole, data=data, batch_size=BATCH)


def network(scale, calls=None):
    """Features are `scale` times the first five pixels, on eight devices."""

    work = jax.jit(lambda images: images[:, 0, :5, 0].astype(jnp.float32) * scale)

    def predict(images):
        if calls is not None:
            calls.append(images.shape)
        return None, work(images)

    state = {"params": {"scale": jnp.float32(scale)}, "batch_stats": {}}
    return Trained(state, make_mesh(MeshConfig()), predict, 0.0)


def expected(scale):
    x, y = load_digits(return_X_y=True)
    order = np.zeros(len(y), int)
    for digit in range(10):
        order[y == digit] = np.arange((y == digit).sum())
    test = order % 10 >= 6
    return np.rint(x[test] * 255 / 16)[:, :5] * scale, y[test]


@pytest.mark.parametrize("in_memory", [False, True])
def test_every_row_comes_once_and_in_order_from_eight_devices(train, in_memory):
    data = pipeline.load(replace(train.data, in_memory=in_memory), "test", "digit")
    found, labels = features.extract(network(2.0).predict, data, BATCH, network(2.0).mesh)
    rows, digit = expected(2.0)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_array_equal(labels, digit)


def test_a_cache_is_written_once_and_read_from_the_file(train, tmp_path):
    data, calls = pipeline.load(train.data, "test", "digit"), []
    first, labels = features.extract_cached(tmp_path, network(1.0, calls), train, data)
    counted = len(calls)
    second, again = features.extract_cached(tmp_path, network(1.0, calls), train, data)
    assert counted == len(calls) == -(-len(data) // BATCH)
    rows, digit = expected(1.0)
    for found, own in ((first, labels), (second, again)):
        assert isinstance(found, np.memmap)
        np.testing.assert_array_equal(found, rows)
        np.testing.assert_array_equal(own, digit)


def test_other_weights_images_labels_and_preprocessing_have_caches_of_their_own(train, tmp_path):
    data = pipeline.load(train.data, "test", "digit")
    features.extract_cached(tmp_path, network(1.0), train, data)
    brighter = replace(train, data=replace(train.data, mean=(0.5,)))
    cropped = replace(train.data, evaluation=replace(train.data.evaluation, resize=8, crop=8, interpolation="bicubic"))
    others = {
        "weights": (network(3.0), train, data),
        "split": (network(1.0), train, pipeline.load(train.data, "train", "digit")),
        "label": (network(1.0), train, pipeline.load(train.data, "test", "closed_loop")),
        "normalization": (network(1.0), brighter, data),
        "transform": (network(1.0), train, pipeline.load(cropped, "test", "digit")),
        "model": (network(1.0), replace(train, model=replace(train.model, dtype="bfloat16")), data),
    }
    for count, (what, arguments) in enumerate(others.items(), start=2):
        found, _ = features.extract_cached(tmp_path, *arguments)
        assert len(list(tmp_path.iterdir())) == count, what
        if what == "weights":
            np.testing.assert_array_equal(found, expected(3.0)[0])


def test_a_cache_that_was_interrupted_is_written_again_and_one_that_was_changed_is_refused(train, tmp_path):
    data = pipeline.load(train.data, "test", "digit")

    def dies(images):
        if calls.append(images) or len(calls) > 1:
            raise KeyboardInterrupt
        return network(1.0).predict(images)

    calls = []
    with pytest.raises(KeyboardInterrupt):
        features.extract_cached(tmp_path, replace(network(1.0), predict=dies), train, data)
    found, _ = features.extract_cached(tmp_path, network(1.0), train, data)
    np.testing.assert_array_equal(found, expected(1.0)[0])
    (place,) = tmp_path.iterdir()
    index = json.loads((place / "index.json").read_text())
    (place / "index.json").write_text(json.dumps(index | {"weights": "of another network"}))
    with pytest.raises(ValueError, match="index.json is not what was written"):
        features.extract_cached(tmp_path, network(1.0), train, data)
    (place / "index.json").write_text(json.dumps(index))
    (place / "features.bin").write_bytes((place / "features.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match="or is damaged"):
        features.extract_cached(tmp_path, network(1.0), train, data)


@pytest.mark.parametrize("name", ["features.bin", "labels.bin", "index.json"])
def test_any_flipped_bit_of_a_cache_is_refused(train, tmp_path, name):
    data = pipeline.load(train.data, "test", "digit")
    features.extract_cached(tmp_path, network(1.0), train, data)
    (file,) = tmp_path.glob(f"*/{name}")
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for bit in rng.choice(8 * len(whole), 50, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="Delete it, and"):
            features.extract_cached(tmp_path, network(1.0), train, data)
    file.write_bytes(whole)
    features.extract_cached(tmp_path, network(1.0), train, data)


def test_writing_a_cache_takes_the_memory_of_some_batches(train, tmp_path):
    width = 20_000
    wide = jax.jit(lambda images: (None, jnp.zeros((len(images), width), jnp.float32)))
    trained = replace(network(1.0), predict=wide)
    data = pipeline.load(train.data, "test", "digit")
    tracemalloc.start()
    found, _ = features.extract_cached(tmp_path, trained, replace(train, batch_size=24), data)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.nbytes == len(data) * width * 4
    assert most < found.nbytes / 5
