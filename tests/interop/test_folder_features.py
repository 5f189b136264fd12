"""Features of a folder, PyTorch's own networks and torchvision's own transforms being the oracle."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.data.test_images import encoded
from tests.interop.test_export import run_folder, theirs
from tests.torch_models import CifarNet
from train.__main__ import main
from train.augment import EvalTransformConfig
from train.files import json_files
from train.interop import folder_features, given_network
from train.interop.crosscheck.torch_networks import perturbed

RNG = np.random.default_rng(0)
WEIGHTS = Path(__file__).parents[3] / "shared/weights/resnet32-d509ac18.th"
MEAN, STD = given_network.IMAGENET


def _folder(root, names=("train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "test/dog/4.png", "test/cat/5.png")):
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (40 + 3 * index, 50, 3), np.uint8)
        (root / name).write_bytes(encoded(Image.fromarray(pixels), "png"))
    return root


def _by_torch(net, folder, names, resize, crop, mean=MEAN, std=STD):
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(resize),
            torchvision.transforms.CenterCrop(crop),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(mean, std),
        ]
    )
    with torch.no_grad():
        return np.concatenate([net(transform(Image.open(folder / name))[None]).numpy() for name in names])


def _agree(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    torch.manual_seed(0)
    net = perturbed(torchvision.models.resnet18()).eval()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(net.state_dict(), path)
    net.fc = torch.nn.Identity()
    return path, net


@pytest.mark.usefixtures("one_torch_thread")
def test_features_of_torchvisions_weights_are_pytorchs_with_names_and_classes(resnet18, tmp_path, capsys):
    path, net = resnet18
    folder, out = _folder(tmp_path / "pets"), tmp_path / "out.npz"
    options = ["--model", "resnet18", "--image-size", "32", "--resize", "36", "--batch-size", "2"]
    main(["features", str(path), str(folder), "--out", str(out), *options])
    assert "5 images, 512 features of resnet18; 0 left out" in capsys.readouterr().out
    with np.load(out) as found:
        assert found["labels"].tolist() == ["cat" if "cat" in name else "dog" for name in found["files"].tolist()]
        assert found["splits"].tolist() == [name.partition("/")[0] for name in found["files"].tolist()]
        assert sorted(found["files"].tolist()) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
        _agree(found["features"], _by_torch(net, folder, found["files"].tolist(), 36, 32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "pets"]


def test_without_options_images_come_as_the_weights_authors_have_them(resnet18):
    network = given_network.load(resnet18[0], "resnet18")
    assert (network.evaluation, network.channels) == (EvalTransformConfig(256, 224), 3)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs ../shared beside a development checkout")
def test_features_of_the_published_resnet32_are_pytorchs(tmp_path):
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]
    net = CifarNet(5).eval()
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()}, strict=True)
    net.linear = torch.nn.Identity()
    folder = _folder(tmp_path / "flat", ("1.png", "2.PNG", "deeper/3.png", ".hidden/4.png"))
    folder_features.write(given_network.load(WEIGHTS, "resnet32"), folder, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        assert found["files"].tolist() == ["1.png", "2.PNG", "deeper/3.png"] and "labels" not in found
        _agree(found["features"], _by_torch(net, folder, found["files"].tolist(), 32, 32))


@pytest.mark.usefixtures("one_torch_thread")
def test_a_run_and_its_exported_program_give_the_same_features_as_pytorch(tmp_path):
    run, folder = run_folder(tmp_path, "resnet18"), _folder(tmp_path / "pets")
    main(["export", str(run), "--to", "stablehlo", "--out", str(tmp_path / "program")])
    net = theirs()
    net.fc = torch.nn.Identity()
    train = json_files.read(run.parents[1] / "config.json")["train"]["data"]
    for source in (run, tmp_path / "program", tmp_path / "program" / "model.stablehlo"):
        folder_features.write(given_network.load(source), folder, tmp_path / "out.npz", batch_size=3)
        with np.load(tmp_path / "out.npz") as found:
            expected = _by_torch(net, folder, found["files"].tolist(), 24, 24, train["mean"], train["std"])
            _agree(found["features"], expected)
    with pytest.raises(ValueError, match="has size and statistics of its images inside"):
        given_network.load(tmp_path / "program", images=given_network.Images(size=32))


class _Sums:
    """A network whose features are sums of pixels, and the shapes of what it was called with."""

    def __init__(self, size):
        self.shapes = []
        self.network = given_network.Network("sums", EvalTransformConfig(size, size), 3, self._features)

    def _features(self, images):
        self.shapes.append(images.shape)
        return np.asarray(images, np.float32).sum(axis=(1, 2))


def test_images_are_read_batch_by_batch_and_what_cannot_be_decoded_is_named(tmp_path):
    folder = _folder(tmp_path / "pets", tuple(f"{name}/{index}.png" for name in ("cat", "dog") for index in range(40)))
    (folder / "cat/7.png").write_bytes(b"no image")
    sums = _Sums(8)
    folder_features.write(sums.network, folder, tmp_path / "out.npz", batch_size=32)
    assert sums.shapes == [(32, 8, 8, 3)] * 3
    with np.load(tmp_path / "out.npz") as found:
        assert found["left_out"].tolist() == ["cat/7.png"] and len(found["files"]) == 79
        for name, row in zip(found["files"].tolist(), found["features"], strict=True):
            image = torchvision.transforms.CenterCrop(8)(torchvision.transforms.Resize(8)(Image.open(folder / name)))
            np.testing.assert_array_equal(row, np.asarray(image, np.float32).sum(axis=(0, 1)))


def test_what_cannot_be_meant_is_refused(resnet18, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no image that can be read"):
        folder_features.write(_Sums(8).network, tmp_path / "empty", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
    with pytest.raises(ValueError, match="There is no folder"):
        folder_features.write(_Sums(8).network, tmp_path / "gone", tmp_path / "out.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        folder_features.write(_Sums(8).network, tmp_path / "empty", tmp_path / "out.npy")
    with pytest.raises(ValueError, match="does not say which model it is"):
        given_network.load(resnet18[0])
    with pytest.raises(ValueError, match="resnet18 takes 3 channels: give --mean as many values"):
        given_network.load(resnet18[0], "resnet18", given_network.Images(mean=(0.5, 0.5)))
    assert dataclasses.is_dataclass(given_network.Images)
