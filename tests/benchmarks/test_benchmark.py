import json
import re
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vcreg_jax as vc
from train.__main__ import main
from train.benchmarks import commands, dispatch, programs, roofline, step_jax, step_torch, table1
from train.benchmarks.programs import COLUMNS, PHASES, Settings, batch_norm
from train.benchmarks.step_torch import Algorithm1
from train.benchmarks.timing import LATE, Deadline, Row, Spread, in_own_process, interleave, ratio
from train.interop.crosscheck import torch_networks
from train.interop.crosscheck.torch_networks import CONVNEXT, RESNET, VIT
from train.run import provenance
from vcreg_jax import models
from vcreg_jax.models.vit import TIMM, ViT

TINY = Settings("cpu", ("tiny",), ("float32",), batch_size=8, rounds=2, image_size=8, num_classes=4)


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """A network that compiles in a second; and one thread of PyTorch's, faster for networks so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._MODELS, "tiny", partial(ViT, 16, 2, 2, 4, TIMM, image_size=8))
        yield
    torch.set_num_threads(threads)


def gradients(column, settings=TINY):
    """Of the network of one column, its parameters moved away from their initial values."""
    mesh = programs.one_device_mesh("cpu")
    network = programs.architecture(settings, "tiny", "float32", column)
    graphdef, norms = programs.structure(network)
    optimizer = programs.make_optimizer(programs.OPTIMIZER, 1000, norms)
    state = programs.create_state(network, optimizer, mesh, 0)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.ones_like(leaf), state["params"])
    batch = jax.device_put(programs.random_batch(settings), mesh.devices.item())
    step = programs.forward_backward(graphdef)
    (loss, _), found = step({"params": moved, "batch_stats": state["batch_stats"]}, batch)
    return float(loss), found, len(jax.tree.leaves(state["batch_stats"]))


@pytest.fixture(scope="module")
def identity():
    return gradients("identity")


def distance(a, b):
    """Norm of the difference over norm of b."""
    squares = [(np.sum((x - y) ** 2), np.sum(np.square(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    difference, size = np.sum(squares, axis=0)
    return float(np.sqrt(difference / size))


def test_fast_and_naive_columns_have_the_same_gradients_and_these_are_not_the_identitys(identity):
    loss, plain, _ = identity
    fast, naive = gradients("VCReg"), gradients("naive")
    assert fast[0] == pytest.approx(loss, rel=1e-6)  # the loss is the task's alone
    assert distance(fast[1], naive[1]) < 1e-5
    assert distance(fast[1], plain) > 1e-2


def test_an_inserted_batch_norm_is_a_whole_one_after_every_block(identity):
    plain, norms = jax.tree.leaves(identity[1]), gradients("BatchNorm")
    assert len(jax.tree.leaves(norms[1])) == len(plain) + 2 * 2  # scale and shift at each of the 2 blocks
    assert norms[2] == 2 * 2  # running means and variances
    assert norms[0] != pytest.approx(identity[0], rel=1e-3)
    named = jax.tree_util.tree_leaves_with_path(norms[1])
    learned = [leaf for path, leaf in named if "regularize" in jax.tree_util.keystr(path)]
    assert len(learned) == 4 and all(float(jnp.abs(leaf).max()) > 0 for leaf in learned)


@pytest.mark.parametrize(("model", "layers", "first", "last"), [
    ("vit_b_32", 12, (2, 50, 768), (2, 50, 768)),
    ("convnext_tiny", 18, (2, 56, 56, 96), (2, 7, 7, 768)),
    ("resnet50", 16, (2, 56, 56, 256), (2, 7, 7, 2048)),
])  # fmt: skip
def test_the_regularized_layers_are_the_papers(model, layers, first, last):
    network = programs.architecture(programs.defaults("cpu"), model, "float32", "VCReg")
    shapes = [site.shape for site in programs.site_shapes(network, 2).values()]
    assert len(shapes) == layers and shapes[0] == first and shapes[-1] == last


def test_every_call_is_timed_once_a_round_and_every_round_begins_with_another():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(calls, rounds=4)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_a_ratio_is_the_median_of_those_within_each_round():
    spread = ratio([2.0, 30.0, 3.0, 8.0, 5.0], [1.0, 10.0, 2.0, 2.0, 5.0])  # 2, 3, 1.5, 4, 1
    assert spread == Spread(median=2.0, low=1.5, high=3.0, n=5)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_a_row_is_compared_with_the_identity_of_its_own_library_phase_and_precision():
    rows = [
        Row("JAX", "vit_b_32", "float32", PHASES[0], "identity", (1.0, 2.0)),
        Row("PyTorch eager", "vit_b_32", "float32", PHASES[0], "identity", (4.0, 4.0)),
        Row("JAX", "vit_b_32", "float32", PHASES[1], "identity", (8.0, 8.0)),
        Row("JAX", "vit_b_32", "float32", PHASES[0], "VCReg", (1.5, 3.0), memory=2**21),
        Row("JAX", "vit_b_32", "float32", PHASES[0], "naive", not_run="out of memory"),
    ]
    *_, fast, naive = table1.summary(rows, batch_size=6)
    assert fast["over_identity"]["median"] == 1.5 and fast["fastest_over_identity"] == 1.5
    assert fast["images_per_second"] == 6 / 2.25 and fast["paper_over_identity"] == 1.099
    lines = table1.markdown(table1.summary(rows, 6)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "| 1.500 (1.500 to 1.500)" in lines[5] and "| 1.099 |" in lines[5] and "| 2 " in lines[5]
    assert "not run: out of memory" in lines[6] and "over_identity" not in naive


def test_the_papers_ratios_are_those_of_its_seconds():
    seconds = {"vit_b_32": (0.223, 0.245, 1.427, 0.247), "convnext_tiny": (0.442, 0.471, 2.951, 0.468)}
    for model, (plain, *others) in seconds.items():
        for column, value in zip(("VCReg", "naive", "BatchNorm"), others, strict=True):
            assert table1.PAPER[model, column] == pytest.approx(value / plain, abs=0.05 if column == "naive" else 1e-3)


@pytest.mark.parametrize("scope", ["global", 2])
def test_algorithm_1_in_pytorch_equals_that_scale(scope, x64):
    reg = vc.VCReg(scope=scope, scale="algorithm_1")
    rng = np.random.default_rng(0)
    h, incoming = 0.3 * rng.normal(size=(4, 5, 6)) + 1, rng.normal(size=(4, 5, 6))
    there = torch.tensor(h, requires_grad=True)
    Algorithm1.apply(there, reg, torch.float64).backward(torch.tensor(incoming))
    ours = jax.vjp(reg, jnp.asarray(h))[1](jnp.asarray(incoming))[0]
    np.testing.assert_allclose(there.grad.numpy(), ours, rtol=1e-12, atol=1e-14)
    assert np.abs(ours - incoming).max() > 1e-3


def test_the_naive_penalty_in_pytorch_equals_ours(x64):
    h = 0.3 * np.random.default_rng(0).normal(size=(4, 5, 6)) + 1
    ours = programs.REG.penalty(jnp.asarray(h))
    assert step_torch.penalty(torch.tensor(h), programs.REG).item() == pytest.approx(float(ours), rel=1e-12)


@pytest.mark.parametrize("network", [VIT, CONVNEXT, RESNET], ids=["vit", "convnext", "resnet"])
def test_pytorchs_columns_sit_behind_every_block(network):
    images, labels = 255 * torch.rand(4, 3, network.size, network.size), torch.arange(4)
    # Of the variance term Algorithm 1 has the exact gradient, so there autograd of the penalty must agree.
    variance = vc.VCReg(alpha=5.0, beta=0.0)
    columns = {"identity": vc.identity, "VCReg": variance, "naive": vc.explicit(variance), "BatchNorm": batch_norm}
    losses, found = {}, {}
    for column, regularizer in columns.items():
        net = torch_networks.create(network, 0)
        blocks = [value for name, value in net.named_parameters() if re.match(network.blocks, name)]
        net = step_torch.with_sites(net, network, regularizer, torch.float32, network.size).train()
        sites = [module for module in net.modules() if isinstance(module, step_torch.Site)]
        assert len(sites) == (0 if column == "identity" else 2 if network is VIT else 4)
        loss = step_torch.loss_of(net, torch.float32)(images, labels)
        loss.backward()
        losses[column], found[column] = loss.item(), torch.cat([value.grad.flatten() for value in blocks]).numpy()
    assert losses["VCReg"] == pytest.approx(losses["identity"], rel=1e-6)
    assert losses["naive"] >= losses["identity"]
    assert losses["BatchNorm"] != pytest.approx(losses["identity"], rel=1e-4)
    np.testing.assert_allclose(found["VCReg"], found["naive"], rtol=1e-3, atol=1e-3 * np.abs(found["naive"]).max())


def test_counted_operations_are_pytorchs_and_the_compilers():
    shape = (4, 10, 96)
    n, d = 40, 96
    statistics, push = roofline.passes(shape, itemsize=4)
    mean = 2 * n * d  # a product with ones here, a sum there
    assert statistics.operations + push.operations == 4 * n * d * d + mean
    with FlopCounterMode(display=False) as counter:
        h = torch.ones(shape, requires_grad=True)
        Algorithm1.apply(h, programs.REG, torch.float32).sum().backward()
    assert counter.get_total_flops() == 4 * n * d * d
    h = jnp.ones(shape, jnp.float32)
    analysis = jax.jit(roofline.backward).lower(h, h).compile().cost_analysis()
    # The compiler also counts what is done to each feature and to each element of M, some 10 operations each.
    rest = analysis["flops"] - (4 * n * d * d + mean)
    assert 0 <= rest < 12 * (n * d + d * d)


def test_counted_bytes_are_four_passes_over_the_features_and_two_over_the_matrix():
    statistics, push = roofline.passes((2, 3, 8), itemsize=2)
    assert statistics.bytes == 2 * 48 + 4 * 64
    assert push.bytes == 3 * 2 * 48 + 4 * 64


def test_the_floor_is_the_longer_of_arithmetic_and_traffic_pass_by_pass():
    speed = roofline.Speed(operations=100.0, bytes=10.0)
    work = (roofline.Work(operations=300, bytes=10), roofline.Work(operations=100, bytes=50))
    assert roofline.floor_seconds(work, speed) == 3.0 + 5.0


def test_the_null_step_has_the_real_steps_arrays_and_counts_its_calls():
    mesh = programs.one_device_mesh("cpu")
    state = {"step": jnp.zeros((), jnp.int32), "params": {"kernel": jnp.ones((3, 4))}}
    null = dispatch.null_state(state, mesh)
    assert jax.tree.structure(null) == jax.tree.structure(state)
    assert null["params"]["kernel"].shape == (1, 1) and null["step"].dtype == jnp.int32
    batch = jax.device_put(programs.random_batch(TINY), mesh.devices.item())
    wall, thread = dispatch.time_calls(dispatch.null_step, null, batch, calls=3)
    assert len(wall) == len(thread) == 3 and min(wall) > 0
    assert dispatch.null_step(dispatch.null_state(state, mesh), batch, 0)[0]["step"] == 1


def test_the_table_and_the_roofline_of_a_tiny_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table1, "in_own_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(roofline, "in_own_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 2**12})
    monkeypatch.setattr(roofline, "MULTIPLIED", {"cpu": 16})
    settings = replace(TINY, columns={name: COLUMNS[name] for name in ("identity", "barrier", "VCReg")})
    facts = {"platform": "cpu", "hardware": "a machine"}
    table1.run(replace(settings, phases=PHASES[1:]), facts, False, tmp_path / "table.json", "the command")
    result = json.loads((tmp_path / "table.json").read_text())
    assert result["command"] == "the command" and result["versions"]["jax"] == jax.__version__
    assert [row["column"] for row in result["rows"]] == ["identity", "barrier", "VCReg", "identity again"]
    assert all(len(row["seconds"]) == 2 and row["memory"] > 10_000 for row in result["rows"])
    assert result["rows"][0]["over_identity"]["median"] == 1.0
    assert "VCReg(alpha=0.64" in result["columns"]["VCReg"] and result["columns"]["identity"] == "identity"
    assert (tmp_path / "table.svg").read_text().count("tiny") >= 1
    roofline.run(settings, facts, tmp_path / "roofline.json", "the command")
    (network,) = json.loads((tmp_path / "roofline.json").read_text())["networks"]
    assert [(layer["shape"], layer["layers"]) for layer in network["layers"]] == [([8, 5, 16], 2)]
    whole = sum(layer["layers"] * layer["floor_seconds"] for layer in network["layers"])
    assert network["floor_seconds"] == pytest.approx(whole) and "over barrier" in capsys.readouterr().out


def test_columns_and_phases_are_those_that_are_asked_for_and_a_late_one_says_so():
    settings = replace(TINY, columns={name: COLUMNS[name] for name in ("VCReg", "identity")}, phases=PHASES[:1])
    rows = step_jax.measure(settings, "tiny", "float32")
    assert [(row.phase, row.column) for row in rows] == [
        (PHASES[0], "VCReg"), (PHASES[0], "identity"), (PHASES[0], "identity again"),
    ]  # fmt: skip
    assert rows[1].compile_seconds == rows[2].compile_seconds != rows[0].compile_seconds
    late = step_jax.measure(settings, "tiny", "float32", Deadline.after(0))
    assert all(bool(row.seconds) != (row.not_run == LATE) for row in late) and any(row.not_run for row in late)


def test_the_commit_is_told_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("VCREG_COMMIT", "abc1234")
    assert provenance.commit() == "abc1234"
    monkeypatch.delenv("VCREG_COMMIT")
    assert provenance.commit() == "unknown"


def test_what_another_process_raises_is_raised_here():
    with pytest.raises(ValueError, match="needs alpha >= 0, got -1"):
        in_own_process(vc.VCReg, -1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table2"], "Unknown command 'table2'. Did you mean 'table1'? Known: table1, roofline, dispatch"),
        (["table1", "--device", "abacus"], "invalid choice 'abacus' for argument '--device'"),
        (["table1", "--models", "resnet51"], "invalid choice 'resnet51' for argument '--models'"),
        (["table1", "--batch-size", "6"], "--batch-size must be a multiple of the 4 groups, got 6."),
        (["table1", "--rounds", "0"], "--rounds must be at least 1, got 0."),
        (["probe", "--rounds", "0"], "--rounds must be at least 1, got 0."),
        (["table1", "--json", "nowhere/t.json"], "There is no folder nowhere."),
        (["grid", "--json", "nowhere/t.json"], "There is no folder nowhere."),
        (["roofline", "--torch"], "Unrecognized options: --torch"),
        (["dispatch", "--columns", "VCReg"], "Unrecognized options: --columns"),
        (["probe", "--minutes", "1"], "Unrecognized options: --minutes"),
        (["table1", "--tiny"], "Unrecognized options: --tiny"),
        (["table1", "--columns", "VCRag"], "bench knows no column 'VCRag'. Known: identity, barrier, VCReg"),
        (["table1", "--phases", "backward"], "invalid choice 'backward'"),
        (["gpu", "--images", "nowhere.npz"], "There is no file nowhere.npz."),
        (["gpu", "--minutes", "0"], "--minutes must be above 0, got 0."),
        (["gpu", "--stages", "nothing"], "bench gpu has no stage 'nothing'. It has gradient, jax_vit"),
        (["table1", "--device", "gpu"], "JAX finds no device of platform 'gpu'"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "in_own_process", lambda function, *arguments: function(*arguments))
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("name", ["roofline", "dispatch", "table1"])
def test_every_network_benchmark_is_reached_from_its_command(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "in_own_process", lambda function, *arguments: function(*arguments))
    asked = []
    monkeypatch.setattr(f"train.benchmarks.{name}.run", lambda settings, *rest: asked.append((settings, rest)))
    main(["bench", name, "--models", "resnet50", "--dtypes", "bfloat16", "--batch-size", "12", "--rounds", "3"])
    ((settings, rest),) = asked
    assert (settings.models, settings.dtypes, settings.batch_size, settings.rounds) == (
        ("resnet50",),
        ("bfloat16",),
        12,
        3,
    )
    assert any(str(given).startswith(f"python -m train bench {name} --models resnet50") for given in rest)


@pytest.mark.parametrize(
    ("name", "module"), [("input", "data.throughput"), ("probe", "benchmarks.probe"), ("grid", "benchmarks.grid")]
)
def test_every_benchmark_of_two_ways_is_reached_and_written(name, module, tmp_path, monkeypatch, capsys):
    @dataclass
    class Found:
        ratio: float

    monkeypatch.setattr(f"train.{module}.measure", lambda rounds: Found(rounds / 2))
    main(["bench", name, "--rounds", "3", "--json", str(tmp_path / "pace.json")])
    assert json.loads((tmp_path / "pace.json").read_text())["ratio"] == 1.5 and "ratio=1.5" in capsys.readouterr().out
