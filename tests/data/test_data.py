import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from configs import digits
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import DataConfig
from train.data import builders, pipeline, views


def square(size):
    return EvalTransformConfig(size, size)


ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    # With random shifts, so that what is compared between streams includes their random draws.
    return replace(digits.get_config().train.data, in_memory=False, directory=str(tmp_path_factory.mktemp("data")))


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
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import DataConfig
split = pipeline.load(DataConfig("digits", "digit", (0.0,), (1.0,), directory={str(tmp_path)!r}), "test")
print(next(split.train_batches(8, seed=0, start_step=0))["image"].dtype, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["uint8", "False"], done.stderr


def _first_batches(config, count, batch_size=32, start=0, threads=2, rows=None):
    split = pipeline.load(replace(config, reader_threads=threads), "train")
    batches = split.train_batches(batch_size, seed=7, start_step=start, rows=rows)
    return [next(batches) for _ in range(count)]


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(config):
    config = replace(config, augment=AugmentConfig())
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


def _rows_of_hosts(hosts, batch_size):
    """Four runs of rows each, as a mesh that follows the chips' network gives them."""
    runs = np.arange(batch_size).reshape(4, hosts, -1)
    return [np.sort(np.concatenate([runs[run, (host + run) % hosts] for run in range(4)])) for host in range(hosts)]


@pytest.mark.parametrize("hosts", [2, 4])
def test_every_host_makes_its_rows_of_the_one_hosts_batches(config, hosts):
    whole, whole_eval = _first_batches(config, 3, start=2), list(pipeline.load(config, "test").eval_batches(64))
    for rows, eval_rows in zip(_rows_of_hosts(hosts, 32), _rows_of_hosts(hosts, 64), strict=True):
        part = _first_batches(config, 3, start=2, rows=rows)
        eval_part = list(pipeline.load(config, "test").eval_batches(64, eval_rows))
        assert _bytes(part) == _bytes([{key: values[rows] for key, values in batch.items()} for batch in whole])
        expected = [{key: values[eval_rows] for key, values in batch.items()} for batch in whole_eval]
        assert _bytes(eval_part) == _bytes(expected)


def test_unknown_names_are_answered_with_the_known_ones(config):
    with pytest.raises(ValueError, match="Data set 'digit' is not prepared under .* Known: digits, cifar10"):
        builders.prepared("digit", config.directory)
    with pytest.raises(ValueError, match="Unknown label of digits: 'fine'. Known: closed_loop, digit"):
        pipeline.load(config, "train", "fine")
    with pytest.raises(ValueError, match="Unknown split of digits: 'val'. Known: train, validation, test"):
        pipeline.load(config, "val")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Thirty JPEG and PNG files of many sizes, of which two are bad."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(30):
        path = folder / "from" / "train" / f"class{number % 3}" / f"{number:02d}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    builders.prepare("photographs", folder / "from", folder / "data", "raise")
    return DataConfig(
        "photographs",
        "label",
        (0.0,),
        (1.0,),
        evaluation=square(16),
        augment=AugmentConfig(max_shift=3, flip=0.5),
        directory=str(folder / "data"),
    )


def _bytes(batches):
    return [{key: rows.tobytes() for key, rows in batch.items()} for batch in batches]


@pytest.mark.parametrize("processes", [0, 2])
def test_photographs_of_any_size_come_alike_with_and_without_reader_processes(photographs, processes):
    straight = _bytes(_first_batches(photographs, 8, batch_size=8))
    assert len({batch["image"] for batch in straight}) == 8
    restarted = _first_batches(replace(photographs, reader_processes=processes), 3, batch_size=8, start=5)
    assert _bytes(restarted) == straight[5:]
    images, labels = _whole(pipeline.load(photographs, "train"))
    data = pipeline.load(photographs, "train")
    assert (labels == data.labels()).all()
    as_torchvision = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(16), torchvision.transforms.CenterCrop(16)]
    )
    for position in range(0, 30, 7):
        np.testing.assert_array_equal(images[position], np.asarray(as_torchvision(data.image(position))))


def test_images_of_many_sizes_need_a_crop(photographs):
    with pytest.raises(ValueError, match="The images of photographs have many sizes: set evaluation.resize and"):
        pipeline.load(replace(photographs, evaluation=EvalTransformConfig()), "train")


def _with_bad(photographs, policy):
    """The split, two of whose images have gone bad on the disk since it was prepared."""
    data = pipeline.load(replace(photographs, bad_images=policy, augment=AugmentConfig()), "train")
    records = [dict(data.selection.records[index]) for index in range(len(data))]
    records[4]["image"], records[9]["image"] = records[4]["image"][:200], b"<html>"
    return replace(data, selection=replace(data.selection, records=records))


