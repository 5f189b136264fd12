import gc
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import CheckpointConfig
from train.run import orbax_tracebacks
from train.run.checkpoint_format import CheckpointCorruptError, read_arrays
from train.run.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]


def _state(seed=0, width=16):
    kernel = jax.random.normal(jax.random.key(seed), (8, width))
    params = {"layers": {0: {"kernel": kernel}}, "bias": jnp.full((width,), -0.0)}
    return {"step": jnp.int32(7), "params": params, "opt_state": optax.adamw(1e-3).init(params)}


def _bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _open(directory, run=None, **changes):
    return Checkpoints(directory, CheckpointConfig(**changes), run or {})


def test_a_state_comes_back_bit_for_bit_with_its_structure_and_what_stood_beside_it(tmp_path, monkeypatch):
    state = _state()
    with _open(tmp_path, {"seed": 5}) as checkpoints:
        assert checkpoints.restore_newest(like=state) is None
        checkpoints.save(7, state, {"accuracy": 0.5})
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(like=_state(seed=1))
    assert (restored.step, restored.run, restored.warnings) == (7, {"seed": 5}, [])
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert _bits(restored.state) == _bits(state)
    monkeypatch.chdir(tmp_path)
    arrays, about = read_arrays(Path("7"))  # as a command's argument: Orbax itself takes absolute paths alone
    assert about["validation"] == {"accuracy": 0.5}
    assert _bits(arrays["params/layers/0/kernel"]) == _bits(state["params"]["layers"][0]["kernel"])


def test_small_arrays_on_many_devices_are_saved_without_a_compiled_program_and_large_ones_in_parts(tmp_path, caplog):
    replicated = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    small = jax.device_put(np.arange(24.0, dtype=np.float32).reshape(8, 3), replicated)
    large = jax.device_put(np.arange(2**21 + 8, dtype=np.float32), replicated)  # 8 devices write over a MiB each

    def compiled():
        found = [one for one in caplog.messages if "Finished XLA compilation" in one]
        caplog.clear()
        return len(found)

    with _open(tmp_path) as checkpoints, jax.log_compiles(), caplog.at_level(logging.WARNING):
        checkpoints.save(1, {"small": small}, {}, wait=True)
        assert compiled() == 0
        checkpoints.save(2, {"large": large}, {}, wait=True)
        assert compiled() == 8
        assert _bits(checkpoints.restore_newest(like={"large": large}).state) == _bits(large)


def test_a_state_is_restored_onto_another_mesh(tmp_path):
    state = _state()
    devices = np.array(jax.devices())
    with _open(tmp_path) as checkpoints:
        mesh = Mesh(devices.reshape(4, 2), ("data", "fsdp"))
        spread = jax.device_put(state["params"], NamedSharding(mesh, PartitionSpec()))
        kernel = NamedSharding(mesh, PartitionSpec("fsdp"))
        spread["layers"][0]["kernel"] = jax.device_put(spread["layers"][0]["kernel"], kernel)
        checkpoints.save(1, spread, {})
    sharding = NamedSharding(Mesh(devices[:4], ("fsdp",)), PartitionSpec(None, "fsdp"))
    like = jax.device_put(_state(seed=1)["params"], NamedSharding(Mesh(devices[:4], ("fsdp",)), PartitionSpec()))
    like["layers"][0]["kernel"] = jax.device_put(like["layers"][0]["kernel"], sharding)
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(like=like).state
    assert _bits(restored) == _bits(state["params"])
    assert restored["layers"][0]["kernel"].sharding == sharding


def test_the_newest_and_the_best_checkpoints_are_kept_also_by_the_next_process(tmp_path):
    accuracies = [0.1, 0.9, 0.3, 0.9, None, 0.2, 0.4]
    for some in ((1, 2, 3, 4), (5, 6, 7)):
        with _open(tmp_path, keep_newest=2, keep_best=1) as checkpoints:
            for step in some:
                accuracy = accuracies[step - 1]
                checkpoints.save(step, _state(step), {} if accuracy is None else {"accuracy": accuracy})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6", "7"]  # of equals the newer


