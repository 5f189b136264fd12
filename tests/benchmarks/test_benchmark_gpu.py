import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import vcreg_jax as vc
from train.benchmarks import gpu, gpu_stages, gradient_float64, superclasses, table1
from train.benchmarks.gpu import Stage, conduct, read_kept, save
from train.benchmarks.programs import COLUMNS, PHASES, Settings
from train.benchmarks.timing import LATE, NEVER, Deadline, Row, interleave

ROOT = Path(__file__).parents[2]
TINY = Settings("cpu", ("convnext_digits",), ("float32",), 4, 2, image_size=8, num_classes=4)
TWO = replace(TINY, columns={name: COLUMNS[name] for name in ("identity", "VCReg")})
ABOUT = {"commit": "abc", "sources": "def", "device_kind": "abacus"}


def test_a_trial_from_the_command_to_the_summary_and_a_second_call_that_keeps_it_all(tmp_path):
    command = [sys.executable, "-m", "train", "bench", "gpu", "--tiny", "--minutes", "60", "--out", str(tmp_path)]
    # They compile twice as long; since 0.11 there are no others, and the flag is gone.
    flags = {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"} if jax.__version_info__ < (0, 11) else {}
    call = partial(subprocess.run, capture_output=True, text=True, cwd=ROOT, env=os.environ | flags)
    first = call([*command, "--stages", "gradient", "jax_vit"])
    assert first.returncode == 0, first.stderr
    gradient, table = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("gradient", "jax_vit"))
    assert len(gradient["gradient"]) == 2 * 2 * 3 and all(row["ok"] for row in gradient["gradient"])
    assert [row["column"] for row in table["rows"]] == ["identity", "VCReg", "identity again"] * 2
    for row in table["rows"]:
        assert len(row["seconds"]) == 2 and row["compile_seconds"] > row["first_call_seconds"] > 0
        assert row["over_identity"]["n"] == 2 and not row["disturbed"]
    assert table["hardware"] and table["complete"] and list((tmp_path / "cache" / "jax").iterdir())
    assert "| identity again |" in first.stdout and "relative error" in (tmp_path / "summary.md").read_text()
    second = call([*command, "--stages", "gradient", "jax_vit"])
    assert "jax_vit: kept from an earlier call" in second.stdout and "| identity again |" in second.stdout
    assert json.loads((tmp_path / "jax_vit.json").read_text()) == table


