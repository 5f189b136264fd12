import itertools
from collections import Counter
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from timm.models import vision_transformer as timm_vit
from torchvision import models as tv

import vcreg_jax as vc
from tests.torch_models import FAMILIES, CifarNet, batch, network, outputs
from vcreg_jax import torch_weights
from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.layers import DropPath
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import TIMM, TORCHVISION, ViT

PUBLISHED = {  # parameters with 1000 classes, the CIFAR nets with 10
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet8": None,  # the authors start at 20 layers
    "resnet8_x2": None,  # ours
    "resnet20": 269_722,
    "resnet20_x2": None,  # ours
    "resnet20_x4": None,  # ours
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "convnext_digits": None,  # ours
    "convnext_digits_x2": None,  # ours
    "convnext_cifar": None,  # ours
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "mlp6_512": None,  # ours
    "mlp6_1024": None,  # ours with 1000 classes
}
CIFAR = ("resnet20", "resnet32", "resnet44", "resnet56")


def abstract(name: str, **options) -> nnx.Module:
    return nnx.eval_shape(lambda: vc.models.create(name, rngs=nnx.Rngs(0), **options))


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", vc.models.names())
def test_parameter_counts_are_the_published_ones(name):
    if PUBLISHED[name] is not None:
        assert parameters(abstract(name, num_classes=10 if name in CIFAR else 1000)) == PUBLISHED[name]