def test_the_best_is_what_most_of_the_named_number_was_found_of_also_by_the_next_process(tmp_path):
    found = {1: 3.0, 2: 9.0, 3: 4.0, 4: 5.0}
    with Checkpoints(tmp_path, CheckpointConfig(keep_newest=1), {}, "rankme") as checkpoints:
        with pytest.raises(ValueError, match="keeps no state of which rankme is known"):
            checkpoints.restore_best(like=_state())
        for step, rank in found.items():
            checkpoints.save(step, _state(step), {"accuracy": 0.1 * step, "rankme": rank}, wait=True)
    with Checkpoints(tmp_path, CheckpointConfig(), {}, "rankme") as checkpoints:
        step, state, validation = checkpoints.restore_best(like=_state())
    assert (step, validation) == (2, {"accuracy": 0.2, "rankme": 9.0})
    assert _bits(state) == _bits(_state(2))


def test_another_model_or_optimizer_is_refused_with_every_difference_listed(tmp_path):
    with _open(tmp_path) as checkpoints:
        checkpoints.save(1, _state()["params"], {}, wait=True)
        other = {"layers": {0: {"kernel": jnp.zeros((8, 3))}}, "scale": jnp.zeros(16)}
        with pytest.raises(ValueError, match="of another model or optimizer") as refused:
            checkpoints.restore_newest(like=other)
    message = str(refused.value)
    assert "! layers/0/kernel: float32[8, 16] is saved, float32[8, 3] is wanted" in message
    assert "- bias: float32[16] is saved, not wanted" in message
    assert "+ scale: float32[16] is wanted, not saved" in message


STATE = {"kernel": jax.random.normal(jax.random.key(0), (64, 64)), "bias": jnp.arange(64.0)}


def _newer(state):
    return jax.tree.map(lambda leaf: leaf + 1, state)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with _open(folder) as checkpoints:
        checkpoints.save(1, STATE, {})
        checkpoints.save(2, _newer(STATE), {})
    return folder


def _data_file(folder):
    """The largest of those that hold array data."""
    files = [path for path in (folder / "2" / "state").rglob("*") if path.is_file() and "/d/" in str(path)]
    return max(files, key=lambda path: path.stat().st_size)


def _flip(file, share):
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 0b100
    file.write_bytes(content)


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    **{
        f"bit flipped at {share}": lambda step, share=share: _flip(_data_file(step.parent), share)
        for share in (0.2, 0.7)
    },
    "chunk truncated": lambda step: _halve(_data_file(step.parent)),
    "chunk deleted": lambda step: _data_file(step.parent).unlink(),
    "index deleted": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "what stands beside deleted": lambda step: (step / "about" / "metadata").unlink(),
    "what stands beside changed": lambda step: _flip(step / "about" / "metadata", 0.5),
    "what stands beside truncated": lambda step: _halve(step / "about" / "metadata"),
    "Orbax's names changed": lambda step: _flip(step / "state" / "_METADATA", 0.1),
    "all arrays gone": lambda step: shutil.rmtree(step / "state"),
}


# TensorStore may report a missing file to an event loop that Orbax has closed by then.
@pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_with_one_line_and_the_one_before_is_taken(
    two_steps, tmp_path, damage, capfd
):
    folder = shutil.copytree(two_steps, tmp_path / "checkpoints")
    DAMAGES[damage](folder / "2")
    with _open(folder) as checkpoints:
        restored = checkpoints.restore_newest(like=STATE)
        assert restored.step == 1 and _bits(restored.state) == _bits(STATE)
        (warning,) = restored.warnings
        assert str(folder / "2") in warning and "Set aside as damaged-2." in warning and "\n" not in warning
        assert checkpoints.save(2, _newer(STATE), {}, wait=True) == []  # the step is free again
        assert checkpoints.restore_newest(like=STATE).step == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "damaged-2"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("file", ["_METADATA", "commit_success.txt", "_sharding"])
def test_files_without_data_may_be_lost(two_steps, tmp_path, file):
    folder = shutil.copytree(two_steps, tmp_path / "checkpoints")
    (folder / "2" / "state" / file).unlink()
    with _open(folder) as checkpoints:
        restored = checkpoints.restore_newest(like=STATE)
    assert (restored.step, _bits(restored.state)) == (2, _bits(_newer(STATE)))