@pytest.mark.parametrize("policy", ["skip", "convert"])
def test_an_image_left_out_is_named_once_replaced_in_training_and_masked_in_evaluation(photographs, policy, caplog):
    data = _with_bad(photographs, policy)
    batches = data.train_batches(10, seed=0, start_step=0)
    shown = [next(batches) for _ in range(6)]  # two epochs
    expected = {np.asarray(data.eval_transform(data.image(i))).tobytes() for i in range(30) if i not in (4, 9)}
    assert {image.tobytes() for batch in shown for image in batch["image"]} == expected
    assert len(caplog.messages) == 2 and caplog.messages[1].endswith("(2 so far)")
    for index, flaw in ((4, "cannot be decoded"), (9, "not an image")):
        named = f"image {index} {data.selection.records[index]['file'].decode()}: {flaw}"
        assert any(named in message for message in caplog.messages)
    masks = np.concatenate([batch["mask"] for batch in data.eval_batches(16)])
    assert np.flatnonzero(~masks).tolist() == [4, 9, 30, 31]
    assert len(caplog.messages) == 4


def test_under_raise_a_bad_image_stops_training_and_evaluation_by_its_name(photographs):
    data = _with_bad(photographs, "raise")
    with pytest.raises(ValueError, match="photographs train: image [49] train/class"):
        for batch, _ in zip(data.train_batches(10, 0, 0), range(3), strict=False):
            assert batch
    with pytest.raises(ValueError, match="photographs train: image 4 "):
        list(data.eval_batches(16))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 40)
    rng.shuffle(labels)
    np.savez(folder / "small.npz", images=rng.integers(1, 256, (200, 6, 6, 3), dtype=np.uint8), labels=labels)
    builders.prepare("small", folder / "small.npz", folder)
    return DataConfig(
        "small",
        "label",
        (0.0,),
        (1.0,),
        augment=AugmentConfig(max_shift=1, flip=0.5),
        directory=str(folder),
        in_memory=True,
    )


def test_batches_from_memory_hold_the_images_in_the_streams_order(small):
    still = replace(small, augment=AugmentConfig())
    streamed = _bytes(_first_batches(replace(still, in_memory=False), 14))  # 200 images: more than two epochs
    assert _bytes(_first_batches(still, 14)) == streamed


