"""Where a number comes from: the machine and the code."""

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path

import jax


def hardware() -> str:
    """The devices that JAX uses, by number and kind; for CPUs with the processor's name and its cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.platform} ({device.device_kind})"
    return f"{jax.device_count()} x cpu ({_processor()}), {os.cpu_count()} CPU cores"


def _processor() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = " ".join(found[1].split()) if found else ""
    return platform.machine() + (f", {name}" if name not in ("", "unknown") else "")


def commit() -> str:
    """The commit that the code is at, "with changes" where files differ from it.

    Where there is no git, what the environment variable VCREG_COMMIT says, or "unknown".
    """
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("VCREG_COMMIT", "unknown")
    return head.strip() + (" with changes" if changed.strip() else "")


def sources() -> str:
    """A hash of the code of `train` and `vcreg_jax`, also where no commit is known."""
    root = Path(__file__).parent.parent.parent
    files = sorted(path for package in ("train", "vcreg_jax") for path in (root / package).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]
