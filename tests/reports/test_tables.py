"""Tables of finished transfers, from run folders written by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs import table2_imagenet, table4_simclr, table4_vicreg, table5_superclass, table7_placement
from train import config_file
from train.__main__ import main
from train.reports import tables

COMMAND = "python -m train run table5_superclass"
RNG = np.random.default_rng(0)


@pytest.fixture
def config(tmp_path):
    return replace(table5_superclass.get_config(), runs_directory=str(tmp_path))


def finished(config, arm, seed, pretraining, accuracy, converged=True):
    folder = Path(config.runs_directory) / config.name / arm / f"seed{seed}"
    folder.mkdir(parents=True)
    target = {"accuracy": accuracy, "protocol": "a protocol", "converged": converged, "effective_rank": 7.0}
    found = {"accuracy": pretraining, "targets": dict.fromkeys(config.targets, target)}
    (folder / "result.json").write_text(json.dumps(found))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_deviations_and_standard_errors_are_numpys(config):
    none, vcreg = RNG.uniform(0.4, 0.6, (3, 2)), RNG.uniform(0.4, 0.6, (4, 2))
    for arm, values in (("none", none), ("VCReg", vcreg)):
        for seed, pair in enumerate(values.tolist()):
            finished(config, arm, seed, *pair)
    gathered = tables.gather(config, COMMAND)
    lines = [cells(line) for line in tables.text(gathered).splitlines() if line.startswith("|")]
    assert lines[0] == ["", "", "pretraining", "cifar100"]
    assert lines[2] == ["none", "paper", "", "60.7"]
    mean, std = 100 * none.mean(axis=0), 100 * none.std(axis=0, ddof=1)
    assert lines[3] == ["none", "ours, n = 3", *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, std, strict=True))]
    assert lines[4] == ["VCReg", "paper", "", "72.9"]
    assert lines[5][1] == "ours, n = 4"
    gain = 100 * (vcreg.mean(axis=0) - none.mean(axis=0))
    error = 100 * np.sqrt(vcreg.var(axis=0, ddof=1) / 4 + none.var(axis=0, ddof=1) / 3)
    expected = [f"{g:+.2f} ± {e:.2f}".replace("-", "\N{MINUS SIGN}") for g, e in zip(gain, error, strict=True)]
    assert lines[6] == ["VCReg less none", "ours", *expected]
    assert "The run is not finished." in tables.text(gathered)


def test_what_was_not_run_says_so(config):
    none_paper, none, vcreg_paper, vcreg = [line[2:] for line in tables.rows(tables.gather(config, COMMAND))[1:]]
    assert (none_paper, vcreg_paper) == (["", "60.7"], ["", "72.9"])
    assert none == vcreg == ["not run", "not run"]
    finished(config, "none", 0, 0.5, 0.25, converged=False)
    text = tables.text(tables.gather(config, COMMAND))
    assert [cells(line)[1:] for line in text.splitlines() if line.startswith("| none")][1] == [
        "ours, n = 1",
        "50.00",
        "25.00",
    ]
    assert "less none" not in text
    assert "stopped before it converged: none, seed 0, cifar100" in text


def test_a_result_of_another_config_is_named(config):
    finished(replace(config, targets={"other": config.targets["cifar100"]}), "none", 0, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"none/seed0/result.json is no result of this config .KeyError: 'cifar100'"):
        tables.gather(config, COMMAND)


def test_the_page_needs_no_network_and_has_a_picture_of_what_ran(config, tmp_path):
    for arm in config.arms:
        for seed in range(2):
            finished(config, arm, seed, 0.5 + 0.01 * seed, 0.3)
    page = tables.write("table5", [tables.gather(config, COMMAND)], tmp_path / "out").read_text()
    assert page.count("<svg") == 2
    assert "50.00%, 51.00%" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    numbers = json.loads((tmp_path / "out" / "table5.json").read_text())["table5_cifar100"]
    assert numbers["accuracy"]["VCReg"]["pretraining"] == {"0": 50.0, "1": 51.0}


def test_the_command_gathers_every_column_of_a_table(capsys, tmp_path, monkeypatch):
    configs = Path(table5_superclass.__file__).parent
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(configs)
    main(["report", "table5"])
    said = capsys.readouterr().out
    for name in ("cifar100", "living_9", "mixed_10", "mixed_13", "geirhos_16", "big_12"):
        assert f"Table 5: {name}" in said
    commands = re.findall(r"^Not run. To run it: python -m train run (.*)$", said, re.MULTILINE)
    assert len(commands) == 8 and {"table5_small", "table5_superclass --point living_9"} < {*commands}
    for file, *point in map(str.split, commands):
        assert config_file.load(config_file.find(file), *point[1:]).title in said
    assert (tmp_path / "runs" / "table5.html").exists()
    main(["report", "table4"])
    said = capsys.readouterr().out
    for title in ("Table 4: SimCLR", "Table 4: VICReg", "Table 4 in small: SimCLR", "Table 4 in small: VICReg"):
        assert title in said
    assert said.count("Not run.") == 4
    assert "41.3" in said  # the paper's, of SimCLR with VCReg on iNaturalist 2018
    with pytest.raises(SystemExit, match="2"):
        main(["report", "table9"])


def test_the_papers_numbers_stand_at_their_arms_and_targets():
    # Table 2: of VCReg's rows iNat18 and DTD; Table 7: Cars of blocks; Table 5: living_9.
    points = table2_imagenet.sweep()
    assert [points[name].paper["VCReg"]["iNat18"] for name in points] == [45.3, 52.3, 40.6]
    assert [points[name].paper["none"]["DTD"] for name in points] == [68.7, 72.9, 66.1]
    assert table7_placement.get_config().paper["blocks"]["Cars"] == 48.1
    assert table5_superclass.sweep()["living_9"].paper["VCReg"] == {"living_9": 62.2}
    self_supervised = table4_simclr.get_config(), table4_vicreg.get_config()
    assert [config.paper["VCReg"]["Aircraft"] for config in self_supervised] == [61.9, 54.2]
    others = *table5_superclass.sweep().values(), *table7_placement.sweep().values(), *self_supervised
    for config in (*points.values(), *others):
        assert config.paper.keys() == config.arms.keys()
        assert all(row.keys() - {"pretraining"} == config.targets.keys() for row in config.paper.values())
