import json
import shutil

import numpy as np
import pytest

from train.augment import EvalTransformConfig
from train.config import DataConfig
from train.data import builders, hashes, pipeline
from train.data.sources import in_memory

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 8, 8, 3), np.uint8)
LABELS = np.arange(20) % 2


def _prepared(directory, images=IMAGES, labels=LABELS):
    contents = in_memory(
        {"label": ["cat", "dog"]}, {"train": (images, {"label": labels}), "test": (images[:4], {"label": labels[:4]})}
    )
    return builders.write("pets", contents, "", directory, "raise")


def _loaded(directory, split="train"):
    pipeline.load.cache_clear()
    square = EvalTransformConfig(8, 8)
    return pipeline.load(
        DataConfig("pets", "label", (0.0,), (1.0,), evaluation=square, directory=str(directory)), split
    )


def _flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_of_a_prepared_data_set_is_refused_by_its_name(tmp_path):
    folder = _prepared(tmp_path / "good")
    names = sorted(path.name for path in folder.iterdir())
    assert hashes.FILE in names and len(names) >= 8
    for name in names:
        for _ in range(3):
            shutil.rmtree(tmp_path / "bad", ignore_errors=True)
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            file = tmp_path / "bad" / "pets" / "1.0.0" / name
            _flip(file, int(RNG.integers(8 * file.stat().st_size)))
            with pytest.raises(ValueError, match=rf"{name}.*prepare the data set again"):
                _loaded(tmp_path / "bad"), _loaded(tmp_path / "bad", "test")


def test_the_same_images_are_the_same_data_wherever_they_are_prepared_and_no_others_are(tmp_path):
    other, last = IMAGES.copy(), LABELS.copy()
    other[4, 0, 0, 0] ^= 1
    last[-1] ^= 1
    variants = {
        "again": (IMAGES, LABELS),
        "pixel": (other, LABELS),
        "label": (IMAGES, last),
        "order": (IMAGES[::-1], LABELS),
    }
    _prepared(tmp_path / "first")
    first = _loaded(tmp_path / "first").selection.fingerprint()
    for name, (images, labels) in variants.items():
        _prepared(tmp_path / name, images, labels)
        same = _loaded(tmp_path / name).selection.fingerprint() == first
        assert same == (name == "again"), name


def test_a_data_set_without_hashes_is_taken_with_a_note_and_checked_from_then_on(tmp_path, capsys):
    folder = _prepared(tmp_path)
    written, before = (folder / hashes.FILE).read_text(), _loaded(tmp_path).selection.fingerprint()
    for name in (hashes.FILE, "labels-train.npz", "labels-test.npz"):
        (folder / name).unlink()
    data = _loaded(tmp_path)
    assert "has no hashes.json: its files are taken as they are" in capsys.readouterr().err
    assert data.selection.fingerprint() == before
    assert json.loads((folder / hashes.FILE).read_text())["splits"] == json.loads(written)["splits"]
    np.testing.assert_array_equal(data.labels(), LABELS)
    _flip(folder / "labels-train.npz", 800)
    with pytest.raises(ValueError, match="labels-train.npz"):
        _loaded(tmp_path)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_strangers_data_set_runs_no_code(tmp_path, monkeypatch, key, sealed):
    """TFDS imports any module that `features.json` names."""
    folder = _prepared(tmp_path / "data")
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["file"] = {key: "evil.Feature", "text": {}, "content": {}}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / hashes.FILE).unlink()
    if sealed:
        hashes.write(folder, {"train": "0", "test": "0"})
    with pytest.raises(ValueError, match=r"names 'evil.Feature', which is none of TFDS's .*: refused"):
        _loaded(tmp_path / "data")
    assert not (tmp_path / "ran").exists()


def test_a_disk_that_is_full_at_the_end_of_preparing_leaves_nothing_that_counts_as_done(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builders.labels, "save", full)
    with pytest.raises(OSError, match="No space left"):
        _prepared(tmp_path)
    assert not (tmp_path / "pets" / "1.0.0").exists()


def test_a_damaged_description_of_a_data_set_is_one_error(tmp_path):
    folder = _prepared(tmp_path)
    (folder / hashes.FILE).unlink()
    for content in (b"{", b"\xff\xfe", b'{"name": 3, "splits": 1}', b"[]"):
        (folder / "dataset_info.json").write_bytes(content)
        with pytest.raises(ValueError, match="1.0.0 cannot be read: .* Prepare it again"):
            _loaded(tmp_path)
