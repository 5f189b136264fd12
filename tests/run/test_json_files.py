import json

import numpy as np
import pytest

from train.__main__ import main
from train.files import json_files
from train.run import folder
from train.run.log import MetricsFile

VALUES = {"accuracy": 0.125, "targets": {"digits": {"l2": 1e-05, "name": "naïve"}}, "steps": [1, 2]}
RNG = np.random.default_rng(0)


def _flips(path):
    """The file with each of its bits flipped, one at a time; then as it was."""
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        yield bit
    path.write_bytes(content)


@pytest.mark.parametrize("value", [VALUES, [VALUES, {"accuracy": 0.5}]])
def test_no_flipped_bit_of_a_file_changes_what_is_read_in_silence(tmp_path, value, capsys):
    path, harmless = tmp_path / "result.json", 0
    json_files.write(path, value)
    assert json_files.read(path) == value
    for bit in _flips(path):
        try:
            found = json_files.read(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        if "result.json has no hash" not in capsys.readouterr().err:
            assert found == value, bit  # 1e-05 is 1E-05, and \u00ef \u00EF
            harmless += 1
    assert harmless <= 8


def test_a_file_without_a_hash_is_taken_with_a_note(tmp_path, capsys):
    (tmp_path / "old.json").write_text(json.dumps(VALUES))
    assert json_files.read(tmp_path / "old.json") == VALUES
    assert capsys.readouterr().err == f"note: {tmp_path / 'old.json'} has no hash: it is taken as it is.\n"


def test_a_part_of_a_file_can_be_written_as_a_file_of_its_own(tmp_path):
    json_files.write(tmp_path / "whole.json", [VALUES, {"accuracy": 0.5}])
    part = json.loads((tmp_path / "whole.json").read_text())[0]  # with its hash, as any JSON reader has it
    json_files.write(tmp_path / "part.json", part | {"accuracy": 0.25})
    assert json_files.read(tmp_path / "part.json") == VALUES | {"accuracy": 0.25}


def test_no_flipped_bit_of_metrics_is_read_in_silence(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in range(3):
        metrics.write(step, "train", {"loss": 1 / (step + 1)})
    metrics = MetricsFile(path, 2)  # a run that goes on: its lines follow the others
    metrics.write(2, "train", {"loss": 0.5})
    metrics.warn(3, "a warning")
    good = json_files.read_lines(path.read_text(), path)
    assert [line["step"] for line in good] == [0, 1, 2, 3]
    for bit in _flips(path):
        try:
            found = json_files.read_lines(path.read_bytes().decode(errors="replace"), path)
        except ValueError as error:
            assert f"{path}, line" in str(error)
            continue
        assert found == good or "without a hash" in capsys.readouterr().err, bit
    lines = path.read_text().splitlines(keepends=True)
    with pytest.raises(ValueError, match="line 2, is not what was written"):
        json_files.read_lines("".join([lines[0], *lines[2:]]), path)  # one is gone


def test_lines_are_appended_in_place_of_a_torn_one(tmp_path):
    path = tmp_path / "losses.jsonl"
    json_files.append(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    json_files.append(path, {"step": 2})
    assert [line["step"] for line in json_files.read_lines(path.read_text(), path)] == [1, 2]


def test_a_run_folder_keeps_to_its_data(tmp_path):
    with folder.claim(tmp_path, {"name": "a"}, {"digits train": "1", "digits test": "2"}):
        pass
    with folder.claim(tmp_path, {"name": "a"}, {"digits train": "1"}):
        pass
    with (
        pytest.raises(ValueError, match="holds runs on other images or labels of digits test"),
        folder.claim(tmp_path, {"name": "a"}, {"digits train": "1", "digits test": "3"}),
    ):
        pass


def test_the_report_refuses_numbers_and_pictures_that_are_not_what_was_written(tmp_path, capsys):
    seed = tmp_path / "VCReg" / "seed0"
    seed.mkdir(parents=True)
    np.savez(seed / "features.npz", l2=np.arange(3.0))
    result = {"accuracy": 0.5, folder.ARRAYS_HASH: folder.file_hash(seed / "features.npz")}
    json_files.write(seed / "result.json", result)
    folder.check(tmp_path)
    np.savez(seed / "features.npz", l2=np.arange(4.0))
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "features.npz is not what was written" in capsys.readouterr().err
    (seed / "result.json").write_text((seed / "result.json").read_text().replace("0.5", "0.7"))
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "result.json is not what was written" in capsys.readouterr().err