def test_batches_from_memory_are_shifted_and_flipped_uniformly(small):
    data = pipeline.load(small, "train")
    originals = {}
    for position in range(len(data)):
        padded = np.pad(np.asarray(data.image(position)), ((1, 1), (1, 1), (0, 0)))
        for case in range(18):
            window = padded[case % 3 : case % 3 + 6, case // 3 % 3 : case // 3 % 3 + 6]
            originals[(window[:, ::-1] if case > 8 else window).tobytes()] = case
    counts = np.zeros(18)
    for batch in _first_batches(small, 200):
        for image in batch["image"]:
            counts[originals[image.tobytes()]] += 1  # KeyError: not a shift, or not flipped
    # 355 expected each; 18 cells: chi-squared with 17 degrees of freedom stays below 41 in 999 of 1,000 cases.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 41


@pytest.mark.parametrize("hosts", [2, 4])
def test_batches_from_memory_are_the_same_on_any_number_of_hosts_and_after_a_restart(small, hosts):
    whole = _first_batches(small, 9)
    assert _bytes(_first_batches(small, 2, start=7)) == _bytes(whole[7:])
    for rows in _rows_of_hosts(hosts, 32):
        expected = [{key: values[rows] for key, values in batch.items()} for batch in whole]
        assert _bytes(_first_batches(small, 9, rows=rows)) == _bytes(expected)


def test_parts_of_splits_are_tfds_parts(small):
    labels = pipeline.load(small, "train").labels()
    data = replace(small, train_split="train[:90%]", validation_split="train[180:]")
    assert (pipeline.load(data, "train").labels() == labels[:180]).all()
    assert (pipeline.load(data, "validation").labels() == labels[180:]).all()
    with pytest.raises(ValueError, match=r"Unknown split of small: 'test'. Known: train; parts such as"):
        pipeline.load(data, "test")
    with pytest.raises(ValueError, match="is empty"):
        pipeline.load(replace(small, train_split="train[200:]"), "train")


def _reference_long_tail(labels, classes, factor):
    """Cao et al.'s construction, https://github.com/kaidic/LDAM-DRW, imbalance_cifar.py, in its own global seed."""
    np.random.seed(0)
    chosen = []
    for label, count in enumerate(int(len(labels) / classes * factor ** (c / (classes - 1.0))) for c in range(classes)):
        of_class = np.where(np.array(labels) == label)[0]
        np.random.shuffle(of_class)
        chosen.extend(of_class[:count])
    return chosen


@pytest.mark.parametrize("factor", [0.03, 0.05, 0.1, 1.0])
def test_a_long_tail_holds_the_images_of_the_reference_construction(small, factor):
    data = pipeline.load(replace(small, long_tail=1 / factor), "train")
    expected = _reference_long_tail(pipeline.load(small, "train").labels(), 5, factor)
    assert data.selection.indices.tolist() == expected
    assert (data.labels() == pipeline.load(small, "train").labels()[expected]).all()


def test_images_that_validate_keep_their_balance_also_where_they_are_a_part_of_the_training_split(small):
    whole = replace(small, train_split="train[:50%]", validation_split="train[50%:]")
    tail = replace(whole, long_tail=5.0)
    balanced, kept = (pipeline.load(data, "validation").labels() for data in (whole, tail))
    np.testing.assert_array_equal(balanced, kept)
    assert len(pipeline.load(tail, "train")) < len(pipeline.load(whole, "train"))


def test_a_long_tail_is_the_same_images_whichever_of_their_labels_is_asked_for(config):
    tail = replace(config, label="digit", long_tail=10.0)
    superclass = pipeline.load(tail, "train", "closed_loop")
    assert (superclass.selection.indices == pipeline.load(tail, "train").selection.indices).all()
    assert (superclass.labels() == np.isin(pipeline.load(tail, "train").labels(), [0, 6, 8, 9])).all()


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_long_tails_of_cifar_have_the_published_counts_and_the_references_images():
    counts = {10: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 100: 10_847}
    for classes in (10, 100):
        with np.load(SHARED / f"cifar{classes}_train.npz") as file:
            labels = file["labels"]
        found = views.long_tail_indices(labels, classes, 100.0)
        assert found.tolist() == _reference_long_tail(labels, classes, 0.01)
        assert counts[classes] == (np.bincount(labels[found]).tolist() if classes == 10 else len(found))


def test_synthetic_images_are_functions_of_their_index(tmp_path):
    config = DataConfig(
        "synthetic", "label", (0.0,), (1.0,), synthetic_images=50, synthetic_classes=7, synthetic_size=12
    )
    data = pipeline.load(config, "train")
    assert (len(data), data.num_classes, data.image_shape) == (50, 7, (12, 12, 3))
    images, labels = _whole(data)
    assert len({image.tobytes() for image in images}) == 50
    assert (labels == np.arange(50) % 7).all()
    first = _first_batches(config, 1, batch_size=16)[0]
    by_bytes = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert [by_bytes[image.tobytes()] for image in first["image"]] == first["label"].tolist()


def test_five_parts_of_imagenet_are_balanced_and_disjoint():
    sizes = {
        "living_9": (9, 72),
        "mixed_10": (10, 60),
        "mixed_13": (13, 78),
        "geirhos_16": (16, 32),
        "big_12": (12, 240),
    }
    for name, (superclasses, total) in sizes.items():
        part = views.superclasses(name)
        assert (len(part.names), len(part.wnids), len(set(part.wnids))) == (superclasses, total, total)
        assert set(np.bincount(part.superclass_of)) == {total // superclasses}


def test_repeated_images_go_to_consecutive_groups_as_with_torchvisions_sampler():
    """RASampler: a permutation, each image `repeats` times in a row, dealt out to the GPUs, as long as the data set."""
    count, repeats, gpus, per_gpu, seed = 96, 3, 4, 8, 5
    config = DataConfig(
        "synthetic",
        "label",
        (0.0,),
        (1.0,),
        repeats=repeats,
        synthetic_size=8,
        synthetic_images=count,
        synthetic_classes=count,
    )
    batches = pipeline.load(config, "train").train_batches(gpus * per_gpu, seed, 0, per_gpu)
    for epoch in range(2):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        dealt = np.repeat(order, repeats)[:count]
        of_gpu = [dealt[gpu::gpus] for gpu in range(gpus)]
        for step in range(count // (gpus * per_gpu)):
            expected = np.concatenate([own[step * per_gpu : (step + 1) * per_gpu] for own in of_gpu])
            assert next(batches)["label"].tolist() == expected.tolist()


def test_images_are_cropped_and_erased_by_the_config(photographs):
    """A crop of another size than evaluation's, and a box for each image inside of it."""
    augment = AugmentConfig(crop_size=12, flip=0.5, random_erase=1.0)
    data = pipeline.load(replace(photographs, augment=augment, evaluation=EvalTransformConfig(20, 16)), "train")
    assert (data.image_shape, data.eval_shape) == ((12, 12, 3), (16, 16, 3))
    batch = next(data.train_batches(10, 0, 0))
    assert batch["image"].shape == (10, 12, 12, 3)
    top, left, height, width = batch["erase_box"].T
    assert (height * width > 0).any() and (top + height <= 12).all() and (left + width <= 12).all()
    assert next(data.eval_batches(10))["image"].shape == (10, 16, 16, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"in_memory": True, "augment": AugmentConfig(crop_size=8)},
            "can be shifted and flipped",
        ),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"augment": AugmentConfig(flip=2.0)}, "flip must be a probability"),
    ],
)
def test_what_no_stream_can_do_is_said(config, changes, message):
    with pytest.raises(ValueError, match=message):
        pipeline.load(replace(config, **changes), "train")