@pytest.mark.parametrize("scale", ["equation_4", "algorithm_1"])
def test_the_reference_is_pytorchs_gradient_of_the_written_out_penalty(scale):
    import torch

    reg = vc.VCReg(0.7, 0.3, scale=scale)
    h = gradient_float64.features((3, 4, 6))
    rows = torch.tensor(h, requires_grad=True)
    c = torch.cov(rows.flatten(end_dim=-2).T)
    variance = torch.relu(1 - torch.sqrt(c.diagonal() + reg.eps)).sum() / 6
    covariance = (c.square().sum() - c.diagonal().square().sum()) / (6 * 5)
    (0.7 * variance + 0.3 * (11 if scale == "algorithm_1" else 1) * covariance).backward()
    assert 0 < (c.diagonal() < 1).sum() < 6  # either side of the hinge
    np.testing.assert_allclose(gradient_float64.reference(h, reg), rows.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_another_gradient_than_the_references_is_called_wrong():
    h = gradient_float64.features((8, 4, 4, 2))
    kind = gradient_float64.KINDS[0]
    assert gradient_float64._row(h, vc.VCReg(), *kind)["ok"]
    assert not gradient_float64._row(h, vc.VCReg(sample=2), *kind)["ok"]


def hangs(_settings, _found, _save, _end):
    time.sleep(600)


def fails(_settings, _found, _save, _end):
    raise RuntimeError("the device is full")


def stage(measure, share):
    return Stage("own", share, measure, str, TINY)


def test_a_stage_that_hangs_is_stopped_and_what_was_saved_stays(tmp_path):
    save(tmp_path / "own.json", ABOUT, {"rows": [1]})
    start = time.monotonic()
    outcome = conduct(stage(hangs, 0.05), tmp_path, ABOUT, Deadline.after(60))
    assert outcome.startswith("stopped after") and time.monotonic() - start < 30
    assert read_kept(tmp_path / "own.json", ABOUT)["rows"] == [1]


def test_a_stage_that_fails_says_why_in_its_log(tmp_path):
    assert conduct(stage(fails, 1.0), tmp_path, ABOUT, Deadline.after(600)).startswith("failed after")
    assert "RuntimeError: the device is full" in (tmp_path / "own.log").read_text()


def test_without_time_a_stage_does_not_begin(tmp_path):
    assert conduct(stage(fails, 1.0), tmp_path, ABOUT, Deadline.after(2.4)) == "not run: 2 s were left"
    assert not (tmp_path / "own.log").exists()


@pytest.mark.parametrize("name", ABOUT)
def test_what_other_code_or_another_device_has_measured_is_not_kept(name, tmp_path):
    save(tmp_path / "own.json", ABOUT, {"rows": [1]})
    assert read_kept(tmp_path / "own.json", ABOUT)["rows"] == [1]
    assert read_kept(tmp_path / "own.json", ABOUT | {name: "another"}) == {}


def rows_of(phase, late=()):
    seconds = {column: () if column in late else (0.5, 0.25) for column in TWO.columns}
    return [Row("JAX", "m", "float32", phase, c, s, not_run="" if s else LATE) for c, s in seconds.items()]


def test_only_phases_that_lack_a_column_are_measured_anew_and_worse_rows_do_not_replace_better_ones():
    first = [*rows_of(PHASES[0]), *rows_of(PHASES[1], late=["VCReg"])]
    found = json.loads(json.dumps(table1.describe(TWO, {}, first, "")))
    asked, saved = [], []

    def measured(late, phases):
        asked.append(list(phases))
        yield from (rows_of(phase, late) for phase in phases)

    for late, complete in ((["identity", "VCReg"], False), ([], True)):
        gpu_stages._table(TWO, found, saved.append, partial(measured, late))
        assert saved[-1]["complete"] is complete
        assert [len(row["seconds"]) for row in saved[-1]["rows"]] == [2, 2, 2, 2 * complete]
    assert asked == [[PHASES[1]], [PHASES[1]]]


def test_pytorch_is_timed_phase_by_phase(one_torch_thread):
    saved = []
    gpu_stages.torch_table("PyTorch eager", TWO, {}, saved.append, NEVER)
    assert [len(result["rows"]) for result in saved] == [3, 6] and saved[-1]["complete"]
    assert {len(row["seconds"]) for row in saved[-1]["rows"]} == {2}
    late = []
    gpu_stages.torch_table("PyTorch eager", TWO, {}, late.append, Deadline.after(0))
    assert {row["not_run"] for row in late[-1]["rows"]} == {LATE} and not late[-1]["complete"]


def test_the_last_stages_write_what_they_find():
    saved = []
    gpu_stages.dispatches(replace(TINY, rounds=1), {}, saved.append, NEVER)
    assert "placing a batch" in gpu_stages.dispatches_text(saved[-1])
    found = {"networks": [{"model": "convnext_digits"}]}
    gpu_stages.rooflines(TINY, found, saved.append, NEVER)  # there already: nothing is measured
    assert saved[-1]["complete"] and saved[-1]["networks"] == found["networks"]
    gpu_stages.rooflines(TINY, {}, saved.append, Deadline.after(0))
    assert not saved[-1]["complete"]


def test_superclasses_are_trained_chosen_and_probed_on_a_trial():
    saved = []
    superclasses.measure(None, TINY, {}, saved.append, NEVER)
    runs = saved[-1]["runs"]
    assert [(run["arm"], run["seed"], run["final"]) for run in runs] == [
        ("none", 100, False), ("equation_4", 100, False), ("none", 0, True), ("equation_4", 0, True),
    ]  # fmt: skip
    for run in runs:
        assert len(run["losses"]) == run["epochs"] == 2 and run["skipped"] == 0
        # Five classes of one brightness each make a superclass: the network tells both, the probes most of the ten.
        assert run["superclass_train_accuracy"] > 0.9 and 1 <= run["effective_rank"] <= 64
        assert ("test" in run) is ("superclass_test_accuracy" in run) is run["final"]
    found = runs[2]["test"]
    assert found["L-BFGS"] > 0.4 and found["AdamW"] > 0.4 and found["20-NN"] > 0.2 and runs[2]["converged"]
    assert saved[-1]["summary"]["none"]["AdamW"] == [100 * found["AdamW"], None, 1] and saved[-1]["complete"]
    assert "equation_4, 20-NN" in superclasses.text(saved[-1])


def test_arms_train_at_the_baselines_best_rate_and_their_best_points_are_trained_anew():
    plan = replace(superclasses.FULL, arms={"equation_4": superclasses.ARMS["equation_4"]})
    scores = {"none": [0.1, 0.3, 0.2], "equation_4": [0.4, 0.2, 0.5]}
    runs: list[dict] = []
    seen = []
    for arm, final, settings in superclasses.programs(plan, runs):
        seen.append((arm, final))
        if final:
            assert [own.seed for own in settings] == [0, 1, 2]
            best = (4e-3, 0.0, 0.0) if arm == "none" else (4e-3, 0.64, 10.0)
            assert {(own.learning_rate, own.alpha, own.beta) for own in settings} == {best}
        else:
            assert {own.seed for own in settings} == {superclasses.TUNING_SEED}
            runs += [asdict(own) | {"final": False, "score": of} for own, of in zip(settings, scores[arm], strict=True)]
    assert seen == [("none", False), ("equation_4", False), ("none", True), ("equation_4", True)]


def test_a_file_of_other_arrays_is_refused_by_their_shapes(tmp_path):
    arrays = {"images": np.zeros((2, 32, 32, 3), np.uint8), "fine": np.arange(2), "coarse": np.arange(2)}
    np.savez(tmp_path / "good.npz", **arrays)
    assert superclasses._load(tmp_path / "good.npz")["fine"].tolist() == [0, 1]
    for change in ({"fine": np.arange(3)}, {"images": np.zeros((2, 32, 32, 3))}, {"more": np.arange(2)}):
        np.savez(tmp_path / "bad.npz", **(arrays | change))
        with pytest.raises(ValueError, match="must hold uint8 images"):
            superclasses._load(tmp_path / "bad.npz")


def test_splits_are_cut_as_cifars():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    splits = superclasses.splits_of(images, np.arange(60), np.arange(60) // 5)
    assert {name: split.classes.tolist() for name, split in splits.items()} == {
        "train": list(range(45)), "val": list(range(45, 50)), "test": list(range(50, 60)),
    }  # fmt: skip
    assert (splits["val"].memory[0] == images[45:50]).all() and splits["val"].memory[1].tolist() == [9] * 5


def test_nothing_to_time_is_an_error_and_a_late_round_is_not_begun():
    with pytest.raises(ValueError, match="There is nothing to time"):
        interleave({}, 3)
    assert len(interleave({"a": lambda: None}, 3, Deadline.after(0))["a"]) == 1
    assert len(interleave({"a": lambda: None}, 3, Deadline.after(60))["a"]) == 3


def test_a_trial_names_only_stages_that_there_are():
    names = [stage.name for stage in gpu.stages(tiny=True, images=None)]
    assert names == list(gpu.TRIED)
    full = [stage.name for stage in gpu.stages(tiny=False, images=None)]
    assert full[:3] == ["gradient", "jax_vit", "jax_convnext"] and "superclasses" not in full