def test_a_flipped_bit_is_laid_to_its_array(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "checkpoints")
    about = json.loads((folder / "2" / "about" / "metadata").read_text())
    with pytest.raises(CheckpointCorruptError, match="holds other bits than were saved in: kernel"):
        for position in itertools.count(1):
            shutil.copy(_data_file(two_steps), _data_file(folder))
            _flip(_data_file(folder), 1 - position / 100)
            read_arrays(folder / "2")
    assert set(about["arrays"]) == {"kernel", "bias"}


def test_when_all_are_damaged_it_is_one_error_and_nothing_is_moved(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "checkpoints")
    for step in ("1", "2"):
        (folder / step / "about" / "metadata").unlink()
    for _ in range(2):
        with _open(folder) as checkpoints, pytest.raises(CheckpointCorruptError, match="None of the checkpoints in"):
            checkpoints.restore_newest(like=STATE)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.fixture
def small_disk():
    """Writes beyond 20,000 bytes of a file fail, as they do on a full disk; for those inside the returned context."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("on_save_error", ["continue", "stop"])
def test_a_save_that_fails_is_a_line_or_an_error_and_harms_no_other(tmp_path, small_disk, on_save_error, caplog):
    large = {"noise": jax.random.normal(jax.random.key(0), (200, 200))}
    small = {"noise": jnp.zeros((200, 200))}  # which compresses
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _open(tmp_path, on_save_error=on_save_error) as checkpoints:
        assert checkpoints.save(1, small, {}, wait=True) == []
        small_disk()
        if on_save_error == "stop":
            with pytest.raises(OSError, match="Checkpoint 2 could not be .*: File too large. .* the steps after 1[.]"):
                checkpoints.save(2, large, {}, wait=True)
        else:
            (failure,) = checkpoints.save(2, large, {}, wait=True)
            assert "Checkpoint 2 could not be saved" in failure and "File too large" in failure
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        gc.collect()
        assert not caplog.records  # of Orbax, which tells every thread's error with a traceback
        assert checkpoints.restore_newest(like=small).step == 1
        assert checkpoints.save(2, large, {}, wait=True) == []  # the same step, which Orbax's manager would refuse
    with _open(tmp_path) as checkpoints:
        assert _bits(checkpoints.restore_newest(like=large).state) == _bits(large)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


ENDLESS_SAVES = """
import sys, pathlib, jax, jax.numpy as jnp
from train.run.checkpoints import Checkpoints
from train.config import CheckpointConfig
with Checkpoints(pathlib.Path(sys.argv[1]), CheckpointConfig(), {}) as checkpoints:
    for step in range(1, 10_000):
        checkpoints.save(step, {"noise": jax.random.bits(jax.random.key(step), (700, 700))}, {})
"""


def test_a_process_killed_while_it_saves_leaves_whole_checkpoints_only(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", ENDLESS_SAVES, str(tmp_path)], cwd=ROOT, env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "3").exists() or not list(tmp_path.glob("*.orbax-checkpoint-tmp")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    like = {"noise": jnp.zeros((700, 700), jnp.uint32)}
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(like)
        assert restored.step >= 3 and restored.warnings == []
        assert _bits(restored.state) == _bits(jax.random.bits(jax.random.key(restored.step), (700, 700)))
        assert checkpoints.save(restored.step + 1, like, {}, wait=True) == []


@pytest.mark.parametrize(
    ("name", "message", "is_news"),
    [
        ("asyncio", "Future exception was never retrieved: DATA_LOSS: Error reading in OCDBT database", False),
        ("asyncio", "Task exception was never retrieved: /site-packages/orbax/checkpoint", False),
        ("asyncio", "Future exception was never retrieved: of something else", True),
        ("absl", "Error of something else", True),
    ],
)
def test_of_what_threads_tell_only_orbaxs_errors_are_dropped(name, message, is_news, caplog):
    orbax_tracebacks.drop()
    logging.getLogger(name).error(message)
    assert [record.getMessage() for record in caplog.records] == [message] * is_news
