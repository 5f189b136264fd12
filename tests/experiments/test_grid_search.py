import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from configs import table3_cifar10_lt, table3_cifar100_lt
from tests.experiments.test_grid import recipe
from train.config import NearestNeighborsConfig, ProbeConfig, Target
from train.data import pipeline
from train.experiments import grid, grid_search
from train.experiments.grid import Grid, Setting, Strengths
from train.reports import grid_table
from train.run.checkpoint_format import read_arrays
from train.trainer.model import structure
from train.trainer.step import Normalize, make_predict, split
from vcreg_jax import RemoveMean, Sites, VCReg

pytestmark = pytest.mark.usefixtures("smallest")

COMMAND = "python -m train run strength_digits"


def small(directory, **changes):
    train = replace(recipe(directory), steps=4, save_every=2)  # for both parts, so that they share a program
    config = Grid(
        name="small",
        title="In small",
        train=train,
        search=train,
        arms={"VCReg": Strengths(Sites(block=VCReg()), (1.28,), (0.16,))},
        learning_rates=(4e-3, 8e-3),
        search_seeds=(7,),
        seeds=(0, 1, 2),
        at_once=8,
        steps_per_call=2,
        runs_directory=str(directory / "runs"),
        paper={"baseline": 69.6, "VCReg": 71.2},
    )
    return replace(config, **changes)


