import subprocess
import sys
from pathlib import Path

import pytest

from train.__main__ import main

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "digits.py")
ALONE = ("--num-processes", "1")  # JAX may be asked for other hosts only before it has begun to work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", CONFIG, "--train.stepz", "3"], "Unrecognized options: --train.stepz"),
        (["run", CONFIG, "--train.stepz", "3"], "Perhaps you meant: --train.steps INT"),
        (["run", CONFIG, "--train.steps", "many"], "Error parsing --train.steps: invalid literal for int()"),
        (["run", CONFIG, "--arms.VCReg.block.beta", "x"], "Error parsing --arms.VCReg.block.beta"),
        (["run", CONFIG, "--arms.VCReg.block.beta", "-1"], "VCReg needs beta >= 0, got -1.0"),
        (
            ["run", CONFIG, *ALONE, "--train.batch-size", "100"],
            "batch_size must divide by the 8 devices, got 100. Nearest: 96 or 104.",
        ),
        (
            ["run", CONFIG, *ALONE, "--train.model.name", "resnet50x"],
            "Unknown model 'resnet50x'. Did you mean 'resnet50'?",
        ),
        (["run", CONFIG, *ALONE, "--train.model.name", "vit_b_16"], "224x224"),
        (["run", CONFIG, *ALONE, "--seeds"], "An experiment needs a seed"),
        (["run", "configs/nothing.py"], "There is no config file configs/nothing.py. Known: "),
        (["run"], "`python -m train run` needs a config file"),
        (
            ["walk"],
            "Unknown command 'walk'. Known: run, prepare, data, report, analyse, convert, export, crosscheck, bench, p",
        ),
        (["report", "nowhere"], "nowhere/experiment.json is missing"),
        (["report", "/nowhere/at/all"], "/nowhere/at/all/experiment.json is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs" / "digits").exists()  # nothing was begun


def test_the_traceback_is_shown_when_asked_for():
    with pytest.raises(ValueError, match="There is no config file"):
        main(["--traceback", "run", "configs/nothing.py"])


def test_a_real_process_ends_with_status_two_and_no_traceback():
    command = [sys.executable, "-m", "train", "run", "configs/digits.py", "--train.stepz", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_help_lists_every_field_with_its_type_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", CONFIG, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--train.optimizer.schedule.peak-learning-rate FLOAT" in text
    assert "--arms.VCReg.block.alpha FLOAT" in text and "(default: 2.56)" in text