class Recorder:
    """A regularizer that keeps what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, h):
        self.seen.append(h)
        return h


def recording() -> tuple[vc.Sites, Recorder, Recorder, Recorder]:
    recorders = Recorder(), Recorder(), Recorder()
    return vc.Sites(*recorders), *recorders


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_sites_see_what_pytorchs_blocks_downsampling_layers_and_last_norm_put_out(family):
    net = network(family).eval()
    sites, block, downsample, features = recording()
    sites = vc.Sites(block, downsample if family.downsamples else vc.identity, features)
    model = nnx.eval_shape(lambda: family.ours(num_classes=10, sites=sites, rngs=nnx.Rngs(0)))
    torch_weights.load(model, net.state_dict())
    images, _ = batch(family, n=2)

    @jax.jit
    def seen(images):
        _, expected = model(images)
        return block.seen, downsample.seen, features.seen[0], expected

    blocks, downsamples, last, expected = seen(images)
    for ours, pattern in ((blocks, family.blocks), (downsamples, family.downsamples)):
        theirs = outputs(net, pattern, images) if pattern else []
        assert len(ours) == len(theirs)
        for mine, reference in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-5 * np.abs(reference).max())
    np.testing.assert_array_equal(last, expected)


@pytest.mark.parametrize(
    ("name", "blocks", "downsamples", "width"),
    [
        ("resnet50", 3 * [(56, 56, 256)] + 4 * [(28, 28, 512)] + 6 * [(14, 14, 1024)] + 3 * [(7, 7, 2048)], 3, 2048),
        ("convnext_tiny", 3 * [(56, 56, 96)] + 3 * [(28, 28, 192)] + 9 * [(14, 14, 384)] + 3 * [(7, 7, 768)], 3, 768),
        ("convnext_atto", 2 * [(56, 56, 40)] + 2 * [(28, 28, 80)] + 6 * [(14, 14, 160)] + 2 * [(7, 7, 320)], 3, 320),
        ("vit_b_32", 12 * [(50, 768)], 0, 768),
        ("resnet32", 5 * [(224, 224, 16)] + 5 * [(112, 112, 32)] + 5 * [(56, 56, 64)], 2, 64),
    ],
)
def test_all_placements_of_appendix_a_are_reached(name, blocks, downsamples, width):
    sites, block, downsample, features = recording()
    sites = sites if downsamples else vc.Sites(block=block, features=features)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    jax.eval_shape(lambda x: vc.models.create(name, sites=sites, rngs=nnx.Rngs(0))(x), images)  # pyright: ignore
    assert [h.shape for h in block.seen] == [(2, *shape) for shape in blocks]
    assert len(downsample.seen) == downsamples
    assert [h.shape for h in features.seen] == [(2, width)]


def test_a_vit_refuses_a_regularizer_of_downsampling_layers_that_it_lacks():
    with pytest.raises(ValueError, match="no downsampling layers"):
        abstract("vit_b_32", sites=vc.Sites(block=vc.VCReg(), downsample=vc.VCReg()))


def moments(draw, number: int) -> dict[str, np.ndarray]:
    """Mean, standard deviation and mean absolute value of every tensor over `number` draws of a network's weights."""
    sums: dict[str, np.ndarray] = {}
    for seed in range(number):
        for name, value in draw(seed).items():
            x = np.asarray(value, np.float64).ravel()
            x = x[:: max(1, x.size // 5000)]
            sums[name] = sums.get(name, 0.0) + np.array([x.mean(), np.mean(x**2), np.abs(x).mean()]) / number
    return {
        name: np.array([mean, max(square - mean**2, 0.0) ** 0.5, size])
        for name, (mean, square, size) in sums.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("theirs", "ours", "naming", "draws"),
    [
        (partial(tv.ResNet, tv.resnet.BasicBlock, [1, 1, 1, 1]), partial(ResNet, (1, 1, 1, 1), False), None, 16),
        (partial(CifarNet, 1, "B", 1000), partial(CifarResNet, 1, shortcut="B"), None, 40),
        (FAMILIES["torchvision convnext"].theirs, FAMILIES["torchvision convnext"].ours, None, 24),
        (FAMILIES["timm convnext, 1 channel"].theirs, FAMILIES["timm convnext, 1 channel"].ours, "timm", 60),
        (
            partial(tv.VisionTransformer, 32, 16, 1, 3, 192, 768),
            partial(ViT, 192, 1, 3, 16, TORCHVISION, image_size=32),
            "torchvision",
            80,
        ),
        (
            partial(timm_vit.VisionTransformer, 32, 16, embed_dim=192, depth=1, num_heads=3),
            partial(ViT, 192, 1, 3, 16, TIMM, image_size=32),
            "timm",
            80,
        ),
    ],
    ids=["resnet", "CIFAR resnet", "convnext", "timm convnext", "vit", "timm vit"],
)
def test_initial_weights_are_distributed_as_in_pytorch(theirs, ours, naming, draws):
    model = nnx.eval_shape(lambda: ours(rngs=nnx.Rngs(0)))
    options = {"xla_backend_optimization_level": 0}
    draw = jax.jit(lambda seed: nnx.state(ours(rngs=nnx.Rngs(params=jax.random.key(seed)))), compiler_options=options)

    def our_weights(seed):
        nnx.update(model, draw(seed))
        return torch_weights.export(model, naming)

    def their_weights(seed):
        torch.manual_seed(seed)
        return theirs().state_dict()

    mine, reference = moments(our_weights, draws), moments(their_weights, draws)
    assert mine.keys() == reference.keys()
    for name, (mean, std, size) in reference.items():
        # From 15,000 numbers or more: the standard error of a normal's deviation is 0.6 %.
        np.testing.assert_allclose(mine[name][1], std, rtol=0.03, atol=1e-9, err_msg=f"deviation of {name}")
        np.testing.assert_allclose(mine[name][0], mean, rtol=1e-6, atol=0.03 * std, err_msg=f"mean of {name}")
        # 0.80 deviations for a normal, 0.87 for a uniform distribution. The kurtosis would tell them apart better, but
        # once in 2^24 numbers torch's trunc_normal_(std=0.02) draws -2.
        np.testing.assert_allclose(mine[name][2], size, rtol=0.03, err_msg=f"mean size of {name}")


@pytest.mark.parametrize("block", [tv.resnet.BasicBlock, tv.resnet.Bottleneck])
def test_blocks_start_as_their_shortcuts_where_torchvisions_do(block):
    torch.manual_seed(0)
    theirs = tv.ResNet(block, [2, 1, 1, 1], zero_init_residual=True)
    ours = ResNet((2, 1, 1, 1), block is tv.resnet.Bottleneck, zero_init_residual=True, rngs=nnx.Rngs(0))
    mine, reference = torch_weights.export(ours), theirs.state_dict()
    zero = {name for name, value in reference.items() if not value.any()}
    assert {name for name, value in mine.items() if not np.any(value)} == zero & mine.keys()
    assert f"layer1.1.bn{len(list(theirs.layer1[1].children())) // 2}.weight" in zero

    torch_weights.load(ours, reference)
    images = np.random.default_rng(0).normal(size=(3, 33, 33, 3)).astype(np.float32)
    for train in (False, True):
        expected = theirs.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).detach().numpy()
        logits, _ = ours(jnp.asarray(images), train=train)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_so_do_those_of_cifar_resnets_and_convnexts_have_no_such_option():
    sites, block, *_ = recording()
    model = vc.models.create("resnet20", num_classes=10, sites=sites, zero_init_residual=True, rngs=nnx.Rngs(0))
    model(jax.random.normal(jax.random.key(0), (2, 32, 32, 3)))
    for before, after in itertools.pairwise(np.asarray(h) for h in block.seen):
        halves = before.shape != after.shape  # option A: every second pixel, between zero channels
        pad = before.shape[-1] // 2
        expected = np.pad(before[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (pad, pad))) if halves else before
        np.testing.assert_array_equal(after, expected)  # which has passed a relu
    with pytest.raises(ValueError, match="convnext_atto has no option 'zero_init_residual'"):
        abstract("convnext_atto", zero_init_residual=True)


def test_stochastic_depth_drops_whole_branches_of_single_images_at_linear_rates():
    sites, block, *_ = recording()
    n, depth = 3000, 5
    model = ConvNeXt(
        (depth,), (8,), 1, in_channels=8, num_classes=2, stochastic_depth=0.6, sites=sites, rngs=nnx.Rngs(0)
    )
    for module in model.stages[0]:
        module.layer_scale[...] = jnp.ones(8)
    images = jax.random.normal(jax.random.key(0), (n, 2, 2, 8))
    model(images, train=True, rngs=nnx.Rngs(dropout=1))
    maps = [np.asarray(h) for h in block.seen]
    dropped = np.stack([(after == before).all(axis=(1, 2, 3)) for before, after in itertools.pairwise(maps)], axis=1)
    partly = np.stack([(after == before).any(axis=(1, 2, 3)) for before, after in itertools.pairwise(maps)], axis=1)
    assert not (partly & ~dropped).any()
    np.testing.assert_allclose(dropped.mean(axis=0), [0.15, 0.3, 0.45, 0.6], atol=4 * 0.5 / n**0.5)
    assert np.abs(np.corrcoef(dropped.T) - np.eye(depth - 1)).max() < 4 / n**0.5


def test_what_stochastic_depth_keeps_is_scaled_to_the_same_mean_and_evaluation_keeps_all():
    layer, x = DropPath(0.3), jnp.ones((4000, 3))
    kept = np.asarray(layer(x, nnx.Rngs(dropout=0)))
    assert set(np.unique(kept)) == {np.float32(0.0), np.float32(1 / 0.7)}
    np.testing.assert_allclose(kept.mean(), 1.0, atol=4 * (0.3 / 0.7 / 4000) ** 0.5)
    family = FAMILIES["torchvision vit"]
    images = jnp.asarray(batch(family)[0])
    plain, dropping = (family.ours(stochastic_depth=rate, rngs=nnx.Rngs(0)) for rate in (0.0, 0.9))
    np.testing.assert_array_equal(dropping(images, rngs=nnx.Rngs(dropout=0))[1], plain(images)[1])
    assert not np.allclose(dropping(images, train=True, rngs=nnx.Rngs(dropout=0))[1], plain(images)[1])


def gradients(family, **options):
    """Gradients and running statistics of a training step with stochastic depth, and the operations of the loss."""
    model = nnx.eval_shape(lambda: family.ours(num_classes=10, stochastic_depth=0.3, rngs=nnx.Rngs(0), **options))
    torch_weights.load(model, network(family).state_dict())
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    images, labels = batch(family, n=8)

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        logits, _ = model(jnp.asarray(images), train=True, rngs=nnx.Rngs(dropout=1))
        return vc.losses.cross_entropy(logits, jnp.asarray(labels)).mean(), nnx.state(model, nnx.BatchStat)

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    operations = Counter(equation.primitive.name for equation in jax.make_jaxpr(loss)(params).eqns)
    return step(params), operations


@pytest.mark.parametrize(("name", "blocks"), [("CIFAR resnet, option B, 4 channels", 3), ("torchvision vit", 2)])
def test_remat_gives_the_same_gradients_running_statistics_and_random_masks(name, blocks):
    plain, plain_program = gradients(FAMILIES[name])
    again, program = gradients(FAMILIES[name], remat=True)
    chex.assert_trees_all_close(plain, again, rtol=1e-4, atol=1e-6)
    assert (plain_program["remat2"], program["remat2"]) == (0, blocks)


@pytest.mark.parametrize(
    "name", ["CIFAR resnet, option B, 4 channels", "timm convnext, 1 channel", "timm vit, 1 channel"]
)
def test_bfloat16_computes_close_to_float32_and_keeps_parameters_and_statistics_in_float32(name):
    family = FAMILIES[name]
    logits = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = nnx.eval_shape(lambda dtype=dtype: family.ours(num_classes=10, dtype=dtype, rngs=nnx.Rngs(0)))
        torch_weights.load(model, network(family).state_dict())
        graph, state = nnx.split(model)
        logits[dtype] = jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state)(x, train=True)[0])(
            state, batch(family)[0]
        )
        assert logits[dtype].dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float32)}
    wide, narrow = (np.asarray(value, np.float64) for value in logits.values())
    assert np.linalg.norm(narrow - wide) / np.linalg.norm(wide) < 0.03