@pytest.mark.parametrize("module", [table3_cifar10_lt, table3_cifar100_lt])
def test_the_grid_is_that_of_appendix_c3(module):
    config = module.get_config()
    points = grid_search.points(config)
    assert len(points) == 2 + 2 * 4 * 5 == len(set(points))
    assert {own.learning_rate for own in points} == {0.016, 0.008}
    assert {own.alpha for own in points} == {0.0, 1.28, 0.64, 0.32, 0.16}
    assert {own.beta for own in points} == {0.0, 0.16, 0.08, 0.04, 0.02, 0.01}
    assert [own for own in points if not own.alpha or not own.beta] == points[:2]
    assert len(grid_search.with_seeds(points, config.search_seeds)) == config.at_once == 126
    for train, images in ((config.train, (12_406, 10_847)), (config.search, (11_165, 9_754))):
        assert train.batch_size == 256 and train.model.name == "resnet32"
        epoch = -(-images[module is table3_cifar100_lt] // 256)
        assert (train.steps, train.optimizer.schedule.warmup_steps) == (100 * epoch, 10 * epoch)


def result(rate, alpha, beta, seed, accuracy):
    arm = "VCReg" if alpha else "baseline"
    of = {"accuracy": accuracy, "score": accuracy, "loss": 1.0, "skipped": 0, "targets": {}}
    return asdict(Setting(rate, alpha, beta, seed, arm)) | of


def test_each_arms_point_with_the_best_mean_over_seeds_is_chosen():
    found = [
        *(result(0.1, 0.0, 0.0, seed, accuracy) for seed, accuracy in enumerate((0.5, 0.6))),
        *(result(0.2, 0.0, 0.0, seed, accuracy) for seed, accuracy in enumerate((0.3, 0.9))),
        *(result(0.1, 1.0, 0.0, seed, accuracy) for seed, accuracy in enumerate((0.7, 0.7))),
        *(result(0.1, 1.0, 0.5, seed, accuracy) for seed, accuracy in enumerate((0.99, 0.1))),
        *(result(0.2, 1.0, 0.5, seed, accuracy) for seed, accuracy in enumerate((0.7, 0.7))),
    ]
    assert grid_search.choose(found, "baseline") == Setting(0.2, 0.0, 0.0, 0)
    assert grid_search.choose(found, "VCReg") == Setting(0.1, 1.0, 0.0, 0, "VCReg")  # the first of equals


def test_a_search_tests_what_it_has_chosen_and_goes_on_to_the_bit(tmp_path):
    config = small(tmp_path)
    folder = grid_search.run(config, "the command")
    searched, final = ({}, {})
    for part, found in (("search", searched), ("final", final)):
        path = folder / part / "program0" / "result.json"
        found |= {"path": path, "text": path.read_text(), "results": json.loads(path.read_text())}
    assert [own["seed"] for own in searched["results"]] == [7] * 4
    best = [grid_search.choose(searched["results"], arm) for arm in ("baseline", "VCReg")]
    expected = [replace(own, seed=seed) for seed in (0, 1, 2) for own in best]
    assert [{name: own[name] for name in asdict(best[0])} for own in final["results"]] == list(map(asdict, expected))
    test = pipeline.load(config.train.data, "test")
    assert all(round(own["accuracy"] * len(test), 3) % 1 == 0 for own in final["results"])

    checkpoints = final["path"].parent / "checkpoints"
    before = jax.device_get(read_arrays(checkpoints / "4")[0])
    final["path"].unlink()
    (checkpoints / "4").rename(tmp_path / "gone")  # as if it had been killed before
    grid_search.run(config, "the command")
    assert final["path"].read_text() == final["text"]
    after = jax.device_get(read_arrays(checkpoints / "4")[0])
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert searched["path"].read_text() == searched["text"]

    table = grid_table.gather(config, COMMAND)
    assert "the command" in grid_table.text(table)


def test_probes_choose_where_there_are_targets_and_every_arm_is_tested(tmp_path):
    config = small(tmp_path)
    probes = {"L-BFGS": ProbeConfig("digit", l2_count=3), "20-NN": NearestNeighborsConfig("digit")}
    strong = Sites(block=VCReg(scale="algorithm_1"))
    config = replace(
        config,
        arms={**config.arms, "Algorithm 1": Strengths(strong, (1.28,), (0.16,))},
        targets={name: Target(probe) for name, probe in probes.items()},
        learning_rates=(4e-3,),
        seeds=(0,),
    )
    folder = grid_search.run(config, "the command")
    search, final = (
        [own for path in sorted(folder.glob(f"{part}/*/result.json")) for own in json.loads(path.read_text())]
        for part in ("search", "final")
    )
    assert [own["arm"] for own in search] == [own["arm"] for own in final] == ["baseline", "VCReg", "Algorithm 1"]
    for own in search:
        validation = [own["targets"][name]["validation_accuracy"] for name in probes]
        assert own["score"] == pytest.approx(sum(validation) / 2)
        assert not any("accuracy" in found for found in own["targets"].values())  # test images were not looked at
    # The same weights by the ordinary tools: the network of the checkpoint, scikit-learn's neighbours.
    data = config.train.data
    plain = grid.without_regularizers(config.train, pipeline.load(data, "train"))
    params = weights(folder / "final" / "program1", config, plain)
    predict = make_predict(structure(plain)[0], Normalize(data.mean, data.std))
    rows = {name: pipeline.load(data, name, "digit") for name in ("train", "test")}
    features = {name: np.asarray(predict(params, {}, own.memory[0])[1], np.float64) for name, own in rows.items()}
    unit = {name: own / np.linalg.norm(own, axis=1, keepdims=True) for name, own in features.items()}
    nearest = KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07))
    expected = nearest.fit(unit["train"], rows["train"].labels()).score(unit["test"], rows["test"].labels())
    assert final[2]["targets"]["20-NN"]["accuracy"] == pytest.approx(expected, abs=1e-6)
    assert final[2]["targets"]["L-BFGS"]["accuracy"] > 0.3
    header, *rows = grid_table.final_rows(grid_table.gather(config, COMMAND))
    assert header[4:6] == ["L-BFGS", "20-NN"] and f"{100 * expected:.2f}" == rows[2][5]
    assert "Algorithm 1: learning rate" in grid_table.text(grid_table.gather(config, COMMAND))


