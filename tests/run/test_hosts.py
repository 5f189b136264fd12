"""Two real processes with four devices each, against one with eight."""

import functools
import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import vcreg_jax as vc
from configs import digits
from train.config import CheckpointConfig
from train.data import pipeline
from train.run import hosts
from train.run.checkpoints import Checkpoints
from train.trainer import evaluation
from train.trainer import mesh as meshes
from train.trainer.objective import Classification
from train.trainer.step import Normalize, initial_state, make_predict, make_train_step, split, weights_to_use

ROOT = Path(__file__).parents[2]
DATA = digits.get_config().train.data
BATCH_SIZE, STEPS = 32, 5


class Network(nnx.Module):
    """Two layers with batch statistics and VCReg between them; the first is large enough to be split over `fsdp`."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.BatchNorm(128, rngs=rngs)
        self.head = nnx.Linear(128, 2, rngs=rngs)

    def __call__(self, images, *, train=False, rngs=None):
        h = self.norm(self.first(images.reshape(len(images), -1)), use_running_average=not train)
        features = vc.VCReg(alpha=2.0, beta=5.0)(jax.nn.relu(h))
        return self.head(features), features


def interleaved_mesh():
    """Devices of both hosts in turn, as a mesh that follows the chips' network may have them."""
    devices = np.array(jax.devices()).reshape(2, 4).T
    return Mesh(devices, ("data", "fsdp"))


def first_state(graphdef, params, stats, mesh):
    optimizer = optax.sgd(0.1)
    create = functools.partial(initial_state, params, stats, optimizer)
    shardings = meshes.state_shardings(jax.eval_shape(create), mesh)
    return optimizer, jax.jit(create, out_shardings=shardings)()


def train(folder):
    """Losses, evaluation, rows read and final weights of a few steps; the state is saved in `folder`."""
    mesh, normalize = interleaved_mesh(), Normalize(DATA.mean, DATA.std)
    graphdef, params, stats = split(Network())
    with jax.set_mesh(mesh), Checkpoints(folder, CheckpointConfig(), {}) as checkpoints:
        optimizer, state = first_state(graphdef, params, stats, mesh)
        train_step = make_train_step(graphdef, optimizer, normalize, Classification(0.1), mesh)
        rows = meshes.host_rows(mesh, BATCH_SIZE)
        read, losses = [], []
        batches = pipeline.load(DATA, "train").train_batches(BATCH_SIZE, 3, 0, None, rows)
        for batch in itertools.islice(batches, STEPS):
            read.append(batch["image"])
            state, metrics = train_step(state, meshes.to_devices(batch, mesh), 0)
            losses.append(float(metrics["loss"]))
        checkpoints.save(STEPS, state, {}, wait=True)
        predict = functools.partial(make_predict(graphdef, normalize), *weights_to_use(state))
        validation = evaluation.evaluate(predict, pipeline.load(DATA, "validation"), BATCH_SIZE, mesh)
        weights = multihost_utils.process_allgather(weights_to_use(state), tiled=True)
    first = weights[0]["first"]["kernel"]
    held = state["params"]["first"]["kernel"].addressable_shards[0].data.shape
    assert held == (64, 64) and first.shape == (64, 128)
    return losses, validation, rows, np.stack(read, axis=1), [np.asarray(leaf) for leaf in jax.tree.leaves(weights)]


def refusals():
    """What hosts say that differ, and of which one cannot begin."""
    here, said = jax.process_index(), []

    def cannot_begin():
        if here == 1:
            raise OSError("the disk is gone")

    for describe in (lambda: {"config": {"steps": 3 + here, "seed": 0}}, cannot_begin, lambda: {"seed": 0}):
        try:
            hosts.check_same(describe)
        except ValueError as error:
            said.append(str(error))
    return said


def one_of_two(address, host, folder):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_disable_most_optimizations", True)
    hosts.join(address, 2, host)
    said = refusals()
    losses, validation, rows, read, weights = train(folder / "checkpoints")
    np.savez(folder / f"host{host}.npz", rows, read, *weights)
    answer = hosts.first_says(host == 0)
    (folder / f"host{host}.json").write_text(json.dumps([said, losses, validation, answer]))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    pipeline.load(DATA, "train")  # prepared before two want to
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = (
        "import sys; from pathlib import Path; from tests.run.test_hosts import one_of_two;"
        "one_of_two(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))"
    )
    commands = [[sys.executable, "-c", program, address, str(host), str(folder)] for host in (0, 1)]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder, [json.loads((folder / f"host{host}.json").read_text()) for host in (0, 1)]


def test_two_hosts_train_and_evaluate_as_one(both, tmp_path):
    folder, results = both
    losses, validation, _, read, weights = train(tmp_path)
    for host, (_, its_losses, its_validation, _) in enumerate(results):
        arrays = list(np.load(folder / f"host{host}.npz").values())
        rows, its_read, *its_weights = arrays
        assert sorted(set(rows // 4 % 2)) == [host]  # four rows a device, devices in turn
        np.testing.assert_array_equal(its_read, read[rows])  # the same images and shifts, and only its own
        np.testing.assert_allclose(its_losses, losses, rtol=1e-6)
        for ours, theirs in zip(its_weights, weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert its_validation["accuracy"] == validation["accuracy"]
        np.testing.assert_allclose(its_validation["loss"], validation["loss"], rtol=1e-6)


def test_what_two_hosts_have_saved_one_restores_onto_its_mesh_bit_for_bit(both):
    folder, _ = both
    saved = list(np.load(folder / "host0.npz").values())[2:]
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 4), ("data", "fsdp"))
    with jax.set_mesh(mesh), Checkpoints(folder / "checkpoints", CheckpointConfig(), {}) as checkpoints:
        restored = checkpoints.restore_newest(first_state(*split(Network()), mesh)[1])
    assert restored.step == STEPS
    assert restored.state["params"]["first"]["kernel"].addressable_shards[0].data.shape == (64, 32)
    for ours, theirs in zip(jax.tree.leaves(weights_to_use(restored.state)), saved, strict=True):
        assert np.asarray(ours).tobytes() == theirs.tobytes()


def test_hosts_that_differ_or_cannot_begin_are_refused_on_both_with_the_same_line(both):
    _, results = both
    for said, *_, answer in results:
        assert said == [
            "All hosts of a run need the same config, code and data. Of host 1 (there) and host 0 (here) differ: "
            "config.steps: 4 there, 3 here.",
            "host 1: the disk is gone",
        ]
        assert answer is True  # the first host's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1234", 2, None), "go together"),
        ((None, 2, None), "go together"),
        (("localhost", 2, 0), "need host:port and 0 <= id < number, got localhost, 0 of 2"),
        (("localhost:1234", 2, 2), "got localhost:1234, 2 of 2"),
    ],
)
def test_options_that_name_no_host_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.join(*arguments)


def test_a_process_on_its_own_starts_nothing():
    program = (
        "import jax; from train.run import hosts; hosts.join(); hosts.join(count=1);"
        "print(jax.distributed.is_initialized(), jax.process_count())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "1"], done.stderr
