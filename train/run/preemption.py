"""SIGTERM, with which schedulers take a machine away: what it does, and that all hosts act on it at the same step.

SIGINT, a key of the terminal, and SIGHUP, its end, do the same.
"""

import collections
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STATUS = 143  # 128 + SIGTERM: what shells and Kubernetes say of a process that SIGTERM has ended


class Preempted(SystemExit):
    """The end of a run that SIGTERM asked for; its state is that of a step boundary."""

    def __init__(self):
        super().__init__(STATUS)


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """SIGTERM ends the process with status 143, for want of anything to save; also process 1 of a container."""
    with _listening(_end):
        yield


class Preemption:
    """SIGTERM while training: the first asks for a checkpoint, the second, or one before any step, ends at once.

    A context manager. What the first one asks for is done where `check` is called next, on several hosts on all of
    them at the same call: each call sends an all-reduce of one number on its way and reads that of two calls before,
    which is there by then.
    """

    def __init__(self, mesh: Mesh):
        self._signals, self._steps_to_lose = 0, False
        self._devices = NamedSharding(Mesh(mesh.devices.reshape(-1), ("all",)), PartitionSpec("all"))
        self._here = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._on_their_way = collections.deque[jax.Array]()
        self._listening = _listening(self._note)

    def __enter__(self) -> "Preemption":
        self._listening.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._listening.__exit__(None, None, None)
        if self._signals and kind is None:
            raise Preempted  # came after the last check; all is saved

    def step_taken(self) -> None:
        """From now on there is something to save."""
        self._steps_to_lose = True

    def check(self) -> None:
        """Raises `Preempted` once a host has been told to end; all hosts must call it equally often."""
        if jax.process_count() == 1:
            asked = self._signals > 0
        else:
            here = np.full(self._here, self._signals > 0)
            self._on_their_way.append(_any(jax.make_array_from_process_local_data(self._devices, here)))
            asked = len(self._on_their_way) > 2 and bool(self._on_their_way.popleft())
        if asked:
            raise Preempted

    def _note(self, name: str) -> None:
        self._signals += 1
        if self._signals == 2 or not self._steps_to_lose:
            _end(name)
        print(f"{name}: a checkpoint at the next step, then the end; again: the end at once", file=sys.stderr)


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return jnp.any(flags)


def _end(name: str) -> None:
    print(f"{name}: ended. Start it again to go on where its last checkpoint is.", file=sys.stderr, flush=True)
    os._exit(STATUS)


@contextlib.contextmanager
def _listening(act: Callable[[str], None]) -> Iterator[None]:
    """Calls `act` with the name of each such signal, from a thread: the main one may be in the compiler for minutes."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not ours to handle
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def listen() -> None:
        with receiver:
            while numbers := receiver.recv(1):
                if numbers[0] in SIGNALS:
                    act(signal.Signals(numbers[0]).name)

    # Python then writes the number to the wake-up socket. What `nohup` has told to ignore SIGHUP stays so.
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in taken}
    woken_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True, name="sigterm")
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        sender.close()
        listener.join(timeout=1.0)
