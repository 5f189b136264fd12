import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The library needs jax, flax, optax, chex and jaxtyping. What those bring along they may import; we may not.
LIBRARY_MAY_IMPORT = {"jax", "flax", "optax", "chex", "jaxtyping", "numpy", "vcreg_jax"}
NOT_FOR_THE_LIBRARY = [
    *("train", "configs", "tensorflow", "tensorflow_datasets", "grain", "array_record", "torch", "torchvision"),
    *("timm", "sklearn", "matplotlib", "tyro", "PIL", "safetensors", "beartype", "pytest", "importlib_resources"),
]


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("vcreg_jax", LIBRARY_MAY_IMPORT), ("configs", {"train", "vcreg_jax", "configs"})],
)
def test_imports_point_one_way(package, allowed):
    for path in (ROOT / package).rglob("*.py"):
        assert _imported(path) - set(sys.stdlib_module_names) <= allowed, path


def test_the_application_does_not_import_experiments():
    for path in (ROOT / "train").rglob("*.py"):
        assert "configs" not in _imported(path), path


FOLDERS = ["regularizers", "attach", "models", "losses", "probes", "metrics", "torch_weights"]  # of the library

ROOMS = [  # of the application
    "augment",
    "config",
    "command_line",
    "config_file",
    "files",
    "data",
    "run",
    "trainer",
    "interop",
    "experiments",
    "reports",
    "benchmarks",
    "commands",
]


def _rooms_imported(package: str, path: Path) -> set[str]:
    """The folders and files of `package` that a module imports from, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            rooms.add((node.module or "").split(".")[1])
    return rooms


@pytest.mark.parametrize(
    ("package", "rooms", "room"),
    [("vcreg_jax", FOLDERS, room) for room in FOLDERS] + [("train", ROOMS, room) for room in [*ROOMS, "__main__"]],
)
def test_rooms_import_from_earlier_ones_alone(package, rooms, room):
    folder = ROOT / package / room
    paths = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    may = {*rooms[: rooms.index(room) + 1]} if room in rooms else set(rooms)
    for path in paths:
        assert _rooms_imported(package, path) <= may, path


def test_every_file_lies_in_a_room():
    def names(package: str) -> set[str]:
        return {path.name.removesuffix(".py") for path in (ROOT / package).iterdir() if path.name != "__pycache__"}

    assert names("vcreg_jax") == {*FOLDERS, "__init__"}
    assert names("train") == {*ROOMS, "__init__", "__main__", "two_moons"}  # the last under the name of earlier configs


PROGRAM = """
import sys

class Forbidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {names}:
            raise ImportError(f"forbidden: {{name}}")

sys.meta_path.insert(0, Forbidden())
{body}
"""


def _run_without(names, body):
    program = PROGRAM.format(names=set(names), body=body)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)


def test_the_library_works_with_its_five_dependencies_alone():
    body = """
import jax, jax.numpy as jnp, vcreg_jax as vc
from flax import nnx
model = vc.models.create("convnext_digits", num_classes=3, in_channels=1, sites=vc.Sites(vc.VCReg()), rngs=nnx.Rngs(0))
print(model(jnp.zeros((2, 8, 8, 1)))[0].shape)
"""
    done = _run_without(NOT_FOR_THE_LIBRARY, body)
    assert done.stdout.strip() == "(2, 3)", done.stderr


def test_the_barrier_itself_holds():
    assert "forbidden: sklearn" in _run_without(["sklearn"], "import sklearn").stderr


def test_benchmarks_and_grids_need_no_package_that_reads_data():
    missing = ["grain", "tensorflow_datasets", "tensorflow", "array_record", "importlib_resources", "sklearn"]
    body = """
from train.benchmarks import commands, dispatch, gpu, gpu_stages, roofline, step_jax, superclasses, table1
from train.experiments import grid
from train.__main__ import main
main(["bench", "gpu", "--stages", "nothing"])
"""
    done = _run_without(missing, body)
    assert done.stderr.startswith("error: bench gpu has no stage 'nothing'. It has gradient, jax_vit,"), done.stderr


def test_the_wheel_holds_the_library_only(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vcreg_jax"}