def test_bad_input_is_refused_with_what_would_do():
    with pytest.raises(ValueError, match="Did you mean 'resnet50'"):
        abstract("resnet_50")
    with pytest.raises(ValueError, match=r"resnet50 has no option 'image_size'.*in_channels"):
        abstract("resnet50", image_size=176)
    with pytest.raises(ValueError, match="Did you mean 'image_size'"):
        abstract("vit_b_16", imagesize=176)
    with pytest.raises(ValueError, match="multiple of the patch size 16, got 250; nearest: 240 and 256"):
        abstract("vit_b_16", image_size=250)
    with pytest.raises(ValueError, match="multiple of the patch size 32, got 8; nearest: 32"):
        abstract("vit_b_32", image_size=8)
    with pytest.raises(ValueError, match="number of groups >= 1, got 0"):
        abstract("resnet20", norm_scope=0)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        abstract("vit_b_32", stochastic_depth=1.0)
    model = nnx.eval_shape(lambda: FAMILIES["torchvision vit"].ours(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="takes images of 32x32, got 40x32"):
        model(jnp.zeros((1, 40, 32, 3)))


@pytest.mark.parametrize(
    ("name", "blocks", "width"), [("resnet8", 1, 1), ("resnet8_x2", 1, 2), ("resnet20_x2", 3, 2), ("resnet20_x4", 3, 4)]
)
def test_other_cifar_resnets_have_as_many_parameters_as_pytorchs(name, blocks, width):
    theirs = sum(parameter.numel() for parameter in CifarNet(blocks, width=width).parameters())
    assert parameters(abstract(name, num_classes=10)) == theirs
