"""The list of runs and the comparison of two, from run folders written by hand; NumPy is the oracle."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

import vcreg_jax as vc
from configs import digits, strength_digits
from train.__main__ import main
from train.files import json_files
from train.reports import runs
from train.run.folder import claim, write_json
from train.run.log import MetricsFile

RNG = np.random.default_rng(0)
ACCURACIES = {"baseline": RNG.uniform(0.4, 0.6, (3, 2)), "VCReg": RNG.uniform(0.4, 0.6, (3, 2))}


def begun(directory, name, seeds=(0, 1, 2), finished=3, **train):
    """An experiment's folder in which the first `finished` seeds have results."""
    config = digits.get_config()
    targets = {"digit": config.targets["digit"]}
    config = replace(
        config,
        name=name,
        seeds=seeds,
        runs_directory=str(directory),
        targets=targets,
        train=replace(config.train, **train),
    )
    folder = directory / name
    with claim(folder, config):
        pass
    for arm, values in ACCURACIES.items():
        for seed, (own, probe) in list(zip(seeds, values.tolist(), strict=False))[:finished]:
            (folder / arm / f"seed{seed}").mkdir(parents=True)
            target = {"accuracy": probe, "protocol": "a protocol", "converged": True, "effective_rank": 7.0}
            write_json(folder / arm / f"seed{seed}" / "result.json", {"accuracy": own, "targets": {"digit": target}})
    if finished == len(seeds):
        write_json(folder / "experiment.json", {"title": name})
    return config


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_every_run_is_listed_with_its_state_its_last_step_and_its_accuracies(tmp_path, capsys):
    begun(tmp_path, "whole")
    half = begun(tmp_path, "half", finished=1)
    log = MetricsFile(_made(tmp_path), 0)
    for step in (0, 10, 120):
        log.write(step, "train", {"loss": 0.5})
    earlier = tmp_path / "half" / "baseline" / "seed0" / "metrics.jsonl"
    MetricsFile(earlier, 0).write(490, "train", {"loss": 0.5})
    os.utime(earlier, (0, 0))
    with (tmp_path / "half" / "VCReg" / "seed1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 130, "spl')  # being written
    with claim(tmp_path / "grid", strength_digits.get_config()):
        pass
    (tmp_path / "no_run").mkdir()
    ages = {"whole": 300, "half": 100, "grid": 200}
    for name, age in ages.items():
        for path in (tmp_path / name).rglob("*.json*"):
            os.utime(path, (max(path.stat().st_mtime - age, 0),) * 2)
    with claim(tmp_path / "half", half):
        main(["runs", "--directory", str(tmp_path)])
    header, _, *lines = cells(capsys.readouterr().out)
    table = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert [*table] == ["half", "grid", "whole"], "the one that was written to last comes first"
    assert (table["half"]["state"], table["half"]["networks"], table["half"]["step"]) == (
        "running",
        "2 of 6",
        "120 of 500",
    )
    assert (table["whole"]["state"], table["whole"]["networks"]) == ("finished", "6 of 6")
    assert (table["grid"]["state"], table["grid"]["networks"], table["grid"]["accuracy"]) == ("stopped", "Grid", "")
    expected = [f"{arm} {100 * v[:, 1].mean():.2f} ± {100 * v[:, 1].std(ddof=1):.2f}" for arm, v in ACCURACIES.items()]
    assert table["whole"]["accuracy"] == f"{', '.join(expected)} (digit, probe)"
    assert runs.read(tmp_path / "half").state == "stopped", "when its process has let go of it"


def _made(tmp_path):
    folder = tmp_path / "half" / "VCReg" / "seed1"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "metrics.jsonl"


def test_two_runs_are_compared_field_by_field_and_accuracy_by_accuracy(tmp_path, capsys):
    begun(tmp_path, "one")
    begun(tmp_path, "other", seeds=(0, 1), finished=2, steps=250)
    main(["runs", "one", str(tmp_path / "other"), "--directory", str(tmp_path)])
    said = capsys.readouterr().out
    lines = cells(said)
    config = {line[0]: line[1:] for line in lines if len(line) == 3}
    assert config["train.steps"] == ["500", "250"] and config["name"] == ["'one'", "'other'"]
    assert config["seeds"] == ["[0, 1, 2]", "[0, 1]"]
    assert {name for name in config if "-" not in name} == {"config", "name", "seeds", "train.steps"}
    table = {tuple(line[:2]): line[2:] for line in lines if len(line) == 5}
    for arm, values in ACCURACIES.items():
        for column, label in enumerate(("closed_loop", "digit, probe")):
            one, other = 100 * values[:, column], 100 * values[:2, column]
            gain, error = other.mean() - one.mean(), np.sqrt(one.var(ddof=1) / 3 + other.var(ddof=1) / 2)
            assert table[arm, label] == [
                f"{one.mean():.2f} ± {one.std(ddof=1):.2f}",
                f"{other.mean():.2f} ± {other.std(ddof=1):.2f}",
                f"{gain:+.2f} ± {error:.2f}".replace("-", "\N{MINUS SIGN}"),
            ]
    assert "one: n = 3, finished; other: n = 2, finished" in said
    main(["runs", "one", "one", "--directory", str(tmp_path)])
    assert capsys.readouterr().out.startswith("The configs are the same.")


def test_of_another_regularizer_the_config_says_which(tmp_path):
    one = begun(tmp_path, "one")
    stronger = replace(one, name="other", arms={**one.arms, "VCReg": vc.Sites(block=vc.VCReg(alpha=0.5, beta=3.0))})
    with claim(tmp_path / "other", stronger):
        pass
    said = runs.compare(runs.read(tmp_path / "one"), runs.read(tmp_path / "other"))
    config = {line[0]: line[1:] for line in cells(said) if len(line) == 3}
    assert config["arms.VCReg.block.beta"] == [str(one.arms["VCReg"].block.beta), "3.0"]
    table = [line for line in cells(said) if len(line) == 5]
    assert [line[3] for line in table[2:]] == 4 * ["not run"] and [line[4] for line in table[2:]] == 4 * [""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "compares two runs, got 1; without any it lists all"),
        (["one", "nothing"], "nothing holds no run: it has no config.json"),
    ],
)
def test_what_is_no_pair_of_runs_is_one_line(tmp_path, capsys, arguments, message):
    begun(tmp_path, "one", finished=0)
    with pytest.raises(SystemExit) as stop:
        main(["runs", *arguments, "--directory", str(tmp_path)])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_damaged_result_is_named_and_an_empty_directory_said_to_be_empty(tmp_path, capsys):
    main(["runs", "--directory", str(tmp_path / "runs")])
    assert capsys.readouterr().out == f"There is no run under {tmp_path / 'runs'}.\n"
    begun(tmp_path, "one")
    path = tmp_path / "one" / "VCReg" / "seed0" / "result.json"
    found = json_files.read(path)
    path.write_text(json.dumps(found | {"accuracy": 0.99, "sha256": "0"}))
    with pytest.raises(ValueError, match="VCReg/seed0/result.json is not what was written"):
        runs.list_runs(tmp_path)
