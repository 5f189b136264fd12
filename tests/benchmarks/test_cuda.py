"""Every program of the benchmark is traced and lowered for CUDA, which needs no GPU."""

import re
from functools import partial

import pytest
from jax import export

from train.benchmarks import programs
from train.benchmarks.programs import NORMALIZE, OPTIMIZER, PHASES, SEED, Settings
from train.trainer.model import abstract_state, structure
from train.trainer.objective import Classification
from train.trainer.optim import make_optimizer
from train.trainer.step import make_train_step
from vcreg_jax import models
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.vit import TIMM, ViT

BLOCKS = {"small_vit": 2, "convnext_digits": 4, "small_resnet": 2}


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._MODELS, "small_vit", partial(ViT, 16, 2, 2, 4, TIMM, image_size=8))
        patch.setitem(models._MODELS, "small_resnet", partial(ResNet, (1, 1), True))
        yield


def lowered(model, phase, column):
    """The program for CUDA as text; exported, too, in which JAX refuses what is not stable between versions."""
    settings = Settings("gpu", (model,), ("bfloat16",), 4, 2, image_size=8, num_classes=4)
    mesh, network = programs.one_device_mesh("cpu"), programs.architecture(settings, model, "bfloat16", column)
    graphdef, norms = structure(network)
    optimizer = make_optimizer(OPTIMIZER, 1000, norms)
    state, batch = abstract_state(network, optimizer, mesh), programs.random_batch(settings)
    if phase == PHASES[0]:
        function, arguments = programs.forward_backward(graphdef), (state, batch)
    else:
        function = make_train_step(graphdef, optimizer, NORMALIZE, Classification(), mesh)
        arguments = state, batch, SEED
    exported = export.export(function, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    return str(exported.mlir_module())


def products(text):
    return len(re.findall(r"stablehlo\.dot_general", text))


@pytest.mark.parametrize("model", BLOCKS)
def test_vcreg_adds_two_products_a_block_and_no_program_calls_back_to_python(model):
    texts = {column: lowered(model, PHASES[1], column) for column in ("identity", "VCReg", "naive", "BatchNorm")}
    found = {column: products(text) for column, text in texts.items()}
    # The covariance, and what pushes the features.
    assert found["VCReg"] - found["identity"] == 2 * BLOCKS[model], found
    assert found["BatchNorm"] == found["identity"] < found["naive"]
    for text in texts.values():
        assert "callback" not in text
