import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vcreg_jax as vc
from configs import digits
from train.config import Experiment, MeshConfig
from train.files import json_files
from train.run import resume
from train.run.folder import claim
from train.run.log import MetricsFile
from train.trainer.prepare import prepare

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from train.run.folder import claim
with claim(Path(sys.argv[1]), {}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone_also_by_kill_9(tmp_path):
    command, environment = [sys.executable, "-c", HOLD, str(tmp_path)], os.environ | {"JAX_PLATFORMS": "cpu"}
    holder = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refused = (
            rf"{tmp_path} is in use by process {holder.pid} on \S+ since \d{{4}}-.*Wait for its end, or give another"
        )
        for _ in range(2):
            with pytest.raises(ValueError, match=refused), claim(tmp_path, {}):
                pass
    finally:
        holder.kill()
        holder.communicate()
    assert str(holder.pid) in (tmp_path / "lock").read_text()  # the dead process's
    with claim(tmp_path, {}):
        assert str(holder.pid) not in (tmp_path / "lock").read_text()


@pytest.fixture
def config():
    arms = {"baseline": vc.Sites(), "VCReg": vc.Sites(block=vc.VCReg(alpha=0.64, beta=0.08))}
    return Experiment("pretraining", "pretraining", digits.get_config().train, arms)


def _claimed(folder, config):
    with claim(folder, config):
        return json.loads((folder / "config.json").read_text())


def test_a_run_may_move_to_another_mesh_and_disk_but_not_change_its_batch_or_optimizer(tmp_path, config, capsys):
    _claimed(tmp_path, config)
    moved = replace(config.train, mesh=MeshConfig(data=2, fsdp=4), data=replace(config.train.data, directory="x"))
    assert _claimed(tmp_path, replace(config, train=moved, seeds=(0, 1)))["train"]["mesh"]["fsdp"] == 4
    assert capsys.readouterr().err == ""
    for changes, told in (({"batch_size": 64}, "train.batch_size: 128 there, 64 here"), ({"steps": 7}, "train.steps")):
        with pytest.raises(ValueError, match=told):
            _claimed(tmp_path, replace(config, train=replace(config.train, **changes)))


def test_folders_of_versions_that_lacked_a_field_go_on_unless_it_is_used(tmp_path, config):
    train = replace(config.train, data=replace(config.train.data, directory=str(tmp_path / "data")))
    run = prepare(train, vc.Sites())
    now = resume.description(train, vc.Sites(), 0, run.mesh, run.data)
    _claimed(tmp_path, replace(config, train=train))
    older, saved = json_files.read(tmp_path / "config.json"), json.loads(json.dumps(now))
    for described in (older, saved):
        del described["train"]["model"]["zero_init_residual"], described["train"]["optimizer"]["schedule"]["end"]
    json_files.write(tmp_path / "config.json", older)
    assert resume.check(5, saved, now) == []
    used = replace(train, model=replace(train.model, zero_init_residual=True))
    with pytest.raises(ValueError, match="train.model.zero_init_residual: None there, True here"):
        _claimed(tmp_path, replace(config, train=used))
    with pytest.raises(ValueError, match="train.model.zero_init_residual: None there, True here"):
        resume.check(5, saved, resume.description(used, vc.Sites(), 0, run.mesh, run.data))
    assert _claimed(tmp_path, replace(config, train=train))["train"]["optimizer"]["schedule"]["end"] == 0.0


@pytest.mark.parametrize("arm", ["VCReg", "alpha=0.64 beta=0.08"])  # as `recipes.sweep` names them
def test_a_regularizers_weight_may_change_with_a_warning_while_no_run_of_its_arm_is_finished(
    tmp_path, config, capsys, arm
):
    config = replace(config, arms={"baseline": vc.Sites(), arm: vc.Sites(block=vc.VCReg(alpha=0.64, beta=0.08))})
    _claimed(tmp_path, config)
    weaker = replace(config, arms=config.arms | {arm: vc.Sites(block=vc.VCReg(alpha=0.32, beta=0.08))})
    (tmp_path / "baseline" / "seed0").mkdir(parents=True)
    (tmp_path / "baseline" / "seed0" / "result.json").write_text("{}")
    assert _claimed(tmp_path, weaker)["arms"][arm]["block"]["alpha"] == 0.32
    warning = capsys.readouterr().err
    assert "warning: " in warning and f"arms.{arm}.block.alpha: 0.64 there, 0.32 here" in warning
    (tmp_path / arm / "seed0").mkdir(parents=True)
    (tmp_path / arm / "seed0" / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=f"arms.{arm}.block.alpha: 0.32 there, 0.64 here"):
        _claimed(tmp_path, config)


def test_a_checkpoint_of_another_batch_seed_or_data_is_refused_and_other_surroundings_are_told(tmp_path, config):
    train = replace(config.train, data=replace(config.train.data, directory=str(tmp_path)))
    run = prepare(train, vc.Sites())
    saved = resume.description(train, config.arms["VCReg"], 0, run.mesh, run.data)
    assert resume.check(5, json.loads(json.dumps(saved)), saved) == []
    for changed, told in (
        (saved | {"train": saved["train"] | {"batch_size": 64}}, "64 there, 128 here.*the order of the images goes by"),
        (saved | {"seed": 1}, "all random draws go by the seed"),
        (saved | {"data": "0"}, "the images or their labels have changed"),
    ):
        with pytest.raises(ValueError, match=f"The checkpoint of step 5 is of another run .*{told}"):
            resume.check(5, changed, saved)
    other = saved | {"mesh": {"data": 4, "fsdp": 2}, "versions": saved["versions"] | {"jax": "0.0"}}
    (warning,) = resume.check(5, other, saved)
    assert "mesh.data: 4 there, 8 here" in warning and "versions.jax: '0.0' there" in warning
    sites = saved["sites"] | {"block": saved["sites"]["block"] | {"beta": 9.0}}
    (warning,) = resume.check(5, saved | {"sites": sites}, saved)
    assert "sites.block.beta: 9.0 there, 0.08 here" in warning


def test_the_fingerprint_of_data_sees_a_label_the_order_and_the_content(tmp_path, config):
    data = replace(config.train.data, directory=str(tmp_path))
    selection = prepare(replace(config.train, data=data), vc.Sites()).data.selection
    same = replace(selection, targets=selection.targets.copy())
    assert same.fingerprint() == selection.fingerprint()
    targets = selection.targets.copy()
    targets[5] ^= 1
    others = (
        replace(selection, targets=targets),
        replace(selection, indices=np.flip(selection.indices)),
        replace(selection, content="of other images"),
    )
    assert len({other.fingerprint() for other in (selection, *others)}) == 4


def test_a_torn_line_of_metrics_is_dropped_and_lines_wait_while_the_disk_is_full(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "split": "train"}\n{"step": 1, "split": "train"}\n{"step": 2, "spl')
    metrics = MetricsFile(path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    metrics.write(1, "train", {"loss": 0.5})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))  # what is written breaks off
        metrics.write(2, "train", {"loss": 0.25})
        metrics.warn(3, "the disk is full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    metrics.write(4, "train", {"loss": 0.125})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[3].items() >= {"step": 3, "split": "warning", "message": "the disk is full"}.items()


def test_tensorboards_curves_end_with_a_line_where_the_disk_is_full_and_the_run_goes_on(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0, tensorboard=True)
    metrics.write(0, "train", {"loss": 0.5})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        for step in range(1, 40):
            metrics.write(step, "train", {"loss": 0.25, "accuracy": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    metrics.write(40, "train", {"loss": 0.125})
    metrics.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 41
    (said,) = capsys.readouterr().err.splitlines()
    assert "ends here: File too large. A restart makes it anew." in said
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, records = file.read_bytes(), 0
    while content:  # whole records, as TFRecord frames them
        (length,) = struct.unpack("<Q", content[:8])
        assert len(content) >= 16 + length
        content, records = content[16 + length :], records + 1
    assert records > 1
    MetricsFile(tmp_path / "metrics.jsonl", 41, tensorboard=True).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size > 2000
