"""Two processes restore a checkpoint, one of whose parts is damaged: both must take the one before, and none may wait.

python -m tests.faults.damage_on_hosts FOLDER
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.victim import ROOT, fresh

HOST = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 2)
what, folder, port, host = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(host))
from train.run.checkpoints import Checkpoints
from train.config import CheckpointConfig
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
def state(step):
    shardings = {"split": NamedSharding(mesh, P("fsdp")), "whole": NamedSharding(mesh, P())}
    def make():
        key = jax.random.key(step)
        return {"split": jax.random.normal(key, (512, 64)), "whole": jax.random.normal(key, (64, 64))}
    return jax.jit(make, out_shardings=shardings)()
with Checkpoints(Path(folder), CheckpointConfig(), {}) as checkpoints:
    if what == "save":
        for step in (1, 2):
            checkpoints.save(step, state(step), {})
    else:
        restored = checkpoints.restore_newest(state(9))
        for name, array in state(restored.step).items():
            for ours, theirs in zip(restored.state[name].addressable_shards, array.addressable_shards):
                assert np.asarray(ours.data).tobytes() == np.asarray(theirs.data).tobytes(), name
        print(restored.step, *restored.warnings, flush=True)
"""


def main(folder: Path) -> None:
    """Prints what both hosts said to each kind of damage and after how long."""
    whole, copy = fresh(folder / "hosts") / "whole", folder / "hosts" / "copy"
    _both("save", whole)
    damages = {
        "nothing damaged": lambda file: None,
        "a chunk that only the second host reads, flipped": _flip,
        "the same, deleted": Path.unlink,
        "the same, cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "what stands beside the arrays, deleted": lambda file: (copy / "2" / "about" / "metadata").unlink(),
    }
    for name, damage in damages.items():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        files = (copy / "2" / "state" / "ocdbt.process_1" / "d").iterdir()
        damage(max(files, key=lambda path: path.stat().st_size))
        started = time.monotonic()
        said = _both("restore", copy)
        expected = "2" if name == "nothing damaged" else "1"
        assert [text.split()[0] for text in said] == [expected, expected], said
        print(f"{name}: both go on from step {expected}, {time.monotonic() - started:.0f} s")
        for host, text in enumerate(said):
            print(f"  host {host}: {text[:230]}", flush=True)


def _both(what: str, folder: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", HOST, what, str(folder), port]
    options = {"cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu"}, "text": True, "stdout": subprocess.PIPE}
    hosts = [subprocess.Popen([*command, str(host)], **options, stderr=subprocess.PIPE) for host in range(2)]
    said = [host.communicate(timeout=300) for host in hosts]
    assert all(host.returncode == 0 for host in hosts), said
    return [out.replace(str(folder), "").strip().splitlines()[-1] for out, _ in said]  # Gloo speaks first


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
