import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from configs import digits
from tests.tiny_network import TWO_STAGES
from train.__main__ import main
from train.benchmarks import preflight, tpu_compiler
from train.benchmarks.preflight import Plan
from train.benchmarks.tpu_compiler import GIB, Collective, Compiled, TooLarge
from train.config import MeshConfig, ModelConfig
from train.trainer import mesh as meshes
from train.trainer.model import Architecture
from train.trainer.step import split

pytest.importorskip("libtpu", reason="the extra `aot` is not installed")
pytestmark = [pytest.mark.optimized, pytest.mark.usefixtures("smallest")]

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "digits.py")
IMAGES = 32  # on each of four chips
OPTIMIZER = optax.adamw(1e-3)
# Rows a chip and features of the outputs of its two blocks: maps of 4x4 and 2x2.
BLOCKS = [(IMAGES * 16, 32), (IMAGES * 4, 64)]


def architecture(sites: vc.Sites) -> Architecture:
    return Architecture(ModelConfig(TWO_STAGES), 2, (8, 8, 1), sites)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(MeshConfig(), tpu_compiler.topology_devices("v5e:2x2"))


@pytest.fixture(scope="module")
def compiled(mesh):
    """The step of every kind, for four chips."""
    jax.config.update("jax_disable_most_optimizations", False)
    regularizers = {"identity": vc.identity, "global": vc.VCReg(), "groups": vc.VCReg(scope=4)}
    found = {}
    for name, reg in regularizers.items():
        step = tpu_compiler.compile_step(architecture(vc.Sites(block=reg)), OPTIMIZER, 4 * IMAGES, mesh)
        assert isinstance(step, Compiled)
        found[name] = step
    return found


def test_groups_send_what_no_regularizer_sends(compiled):
    assert set(compiled["identity"].collectives) == {"all-reduce"}
    assert compiled["groups"].collectives == compiled["identity"].collectives


def test_the_global_scope_sends_every_layers_statistics_and_no_more(compiled):
    without, over_all = (compiled[name].collectives["all-reduce"] for name in ("identity", "global"))
    assert set(compiled["global"].collectives) == {"all-reduce"}
    assert without.count < over_all.count <= without.count + len(BLOCKS)
    # In float32 a d x d matrix, and from each of four chips a mean, which is two numbers a feature.
    assert over_all.result_bytes - without.result_bytes == sum(4 * (d + 2 * 4) * d for _, d in BLOCKS)


@pytest.mark.parametrize("scope", ["global", "groups"])
def test_the_regularizer_adds_two_products_a_layer(compiled, scope):
    added = compiled[scope].operations - compiled["identity"].operations
    assert sum(4 * n * d**2 for n, d in BLOCKS) == pytest.approx(added, rel=0.1)


def test_what_the_gradients_of_all_parameters_take_is_what_no_regularizer_sends(compiled):
    shapes = jax.eval_shape(lambda: split(architecture(vc.Sites()).create(0))[1])
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    sent = compiled["identity"].collectives["all-reduce"].result_bytes
    assert gradients <= sent < gradients * 1.01 + 100  # and the sums of the metrics


def test_memory_holds_at_least_the_state_and_the_batch(compiled):
    shapes = jax.eval_shape(lambda: split(architecture(vc.Sites()).create(0))[1])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    held = 4 * (3 * parameters + 2) + IMAGES * (8 * 8 + 4)  # two moments, two counts; pixels and labels
    for step in compiled.values():
        assert held <= step.total_bytes - step.temporary_bytes < 2 * held
        assert step.cycles > 0


@pytest.mark.parametrize(
    ("dtype", "fsdp", "state", "needed", "expected"),
    [
        # The batch takes 20 GiB and may take 10, of which nine tenths: 0.45 of 128 images a chip.
        ("bfloat16", 4, 5.75, 25.75, ["--train.batch-size 228"]),
        ("float32", 1, 5.75, 25.75, ["--train.batch-size 228", "--train.mesh.fsdp 4", "--train.model.dtype bfloat16"]),
        ("bfloat16", 2, 17.0, 20.0, ["--train.mesh.fsdp 4"]),
        ("bfloat16", 4, 17.0, 20.0, ["take more devices"]),
    ],
)
def test_what_would_make_a_step_fit_is_named(mesh, dtype, fsdp, state, needed, expected):
    config = digits.get_config().train
    model, shape = replace(config.model, dtype=dtype), replace(config.mesh, fsdp=fsdp)
    train = replace(config, model=model, mesh=shape, batch_size=4 * 128)
    plan = Plan("digits", "v5e:2x2", train, (8, 8, 1), 2, {}, mesh, 15.75 * GIB, int(state * GIB))
    assert preflight.remedies(plan, needed * GIB) == expected


