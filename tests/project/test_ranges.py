"""Numbers that cannot be meant are refused before any work."""

import json
import math
import socket
from dataclasses import replace

import numpy as np
import pytest
import safetensors

import vcreg_jax as vc
from configs import digits, strength_digits, table2_small
from train.__main__ import main
from train.config import LARS, SGD, AdamW, Cosine, EMAConfig, Experiment, MeshConfig, ProbeConfig, StepDecay
from train.experiments.grid import Strengths
from train.experiments.two_moons import Method, TwoMoons
from train.files import json_files
from train.interop import convert, saved_config
from train.run import folder, hosts

TRAIN = digits.get_config().train
REFUSED = {
    "Cosine.peak_learning_rate": lambda: Cosine(-1e-3, 0),
    "StepDecay.every_steps": lambda: StepDecay(0.1, 0),
    "AdamW.weight_decay": lambda: AdamW(-0.05),
    "AdamW.b1": lambda: AdamW(0.05, b1=1.0),
    "SGD.momentum": lambda: SGD(0.0, 1.5),
    "Cosine.end": lambda: Cosine(1e-3, 0, end=1.5),
    "LARS.bias_rate": lambda: LARS(0.0, bias_rate=0.0),
    "LARS.trust_coefficient": lambda: LARS(0.0, trust_coefficient=-1.0),
    "EMAConfig.every_steps": lambda: EMAConfig(0.9, 10, 0),
    "MeshConfig.fsdp": lambda: MeshConfig(fsdp=0),
    "MeshConfig.data": lambda: MeshConfig(data=0),
    "DataConfig.long_tail": lambda: replace(TRAIN.data, long_tail=0.0),
    "DataConfig.std": lambda: replace(TRAIN.data, std=(0.0,)),
    "ModelConfig.stochastic_depth": lambda: replace(TRAIN.model, stochastic_depth=2.0),
    "ProbeConfig.l2_low": lambda: ProbeConfig("digit", l2_low=0.0),
}
REFUSED |= {
    f"TrainConfig.{name}": lambda name=name, value=value: replace(TRAIN, **{name: value})
    for name, value in {
        "label_smoothing": -1.0,
        "steps": 0,
        "batch_size": -4,
        "log_every": 0,
        "eval_every": 0,
        "save_every": 0,
        "hang_seconds": math.nan,
    }.items()
}


MOONS = TwoMoons("moons", {"one": (4,)}, {"plain": Method()})
OTHERS = {  # each with what its message says
    "VCReg needs alpha": lambda: vc.VCReg(alpha=math.inf),
    "VCReg needs beta": lambda: vc.VCReg(beta=-0.1),
    "DeCov needs weight": lambda: vc.DeCov(math.inf),
    "WLDReg needs diversity": lambda: vc.WLDReg(diversity=math.nan),
    "NTXent needs temperature": lambda: vc.losses.NTXent(0.0),
    "NTXent needs sum_views": lambda: vc.losses.NTXent(sum_views=-1.0),
    "VICReg needs variance": lambda: vc.losses.VICReg(variance=math.nan),
    "BarlowTwins needs redundancy": lambda: vc.losses.BarlowTwins(redundancy=-0.1),
    "Strengths must be": lambda: Strengths(vc.Sites(), (0.1, -0.1), (0.1,)),
    "A grid's learning rates must be": lambda: replace(strength_digits.get_config(), learning_rates=(math.nan,)),
    "a number that cannot be meant": lambda: Method(dropout=1.0),
    "a number that cannot be meant: .*steps=0": lambda: Method(steps=0),
    "Two moons need": lambda: replace(MOONS, noise=-0.1),
    "Two moons need steps": lambda: replace(MOONS, samples=0),
    "Two moons need .* widths": lambda: replace(MOONS, networks={"one": (0,)}),
}


@pytest.mark.parametrize("message", OTHERS)
def test_so_are_they_in_regularizers_losses_grids_and_figures(message):
    with pytest.raises(ValueError, match=message):
        OTHERS[message]()


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_cannot_be_meant_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got "):
        REFUSED[name]()


@pytest.mark.parametrize(
    ("seeds", "message"), [((0, 0), "must differ"), ((2**32,), "must lie in"), ((-1,), "must lie")]
)
def test_seeds_are_different_and_of_32_bits(seeds, message):
    with pytest.raises(ValueError, match=message):
        Experiment("a", "a", TRAIN, {}, seeds=seeds)
    whole, table, grid = digits.get_config(), table2_small.get_config(), strength_digits.get_config()
    for config in (whole, table, grid, MOONS):
        with pytest.raises(ValueError, match=message):
            replace(config, seeds=seeds)
    with pytest.raises(ValueError, match=message):
        replace(grid, search_seeds=seeds)


@pytest.mark.parametrize("size", ["0", "-5"])
def test_a_side_of_images_that_is_none_is_refused(tmp_path, size, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path), "--to", "stablehlo", "--image-size", size])
    assert stop.value.code == 2 and f"side must be at least 1, got {size}" in capsys.readouterr().err


def test_a_number_from_the_command_line_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "configs/digits.py", "--train.log-every", "0"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "log_every must be at least 1, got 0" in line


def test_an_accuracy_that_is_no_fraction_is_refused(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"targets": {"digits": {"accuracy": 7.3}}}))
    with pytest.raises(ValueError, match="accuracy must lie in 0..1, got 7.3"):
        folder.check(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_no_numbers_in_float32_are_refused(tmp_path, value, suffix):
    path = tmp_path / f"a{suffix}"
    convert._write(path, {"a": np.array([1.0, value])}, {})
    with pytest.raises(ValueError, match="a must hold finite numbers"):
        convert.convert(path, tmp_path / "b.safetensors", "resnet20")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.zeros(1).expand(2**33),
        torch.sparse_coo_tensor([[0]], [1.0], (2**40,)),
        torch.empty(2**33, device="meta"),
    ):
        torch.save({"a": tensor}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="refused|truncated, damaged"):
            convert.convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "resnet20")


def test_a_file_is_not_written_over_by_one_that_is_damaged(tmp_path):
    json_files.write(tmp_path / "config.json", {"name": "a"})
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text[:9])
    with (
        pytest.raises(ValueError, match=r"config.json cannot be read"),
        folder.claim(tmp_path, {"name": "a"}),
    ):
        pass
    assert (tmp_path / "config.json").read_text() == text[:9]


def test_a_coordinators_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"Port \d+ of the coordinator cannot be listened on"):
            hosts.join(f"localhost:{taken.getsockname()[1]}", 2, 0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_on_a_full_disk_are_one_error_and_leave_nothing(tmp_path, suffix, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    (tmp_path / f"a{suffix}.partial").symlink_to("/dev/full")
    monkeypatch.setattr("safetensors.numpy.save_file", full)  # which writes beside the link and renames
    with pytest.raises(OSError, match=f"a{suffix} cannot be written"):
        convert._write(tmp_path / f"a{suffix}", {"a": np.zeros(1 << 20, np.float32)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"class": 5}, {"class": ["a"]}, {"steps": -1}, {"step": 1}])
def test_a_strangers_config_is_refused_by_its_name(tmp_path, change):
    config = folder.as_json(digits.get_config())
    config["train"] |= change
    json_files.write(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match="config.json"):
        saved_config.load(tmp_path)