def weights(program, config, plain):
    """The only setting's parameters, as the checkpoint has them."""
    arrays = read_arrays(program / "checkpoints" / str(config.train.steps))[0]
    _, params, _ = split(plain.create(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, _: np.asarray(arrays["/".join(["params", *(str(step.key) for step in path)])])[0], params
    )


def test_the_heat_map_shows_the_gain_of_every_point(tmp_path):
    config = small(tmp_path, arms={"VCReg": Strengths(Sites(block=VCReg()), (0.5, 1.0), (0.1, 0.2, 0.4))})
    search = [result(0.004, 0.0, 0.0, 7, 0.40), result(0.008, 0.0, 0.0, 7, 0.45)]
    search += [result(0.004, 0.5, 0.1, 7, 0.50), result(0.008, 0.5, 0.1, 7, 0.55), result(0.004, 1.0, 0.4, 7, 0.40)]
    axes = grid_table.heat_map(grid_table.GridTable(config, search, [], {}, COMMAND)).axes[0]
    shown = np.array([text.get_text() for text in axes.texts]).reshape(2, 3)
    assert shown[0, 0] == "+10.0" and shown[1, 2] == "\N{MINUS SIGN}5.0"
    assert sorted(set(shown.ravel())) == sorted({"+10.0", "\N{MINUS SIGN}5.0", "not run"})
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.5", "1"]


def test_the_table_shows_the_papers_numbers_beside_ours_and_every_point(tmp_path):
    config = small(tmp_path)
    assert "Not run." in grid_table.text(grid_table.gather(config, COMMAND))
    final = [
        result(0.004, alpha, beta, seed, accuracy)
        for alpha, beta, accuracies in ((0.0, 0.0, (0.50, 0.52, 0.54)), (1.28, 0.16, (0.55, 0.55, 0.58)))
        for seed, accuracy in enumerate(accuracies)
    ]
    search = [result(0.004, 0.0, 0.0, 7, 0.4), result(0.004, 1.28, 0.16, 7, 0.45), result(0.008, 0.0, 0.0, 7, 0.3)]
    folder = tmp_path / "runs" / "small"
    for part, found in (("search", search), ("final", final)):
        (folder / part / "program0").mkdir(parents=True)
        (folder / part / "program0" / "result.json").write_text(json.dumps(found))
    table = grid_table.gather(config, COMMAND)
    assert grid_table.final_rows(table)[1:] == [
        ["baseline", "0.004, 0, 0", "69.6", "52.00 ± 2.00", "3"],
        ["VCReg", "0.004, 1.28, 0.16", "71.2", "56.00 ± 1.73", "3"],
        ["VCReg less baseline", "", "+1.6", "+4.00 ± 1.53", ""],  # sqrt((4 + 3) / 3)
    ]
    assert grid_table.search_rows(table, "VCReg") == [
        ["learning rate", "alpha", "beta 0.16"],
        ["0.004", "baseline", "40.00"],
        ["0.004", "1.28", "45.00"],
        ["0.008", "baseline", "30.00"],
        ["0.008", "1.28", "not run"],
    ]
    assert "The run is not finished." in grid_table.text(table)
    page = grid_table.write("table3", [table], tmp_path).read_text()
    assert "52.00 ± 2.00" in page and json.loads((tmp_path / "table3.json").read_text())["small"]["final"] == final


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "at least one of each of its seeds; got none"),
        ({"arms": {"VCReg": Strengths(Sites(block=VCReg()), (), (0.1,))}}, "an alpha and a beta, got 'VCReg'"),
        ({"arms": {"baseline": Strengths(Sites(block=VCReg()), (1.0,), (0.1,))}}, "a name other than 'baseline'"),
        ({"at_once": 0}, "at_once >= 1"),
        ({"steps_per_call": 3}, "steps_per_call must divide the 4 steps, got 3"),
        ({"arms": {"VCReg": Strengths(Sites(), (1.0,), (0.1,))}}, "needs a regularizer among the sites of 'VCReg'"),
        (
            {"arms": {"VCReg": Strengths(Sites(block=RemoveMean(VCReg())), (1.0,), (0.1,))}},
            "trained with the first arm, and 'VCReg' removes means",
        ),
    ],
)
def test_a_grid_that_cannot_run_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        grid_search.run(small(tmp_path, **changes), "")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    config = small(tmp_path)
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.\d+, the images to train on, got 5000"):
        grid_search.run(replace(config, train=replace(config.train, batch_size=5000)), "")
