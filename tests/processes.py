"""Real processes of `python -m train run tests/tiny.py`, for tests that signal, stop and kill them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPILED = tempfile.TemporaryDirectory()  # shared by all runs: what is tested is not the compiler


class Run:
    """One run of one or several hosts under `folder`; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, *options: str, hosts=1, devices=1, of_last=(), root_of_last=ROOT):
        self.directory = folder / "tiny" / "VCReg" / "seed0"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "train", "run", "tests/tiny.py", "--runs-directory", str(folder), *options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._outputs = [folder / f"host{host}.txt" for host in range(hosts)]
        self.processes = []
        for host, output in enumerate(self._outputs):
            where = ["--coordinator", address, "--num-processes", str(hosts), "--process-id", str(host)]
            last = host == hosts - 1
            arguments = command + (where if hosts > 1 else []) + list(of_last if last else ())
            root = root_of_last if last else ROOT
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(arguments, cwd=root, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()

    def output(self, host: int = 0) -> str:
        """What a host has printed."""
        return self._outputs[host].read_text()

    def lines(self, split: str = "train") -> list[dict]:
        """What `metrics.jsonl` has of a split."""
        file = self.directory / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if line["split"] == split]

    def wait_for(self, step: int, seconds: float = 1200.0) -> None:
        """Returns once the training step is logged."""
        self.wait_until(lambda: any(line["step"] >= step for line in self.lines()), f"step {step}", seconds)

    def wait_until(self, condition, what: str, seconds: float = 1200.0) -> None:
        """Polls; what a run printed that has ended before is the error."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process.poll() for process in self.processes]
            if any(status is not None for status in ended) or time.monotonic() > deadline:
                raise AssertionError(f"{what} not reached: {ended}\n" + "\n".join(map(self.output, range(len(ended)))))
            time.sleep(0.05)

    def statuses(self, seconds: float = 1200.0) -> list[int]:
        """How the hosts ended, within that time."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
