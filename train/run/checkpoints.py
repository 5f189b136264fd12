"""The checkpoints of a run: saved in the background, whole or not at all, and read back as they were saved."""

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from train.config import CheckpointConfig
from train.run import orbax_tracebacks
from train.run.checkpoint_format import CheckpointCorruptError, by_path, describe, first_line, read_about, read_state

# Bytes of a replicated array that a device writes at least. Each part takes a program that cuts it off, compiled at the
# first save: without a limit there were 104 of them for a small ConvNeXt on eight devices.
_SMALLEST_PART = 2**20


@dataclass(frozen=True)
class Restored:
    """A state that is what was saved, and what stood beside it."""

    step: int
    state: Any
    run: Mapping[str, Any]  # as it was given to `Checkpoints`
    warnings: Sequence[str]  # one for every newer checkpoint that is damaged


@dataclass(frozen=True)
class _Kept:
    """Which checkpoints Orbax preserves: the newest, and those of the best accuracies, which may still be added."""

    config: CheckpointConfig
    values: dict[int, float | None]  # by step, of what makes one the best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer for each of the checkpoints, oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.config.keep_newest :], *self.best(steps)[: self.config.keep_best]}
        return [step in kept for step in steps]

    def best(self, steps: Sequence[int]) -> list[int]:
        """Those that are rated, the best first, the later of equals."""
        rated = [step for step in steps if self.values.get(step) is not None]
        return sorted(rated, key=lambda step: (self.values[step], step), reverse=True)


class Checkpoints:
    """The checkpoints of one run, by step; a context manager that waits for pending saves.

    Kept are the newest ones and those with most of `best_by` on validation images, by default accuracy. `run` is put
    beside every state: whatever JSON can hold. With several hosts all must make every call together.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, run: Mapping[str, Any], best_by: str | None = None):
        self._directory, self._config, self._run = directory.absolute(), config, run
        self._best_by = best_by or "accuracy"
        self._kept = _Kept(config, {})
        self._pending: int | None = None
        orbax_tracebacks.drop()
        self._manager = self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        for failure in self._settled():
            print(failure, file=sys.stderr)
        self._manager.close()

    def save(self, step: int, state: Any, validation: Mapping[str, float], wait: bool = False) -> list[str]:
        """Starts to save `state` and returns once its arrays may be donated.

        Returns a line for each save that is now known to have failed, the one before this or, with `wait`, this one.

        Raises:
          OSError: for those, when the config says so.
        """
        failures = self._settled()
        if step not in self._manager.all_steps():
            arrays = by_path(state)
            about = describe(arrays, validation, self._run)
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), about=ocp.args.JsonSave(about))
            self._kept.values[step] = validation.get(self._best_by)
            self._pending = step
            try:
                self._manager.save(step, args=items)
            except Exception as error:  # what a file system says comes in many types
                failures.append(self._failed(error))
        if wait:
            failures += self._settled()
        if failures and self._config.on_save_error == "stop":
            raise OSError(" ".join(failures))
        return failures

    def restore_newest(self, like: Any) -> Restored | None:
        """The newest state that is what was saved, with the structure and the shardings of `like`; None if none is.

        Newer ones that are damaged are set aside, under another name.

        Raises:
          ValueError: when the newest that can be read holds other names, shapes or dtypes than `like`.
          CheckpointCorruptError: when there are checkpoints and all of them are damaged; they stay where they are.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, about = read_state(self._directory / str(step), like)
            except CheckpointCorruptError as error:
                damaged[step] = str(error)
                continue
            warnings = [f"{reason} Set aside as {self._set_aside(bad)}." for bad, reason in damaged.items()]
            if damaged:
                self._manager.close()
                self._manager = self._open()
            return Restored(step, state, about["run"], warnings)
        if damaged:
            raise CheckpointCorruptError(
                f"None of the checkpoints in {self._directory} is good: {' '.join(damaged.values())} "
                "Put back a copy, or delete the folder to begin anew."
            )
        return None

    def restore_best(self, like: Any) -> tuple[int, Any, Mapping[str, float]]:
        """Of the kept states the one with most of `best_by`: its step, it, and what was found on validation images.

        Raises:
          ValueError: when no evaluated state is kept.
          CheckpointCorruptError: when it is damaged.
        """
        best = self._kept.best(self._manager.all_steps())
        if not best:
            raise ValueError(f"{self._directory} keeps no state of which {self._best_by} is known.")
        state, about = read_state(self._directory / str(best[0]), like)
        return best[0], state, about["validation"]

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, create=True, cleanup_tmp_directories=True, save_root_metadata=False
        )
        types = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, ocp.type_handlers.NumpyHandler()),
            (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SMALLEST_PART)),
        )
        state = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        handlers = {"state": state, "about": ocp.JsonCheckpointHandler()}
        manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)
        self._kept.values.update({step: self._value(step) for step in manager.all_steps()})
        return manager

    def _value(self, step: int) -> float | None:
        try:
            return read_about(self._directory / str(step))["validation"].get(self._best_by)
        except CheckpointCorruptError:
            return None  # said when it is restored

    def _settled(self) -> list[str]:
        """Waits for the save that goes on, if one does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            return [self._failed(error)]
        self._pending = None
        return []

    def _failed(self, error: Exception) -> str:
        """The error in one line; what follows may be saved again, which Orbax's manager would refuse after an error."""
        step, self._pending = self._pending, None
        with contextlib.suppress(Exception):  # the same again
            self._manager.close()
        self._manager = self._open()
        whole = self._manager.latest_step()
        full = re.search("No space left on device|Disk quota exceeded|File too large", str(error))
        reason = full[0] if full else first_line(error)
        return (
            f"Checkpoint {step} could not be saved in {self._directory}: {reason}. An end of the run before the next "
            f"one would cost {'all steps' if whole is None else f'the steps after {whole}'}."
        )

    def _set_aside(self, step: int) -> str:
        name, copy = f"damaged-{step}", 1
        while (self._directory / name).exists():
            copy += 1
            name = f"damaged-{step}-{copy}"
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("a name is found")
        if jax.process_index() == 0:
            (self._directory / str(step)).rename(self._directory / name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("a damaged checkpoint is set aside")
        return name
