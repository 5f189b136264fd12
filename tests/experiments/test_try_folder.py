import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import encoded
from train import config_file
from train.__main__ import main
from train.experiments.try_folder import advice, choices, images, lab_note
from train.experiments.try_folder import config as try_config
from train.experiments.try_folder.advice import Outcome
from train.experiments.try_folder.choices import Timing
from train.experiments.try_folder.images import Facts
from train.trainer.prepare import prepare
from vcreg_jax import Sites, VCReg

RNG = np.random.default_rng(0)
FACTS = Facts(
    name="birds",
    directory="runs/data",
    label="label",
    probe_label="label",
    splits=("train", "validation", "test"),
    counts=(6000, 1000, 2000),
    classes=10,
    probe_classes=10,
    fewest=500,
    shorter_side=64,
    longest_ratio=1.5,
    channels=3,
)


def _folder(root, size=(20, 12), mode="RGB", count=20, place="{name}/{index}.png"):
    """Noise about a brightness of its class's own."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    for level, name in enumerate(("dark", "light")):
        for index in range(count):
            path = root / place.format(name=name, index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = RNG.integers(90 * level, 90 * level + 90, shape, np.uint8)
            path.write_bytes(encoded(Image.fromarray(pixels), "png"))
    return root


def _facts(tmp_path, source, name=None):
    data_set = images.prepare(source, name, tmp_path / "data")
    return images.gather_facts(data_set, tmp_path / "data")


def test_a_folder_of_classes_gets_the_splits_that_it_lacks_and_its_images_are_looked_at(tmp_path):
    found = _facts(tmp_path, _folder(tmp_path / "My birds-2"))
    assert (found.name, found.counts) == ("my_birds_2", (26, 6, 8))
    assert (found.shorter_side, found.longest_ratio, found.channels) == (12, 20 / 12, 3)
    assert (found.classes, found.fewest, found.label) == (2, 13, "label")


def test_what_is_there_stays_and_grey_images_stay_grey(tmp_path):
    _folder(tmp_path / "birds", mode="L", place="Train/{name}/{index}.png")
    _folder(tmp_path / "birds", mode="L", place="VAL/{name}/{index}.png", count=3)
    found = _facts(tmp_path, tmp_path / "birds")
    assert found.counts == (32, 6, 8) and found.channels == 1


def test_lists_arrays_and_prepared_data_sets_are_tried_too(tmp_path):
    _folder(tmp_path / "birds", place="images/{name}_{index}.png")
    names = sorted(path.name for path in (tmp_path / "birds/images").iterdir())
    (tmp_path / "birds/list.csv").write_text("\n".join(f"{name},{name.split('_')[0]}" for name in names))
    np.savez(tmp_path / "owls.npz", x=np.zeros((40, 8, 8), np.uint8), y=np.arange(40) % 2)
    assert _facts(tmp_path, tmp_path / "birds").counts == (26, 6, 8)
    assert _facts(tmp_path, tmp_path / "owls.npz").counts == (26, 6, 8)
    for again in (Path("birds"), tmp_path / "data" / "birds"):
        assert images.prepare(again, None, tmp_path / "data") == "birds"
    with pytest.raises(ValueError, match="birds is there already. To use it as it is: python -m train try birds"):
        images.prepare(tmp_path / "birds", None, tmp_path / "data")
    with pytest.raises(ValueError, match="There is no folder"):
        images.prepare(tmp_path / "finches", None, tmp_path / "data")


def test_a_name_of_a_known_data_set_is_not_taken_for_ones_own(tmp_path):
    assert images.prepare(_folder(tmp_path / "cifar10"), None, tmp_path / "data") == "cifar10_images"


def test_digits_are_trained_on_the_coarse_label_and_probed_on_the_fine_one(tmp_path):
    found = images.gather_facts("digits", tmp_path)
    assert (found.label, found.probe_label, found.classes, found.probe_classes) == ("closed_loop", "digit", 2, 10)


def test_a_label_that_another_does_not_decide_is_no_superclass():
    fine = np.arange(60) % 6
    assert images.choose_labels({"fine": fine, "half": fine // 3, "pair": fine // 2}) == ("half", "fine")
    assert images.choose_labels({"fine": fine, "other": np.arange(60) % 4 // 2}) == ("fine", "fine")
    assert images.choose_labels({"fine": fine, "one": 0 * fine}) == ("fine", "fine")


def test_mean_and_deviation_are_those_of_all_pixels_of_the_training_images(tmp_path):
    found = _facts(tmp_path, _folder(tmp_path / "birds", size=(9, 9)))
    choice = replace(choices.choose_first(found, "cpu"), side=9)
    mean, std = try_config._statistics(found, choice)
    files = [np.asarray(Image.open(path)) / 255 for path in (tmp_path / "birds").rglob("*.png")]
    train = {path: value for path, value in zip((tmp_path / "birds").rglob("*.png"), files, strict=True)}
    data = images.pipeline.load(config_data(found), "train")
    names = [data.selection.records[i]["file"].decode() for i in data.selection.indices.tolist()]
    pixels = np.concatenate([train[tmp_path / "birds" / name].reshape(-1, 3) for name in names])
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=6e-5)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=6e-5)


def config_data(found):
    return images._square(found.name, Path(found.directory), 9)


@pytest.mark.parametrize(
    ("step_seconds", "seconds", "side", "counts"),
    [
        # 0.2 s at 32 pixels and 6,000 images: an epoch at 64 pixels takes 47 * 0.8 s, and 300 s a run are 8 epochs.
        (0.2, 2600, 48, (6000, 1000, 2000)),
        (0.02, 2600, 64, (6000, 1000, 2000)),
        (0.2, 700, 24, (6000, 1000, 2000)),
    ],
)
def test_the_largest_images_are_chosen_that_leave_ten_epochs(step_seconds, seconds, side, counts):
    first = choices.choose_first(FACTS, "cpu")
    assert (first.network, first.batch_size, first.side) == ("convnext_cifar", 128, 32)
    choice = choices.choose(FACTS, first, Timing(32, 128, 10.0, step_seconds), seconds)
    assert (choice.side, choice.counts) == (side, counts)
    assert math.isclose(choice.step_seconds, step_seconds * (side / 32) ** 2)
    assert 10 <= choice.epochs <= 200
    looks = (6000 + 2 * 3000) / 128 * 0.35
    spent = 6 * choice.step_seconds * (choice.steps + looks) + 4 * 10
    assert spent <= 0.75 * seconds * 1.01
    assert spent > 0.7 * seconds or choice.epochs > 199


def test_of_more_images_than_the_time_allows_a_part_is_used_and_it_is_said(tmp_path):
    facts = replace(FACTS, counts=(60_000, 5_000, 10_000))
    choice = choices.choose(facts, choices.choose_first(facts, "cpu"), Timing(32, 128, 5.0, 0.2), 600)
    # 71.7 s a run, of which a quarter is 358 steps of 0.05 s: at 0.35 a look, 131,000 images. So 75,000 may stay.
    assert choice.counts == (60_000, 5_000, 10_000) and choice.side == 16
    choice = choices.choose(facts, choices.choose_first(facts, "cpu"), Timing(32, 128, 5.0, 0.6), 600)
    # At 0.15 s a step 43,700 looks, one at each image to train on and two at others, are a quarter.
    looks = choice.counts[0] + 2 * sum(choice.counts[1:])
    assert 0.8 * 43_700 <= looks <= 43_700 and choice.counts[1] == round(choice.counts[0] / 12)
    note = lab_note.format_note("birds", facts, choice, (0.5,) * 3, (0.2,) * 3, 10, "a CPU")
    assert f'train_split="train[:{choice.counts[0]}]"' in note and "Of 60,000, 5,000, 10,000 images" in note


@pytest.mark.parametrize(("train", "batch"), [(26, 8), (100, 8), (500, 32), (4000, 128), (10**6, 128)])
def test_few_images_get_small_batches(train, batch):
    facts = replace(FACTS, counts=(train, 10, 10))
    assert choices.choose_first(facts, "cpu").batch_size == batch


def test_accelerators_get_resnets_and_larger_batches():
    first = choices.choose_first(replace(FACTS, counts=(50_000, 1, 1), shorter_side=32), "gpu")
    assert (first.network, first.dtype, first.batch_size) == ("resnet20_x2", "bfloat16", 512)
    assert choices.choose_first(replace(FACTS, shorter_side=300), "tpu").network == "resnet18"


def test_parts_of_splits_are_written_where_they_can_be():
    assert lab_note.format_part("train", 5, 9) == "train[:5]" and lab_note.format_part("train", 9, 9) == "train"
    assert (
        lab_note.format_part("train[:85%]", 5, 9) == "train[:5]"
        and lab_note.format_part("train[85%:]", 5, 9) == "train[85%:]"
    )


def test_one_command_goes_from_a_folder_to_a_report_and_a_config_that_runs_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choices, "FEWEST_STEPS", 9)
    monkeypatch.setattr(choices, "EPOCHS", (1, 3))
    monkeypatch.setattr(choices, "_TIMED", 0.0)
    _folder(tmp_path / "birds")
    main(["try", "birds", "--minutes", "0.1", "--dry-run"])
    config = config_file.load(Path("configs/birds.py"))
    assert not Path("runs/birds").exists() and config.train.steps == 9
    assert config.train.data.mean != (0.5,) * 3
    for sites in config.arms.values():
        prepare(config.train, sites)
    assert config.arms == {"none": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))}
    with pytest.raises(SystemExit):
        main(["try", "birds"])
    assert "configs/birds.py is there already: python -m train run birds" in capsys.readouterr().err
    main(["try", "runs/data/birds", "--name", "birds_again", "--minutes", "0.1"])
    said = capsys.readouterr().out
    assert Path("runs/birds_again/report.html").is_file() and "What to try next:" in said
    assert "python -m train run birds_again" in said and "8 test images leave each accuracy" in said


OUTCOME = Outcome("birds", 60.0, 0.0, 1.0, 5000, 10, 30.0, 0.3)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"difference": -5.0}, ["lost 5.0 ± 1.0 points: try half.*alpha 0.32 --arms.VCReg.block.beta 0.04"]),
        ({"difference": 5.0}, ["gained 5.0 ± 1.0 points.*beta 1$", "more seeds.*--seeds 0 1 2 3"]),
        ({"difference": 1.5}, [r"No difference.*\(1.5 ± 1.0 points\): try beta 1, then 10", "More seeds"]),
        ({"difference": 5.0, "loss": 1.2}, ["gained", "more seeds", "learned little .training loss 1.20"]),
        ({"difference": 5.0, "epochs": 2.0}, ["gained", "more seeds", "train longer"]),
        (
            {"difference": 5.0, "test_images": 100},
            ["gained", "more seeds", "100 test images .* by 4.8 points"],
        ),
    ],
)
def test_what_to_try_next_follows_from_what_was_found(changes, lines):
    import re

    found = advice.suggest(replace(OUTCOME, **changes))
    assert len(found) == len(lines)
    for line, pattern in zip(found, lines, strict=True):
        assert re.search(pattern, line), (line, pattern)
