"""Eight virtual devices, strict broadcasting, and PyTorch's models on a CPU build."""

import gc
import os
import resource
import sys
import time

import jax
import pytest

# Also beside a torch for which torchvision's compiled operators do not load: as this imports it, the tests can.
import train.interop.crosscheck.torch_networks  # noqa: F401
from tests import tiny_network

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most tests compile much and compute little: half the time. Those marked `optimized` compile with optimizations.
jax.config.update("jax_disable_most_optimizations", True)
# Nor does anyone look into these programs for the lines of Python that they come from: a twelfth of the time.
jax.config.update("jax_include_full_tracebacks_in_locations", False)


def _start_with_the_older_fusion_emitters():
    """XLA's newer ones compile twice as long. Flags count when JAX starts; processes that tests start have none."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
    jax.devices()
    os.environ["XLA_FLAGS"] = flags


if jax.__version_info__ < (0, 11):  # later ones have no others, and end the process at a flag that they do not know
    _start_with_the_older_fusion_emitters()


@pytest.fixture(autouse=True)
def _optimized(request):
    marked = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not marked)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# Tracing makes many objects, nearly all of which go by themselves: looks for cycles among them may be rare.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Of all modules together they take gigabytes, and more maps of memory than Linux gives a process: 65,530."""
    yield
    jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def smallest():
    """The name of a network for tests of whole runs, which `create` takes as long as a module's tests run."""
    tiny_network.add_smallest()
    yield tiny_network.SMALLEST
    tiny_network.remove_smallest()


@pytest.fixture
def x64():
    """64-bit arithmetic for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_torch_thread():
    """For small images and networks PyTorch's threads cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What the suite costs is said at its end: its time, and the peak memory of its largest process.
_BEGUN, _PEAKS = time.monotonic(), []


def _measure_peak() -> float:
    """In GiB; macOS counts bytes, Linux kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of xdist's workers
        session.config.workeroutput["peak"] = _measure_peak()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _PEAKS.append(getattr(node, "workeroutput", {}).get("peak", 0.0))


def pytest_terminal_summary(terminalreporter):
    load, cores = os.getloadavg()[2], os.cpu_count()
    terminalreporter.write_line(
        f"{(time.monotonic() - _BEGUN) / 60:.1f} minutes on {cores} cores (load {load:.1f} over the last quarter of an "
        f"hour), peak memory of a worker {max(_PEAKS, default=_measure_peak()):.2f} GiB"
    )
