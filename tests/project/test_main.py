import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vcreg_jax as vc
from train import config_file
from train.__main__ import main
from train.benchmarks import preflight
from train.commands import COMMANDS, GROUPS, Data

ROOT = Path(__file__).parents[2]
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
        (["run"], "CONFIG such as digits or configs/digits.py (required)"),
        (
            ["walk"],
            "Unknown command 'walk'. Known: run, try, report, runs, prepare, data, features, probe, analyse, doctor, ",
        ),
        (["rum", CONFIG], "Unknown command 'rum'. Did you mean 'run'?"),
        (["analyse"], "`python -m train analyse` needs a run folder"),
        (["prepare", "a", "--form", "b"], "Perhaps you meant: --from"),
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


def test_the_fields_of_a_config_are_listed_with_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", CONFIG, "--fields"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--train.optimizer.schedule.peak-learning-rate FLOAT" in text
    assert "--arms.VCReg.block.alpha FLOAT" in text and "(default: 2.56)" in text


def test_a_config_is_found_by_its_name_and_a_misspelt_one_is_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert config_file.find("digits") == config_file.find("configs/digits.py") == Path("configs/digits.py")
    with pytest.raises(
        ValueError, match=r"no config file digit. Did you mean 'digits'\? Known: digits, digits_sampled"
    ):
        config_file.find("digit")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["bench"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_short_and_names_every_command(arguments, capsys):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 60
    known = {(): [*COMMANDS, *GROUPS], ("--help",): [*COMMANDS, *GROUPS], ("bench",): GROUPS["bench"][1]()}
    for name in known.get(tuple(arguments), arguments[:1]):
        assert f" {name} " in text


def test_the_version_is_the_packages(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == vc.__version__ == importlib.metadata.version("vcreg-jax")


@pytest.mark.parametrize("config", ["table5_small", "strength_digits", "imagenet_resnet50", "table3_small_cifar10"])
def test_preflight_takes_a_config_of_every_kind_that_trains_on_images(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = []
    monkeypatch.setattr(
        preflight, "compile_arm", lambda plan, sites: planned.append(sites) or preflight.TooLarge(1e12, 1.0)
    )
    options = ["--topology", "v5e:2x2", "--image-shape", "32", "32", "3", "--num-classes", "10"]
    with pytest.raises(SystemExit, match="1"):  # since nothing fits
        main(["preflight", config, *options, "--train.batch-size", "64"])
    assert planned[0] == vc.Sites() and len(planned) > 1 and vc.Sites() not in planned[1:]


def test_what_a_command_cannot_work_on_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    grid = tmp_path / "grid"
    grid.mkdir()
    (grid / "config.json").write_text(json.dumps({"class": "Grid", "name": "grid"}))
    for arguments, message in (
        (["preflight", "fig1_two_moons", "--topology", "v5e:2x2"], "fig1_two_moons is a TwoMoons"),
        (["analyse", str(grid)], "is of a Grid. Of an Experiment alone each network is kept."),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_ctrl_c_is_one_line_that_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(Data, "run", lambda self, command: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        main(["data", "digits"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "error: stopped by Ctrl-C. Start it again to go on.\n"


def test_of_a_messages_line_breaks_those_before_list_entries_stay(monkeypatch, capsys):
    def run(self, command):
        raise ValueError("needed:\n  a.tar\n  b.tar\nand\nmore")

    monkeypatch.setattr(Data, "run", run)
    with pytest.raises(SystemExit):
        main(["data", "digits"])
    assert capsys.readouterr().err == "error: needed:\n  a.tar\n  b.tar and more\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import train.nothing\n", "line 1: ModuleNotFoundError: No module named 'train.nothing'"),
        ("x = 1\n\ndef get_config(:\n", "line 3: SyntaxError: "),
        ("def get_config():\n    return Experiment()\n", "line 2: NameError: name 'Experiment' is not defined"),
        ("def get_config():\n    return None.name\n\ndef sweep():\n    return {}[1]\n", "line 2: AttributeError"),
    ],
)
def test_an_error_in_a_config_is_one_line_with_its_place(tmp_path, capsys, code, message):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(path)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {path}, {message}")