def plan_of(mesh, batch_size: int) -> Plan:
    train = replace(digits.get_config().train, batch_size=batch_size)
    return Plan("digits", "v5e:2x2", train, (8, 8, 1), 2, {}, mesh, 15.75 * GIB, GIB // 4)


def test_the_heading_says_what_is_compiled_and_for_what(mesh):
    assert preflight.heading(plan_of(mesh, 512)).splitlines() == [
        "digits: convnext_digits, float32, images of (8, 8, 1), 2 classes",
        "v5e:2x2: 4 x 15.75 GiB, 512 images a step, 128 a device; state 0.25 GiB a device",
    ]


def test_what_fits_is_told_with_the_regularizers_share_and_what_is_sent(mesh):
    sent = {"all-gather": Collective(1, 500_000), "all-reduce": Collective(3, 2_000_000)}
    without = Compiled(2_000, 1e9, 2 * GIB, GIB, {}, 3.2)
    found = Compiled(2_070, 1.5e9, 5 * GIB // 2, 3 * GIB // 2, sent, 4.4)
    assert preflight.describe(plan_of(mesh, 512), found, without).splitlines() == [
        "  fits: 2.50 GiB a chip, of which temporary 1.50",
        "  cycles: 2,070 (estimated, without communication), +3.5% by the regularizer; 1.500e+09 operations",
        "  collectives: 1 all-gather, 0.5 MB; 3 all-reduce, 2.0 MB",
        "  compiled in 4 s",
    ]
    alone = preflight.describe(plan_of(mesh, 512), without, without)
    assert "by the regularizer" not in alone and "collectives: none" in alone
    assert "by the regularizer" not in preflight.describe(plan_of(mesh, 512), found, TooLarge(20.0 * GIB, 1.0))


def test_what_does_not_fit_is_told_with_a_way_out(mesh):
    # 4 GiB more than the state may be 15.5: nine tenths of 64 times that, but less than now.
    text = preflight.describe(plan_of(mesh, 256), TooLarge(4.25 * GIB, 1.0), TooLarge(4.25 * GIB, 1.0))
    assert text == (
        "  DOES NOT FIT: needs 4.25 GiB a chip. Change: --train.batch-size 252 or --train.model.dtype bfloat16"
    )


@pytest.mark.parametrize("generation", tpu_compiler.HBM_BYTES)
def test_the_memory_of_a_chip_is_what_the_compiler_says(generation):
    topology = generation + (":2x2" if generation in ("v5e", "v6e") else ":2x2x1")
    devices = tpu_compiler.topology_devices(topology)
    assert len(devices) == 4  # one a chip
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere = NamedSharding(mesh, PartitionSpec())
    program = jax.jit(lambda x: x @ x.T).lower(jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32, sharding=everywhere))
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        program.compile()
    gib = re.search(r"available HBM \(([\d.]+)G\)|of ([\d.]+)G hbm", str(refused.value))
    # Releases of the compiler keep some 10 MiB more or less for themselves.
    assert tpu_compiler.HBM_BYTES[generation] == pytest.approx(float(gib[1] or gib[2]) * 2**30, rel=1e-3)


@pytest.mark.parametrize(("topology", "chips"), [("v5e:1x1", 1), ("v5e:2x4", 8), ("v5e:16x16", 256), ("v4:4x4x4", 64)])
def test_a_pod_has_a_device_a_chip(topology, chips):
    assert len({tuple(device.coords) for device in tpu_compiler.topology_devices(topology)}) == chips


PROGRAM = """
  %all-reduce.1 = (f32[3,5]{1,0:T(8,128)}, /*index=1*/bf16[7]{0}) all-reduce(%a, %b), channel_id=1
  %start = (f32[2,2]{1,0}, f32[8,2]{1,0:T(8,128)S(1)}) all-gather-start(%c), dimensions={0}
  %done.2 = f32[8,2]{1,0:T(8,128)S(1)} all-gather-done(%start), metadata={op_name="all-reduce(x)"}
  %ar = pred[] all-reduce(%d), to_apply=%or
  ROOT %cp = f8e4m3fn[10]{0} collective-permute(%e)
  %gte = f32[3,5]{1,0} get-tuple-element(%all-reduce.1), index=0
"""


def test_collectives_are_read_from_a_programs_text():
    assert tpu_compiler.collectives(PROGRAM) == {
        "all-gather": Collective(1, 8 * 2 * 4),
        "all-reduce": Collective(2, 3 * 5 * 4 + 7 * 2 + 1),
        "collective-permute": Collective(1, 10),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:3x3"], "There is no topology v5e:3x3"),
        (["--topology", "v9:2x2"], "A topology is one of v4, v5e, v5p, v6e, a colon and chips, as v5e:4x4; got"),
        (["--topology", "v5e:2x2", "--train.batch-size", "6"], "batch_size must divide by the 4 devices, got 6."),
        (["--topology", "v5e:2x2", "--train.mesh.fsdp", "3"], "The mesh needs data * fsdp = 4 devices"),
        (["--topology", "v5e:2x2", "--train.model.name", "vit_b_32"], "images of 224x224, got 8x8"),
        ([], "--topology"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["preflight", CONFIG, "--image-shape", "8", "8", "1", "--num-classes", "2", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())  # the data set was not needed


def test_without_libtpu_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=re.escape("pip install -e '.[train,aot]'")):
        tpu_compiler.topology_devices("v5e:2x2")


def test_a_real_process_says_what_does_not_fit_on_stdout_alone_and_ends_with_status_one(tmp_path):
    # Without a shape of the images and a number of classes, which are then the data set's.
    batch = ["--train.batch-size", str(4 * 10**7)]
    command = [sys.executable, "-m", "train", "preflight", "tests/tiny.py", "--topology", "v5e:2x2", *batch]
    result = tmp_path / "result.json"
    done = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("DOES NOT FIT") == 2 and "--train.batch-size" in done.stdout
    assert done.stderr == ""
    assert "images of (8, 8, 1), 2 classes\n" in done.stdout
    found = json.loads(result.read_text())
    assert found["fits"] is False and list(found["arms"]) == ["identity", "VCReg"]
    assert found["command"] == shlex.join(["python", *command[1:], "--json", str(result)])
    assert found["versions"].keys() >= {"jax", "libtpu"} and found["chips"] == 4
