"""Training from given weights, and arms that are given and not trained; PyTorch and the file itself are the oracles."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from configs import digits, finetune_cifar100
from tests.tiny_network import SMALLEST_RESNET
from tests.torch_models import CifarNet, channels_first
from train.config import Candidate, ModelConfig
from train.data import pipeline
from train.experiments import experiment
from train.files import json_files
from train.interop import initial_weights
from train.interop.crosscheck.torch_networks import perturbed
from train.reports import report, report_page
from train.trainer import loop
from train.trainer.prepare import prepare
from vcreg_jax import Sites

pytestmark = pytest.mark.usefixtures("smallest")

PUBLISHED = Path(__file__).parents[3] / "shared/weights/resnet32-d509ac18.th"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="needs ../shared beside a development checkout")
@pytest.mark.usefixtures("one_torch_thread")
def test_fine_tuning_on_cifar100_starts_at_the_features_of_the_published_network():
    points = finetune_cifar100.sweep()
    tuned, given = points["tuned"].train, points["given"].arms["none"][0].given
    assert tuned.initial_weights == given == f"runs/weights/{PUBLISHED.name}" and not tuned.initial_head
    stand_in = {"name": "synthetic", "synthetic_size": 32, "synthetic_classes": 20, "synthetic_images": 32}
    data = replace(tuned.data, **stand_in, in_memory=False)
    train = replace(tuned, data=data)
    weights = initial_weights.load(PUBLISHED, prepare(train, Sites()).architecture, train.initial_head)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    found = np.asarray(loop.load_given(train, Sites(), weights).predict(images)[1])
    theirs = CifarNet(5, num_classes=10).eval()
    saved = torch.load(PUBLISHED, weights_only=True, map_location="cpu")["state_dict"]
    theirs.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    theirs.linear = torch.nn.Identity()
    # What their README says: ImageNet's mean and standard deviation, of pixels in 0..1.
    pixels = (images / np.float32(255) - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs(channels_first(pixels.astype(np.float32))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A ResNet-8 for two classes, and for ten, saved."""
    torch.manual_seed(0)
    folder, nets = tmp_path_factory.mktemp("weights"), {}
    for classes in (2, 10):
        nets[classes] = perturbed(CifarNet(1, num_classes=classes, in_channels=1)).eval()
        torch.save(nets[classes].state_dict(), folder / f"{classes}.pth")
    return folder, nets


@pytest.fixture
def config(tmp_path):
    whole = digits.get_config()
    data = replace(whole.train.data, directory=str(tmp_path / "data"))
    schedule = replace(whole.train.optimizer.schedule, warmup_steps=1)
    train = replace(
        whole.train,
        data=data,
        model=ModelConfig(SMALLEST_RESNET),
        optimizer=replace(whole.train.optimizer, schedule=schedule),
        steps=2,
        batch_size=32,
        log_every=1,
    )
    target = whole.targets["digit"]
    targets = {"digit": replace(target, probe=replace(target.probe, l2_count=3))}
    return replace(whole, train=train, seeds=(0,), runs_directory=str(tmp_path), targets=targets)


def _features_by_torch(net, config, split):
    net.linear, kept = torch.nn.Identity(), net.linear
    images, _ = pipeline.load(config.train.data, split).memory
    data = config.train.data
    with torch.no_grad():
        found = net(channels_first((images / np.float32(255) - np.float32(data.mean)) / np.float32(data.std))).numpy()
    net.linear = kept
    return found


@pytest.mark.usefixtures("one_torch_thread")
def test_training_starts_at_the_features_of_the_file_with_a_classifier_of_its_own(net, config, tmp_path):
    folder, nets = net
    train = replace(config.train, initial_weights=str(folder / "10.pth"))  # which has ten classes, not two
    architecture = prepare(train, Sites()).architecture
    weights = initial_weights.load(folder / "10.pth", architecture, head=False)
    assert "head" not in weights[0]
    still = replace(train, optimizer=replace(train.optimizer, schedule=_no_rate(train)))
    trained = loop.train(still, Sites(), 0, tmp_path / "a", "a", weights)
    images, _ = pipeline.load(train.data, "test").memory
    # Steps at a rate of 0 move the running statistics alone; without it they are the file's.
    started = loop.load_given(train, Sites(), weights)
    found = np.asarray(started.predict(images)[1])
    expected = _features_by_torch(nets[10], config, "test")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    kernel = trained.state["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, nets[10].conv1.weight.detach().numpy().transpose(2, 3, 1, 0))


def _no_rate(train):
    return replace(train.optimizer.schedule, peak_learning_rate=0.0)


@pytest.mark.usefixtures("one_torch_thread")
def test_an_arm_that_is_given_weights_is_probed_without_a_training_step(net, config):
    folder, nets = net
    arms = {"none": (Candidate(given=str(folder / "2.pth")),), "VCReg": (Candidate(Sites(block=vc.VCReg())),)}
    run = experiment.run(replace(config, name="given", arms=arms), "test")
    result = json_files.read(run / "none" / "seed0" / "result.json")
    images, labels = pipeline.load(config.train.data, "test").memory
    data = config.train.data
    pixels = (images / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)
    with torch.no_grad():
        right = (nets[2](channels_first(pixels)).argmax(dim=1).numpy() == labels).mean()
    assert result["accuracy"] == pytest.approx(right)
    features = _features_by_torch(nets[2], config, "train")
    p = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    p = p / p.sum()
    assert result["targets"]["digit"]["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
    assert not (run / "none" / "seed0" / "checkpoints").exists()
    assert report_page.write(run).is_file() and "given" in str(report.load(run).folder)


def test_a_run_goes_on_from_another_runs_weights_with_its_classifier(config, tmp_path):
    loop.train(config.train, Sites(), 0, tmp_path / "first" / "none" / "seed0", "first")
    architecture = prepare(config.train, Sites()).architecture
    params, batch_stats = initial_weights.load(tmp_path / "first" / "none" / "seed0", architecture, head=True)
    first = loop.train(config.train, Sites(), 0, tmp_path / "first" / "none" / "seed0", "first")
    jax.tree.map(np.testing.assert_array_equal, params, first.state["params"])
    jax.tree.map(np.testing.assert_array_equal, batch_stats, first.state["batch_stats"])


def test_weights_of_another_network_are_refused_before_any_work(net, config, tmp_path):
    folder, _ = net
    arms = {"a": Sites(), "b": Sites(block=vc.VCReg())}
    wrong = replace(config.train, model=ModelConfig("resnet32"), initial_weights=str(folder / "2.pth"))
    with pytest.raises(ValueError, match=r"2.pth does not fit resnet32"):
        experiment.run(replace(config, name="wrong", train=wrong, arms=arms), "test")
    with_head = replace(config.train, initial_weights=str(folder / "10.pth"), initial_head=True)
    with pytest.raises(ValueError, match=r"10.pth does not fit smallest_resnet"):
        experiment.run(replace(config, name="wrong", train=with_head, arms=arms), "test")
    assert not (tmp_path / "wrong").exists()
