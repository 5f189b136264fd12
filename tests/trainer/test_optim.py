import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vcreg_jax as vc
from train.config import LARS, AdamW, Cosine, OptimizerConfig, StepDecay
from train.trainer.optim import learning_rate, make_optimizer, normalization_parameters

CONFIG = OptimizerConfig(AdamW(weight_decay=0.05), Cosine(1e-2, warmup_steps=5))


def test_the_schedule_is_a_linear_warm_up_and_half_a_cosine_down_to_zero():
    schedule = learning_rate(CONFIG.schedule, 25)
    warmup = [1e-2 * step / 5 for step in range(5)]
    cosine = [1e-2 * 0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(21)]
    np.testing.assert_allclose([schedule(step) for step in range(26)], warmup + cosine, rtol=1e-6, atol=1e-12)


# Rates of single epochs of torchvision's recipes, by its own schedulers, to all digits that float32 has.
@pytest.mark.parametrize(
    ("config", "epochs", "steps_per_epoch", "rates"),
    [
        (StepDecay(0.1, 30 * 5005), 90, 5005, {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}),
        (
            Cosine(1e-3, 5 * 1251, warmup_start=0.01, hold_steps=1251),
            600,
            1251,
            {0: 1e-5, 1: 2.08e-4, 4: 8.02e-4, 5: 1e-3, 6: 0.00099999303, 599: 6.9695512e-09},
        ),
        (
            Cosine(3e-3, 30 * 313, warmup_start=0.033, hold_steps=313),
            300,
            313,
            {0: 9.9e-5, 1: 1.957e-4, 29: 2.9033e-3, 30: 3e-3, 299: 1.0153799e-07},
        ),
    ],
    ids=["ResNet-50", "ConvNeXt-T", "ViT-B/32"],
)
def test_a_recipe_that_steps_once_per_epoch_holds_its_rate_throughout_the_epoch(config, epochs, steps_per_epoch, rates):
    schedule = learning_rate(config, epochs * steps_per_epoch)
    for epoch, rate in rates.items():
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)


def barlow_twins_rate(step, steps, warmup, peak):
    """`adjust_learning_rate` of facebookresearch/barlowtwins, main.py."""
    if step < warmup:
        return peak * step / warmup
    q = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return peak * q + peak * 0.001 * (1 - q)


def test_a_schedule_with_an_end_is_that_of_barlow_twins():
    schedule = learning_rate(Cosine(4.8, warmup_steps=5, end=1e-3), 40)
    expected = [barlow_twins_rate(step, 40, 5, 4.8) for step in range(41)]
    np.testing.assert_allclose([schedule(step) for step in range(41)], expected, rtol=2e-6)
    assert expected[-1] == pytest.approx(0.0048)


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"warmup_steps must lie in \[0, steps=5\), got 5"):
        learning_rate(CONFIG.schedule, 5)
    with pytest.raises(ValueError, match="hold_steps must be at least 1, got 0"):
        learning_rate(Cosine(1.0, 0, hold_steps=0), 5)
    with pytest.raises(ValueError, match="every_steps must be at least 1, got 0"):
        learning_rate(StepDecay(1.0, 0), 5)


# Elements and tensors that torch's recipes exempt ("norm" modules), counted on torchvision's and timm's own models.
@pytest.mark.parametrize(
    ("name", "elements", "tensors"),
    [
        ("convnext_tiny", 16_320, 46),
        ("convnext_atto", 4_960, 34),
        ("resnet50", 53_120, 106),
        ("vit_b_32", 38_400, 50),
        ("resnet32", 2_272, 62),
    ],
)
def test_weight_decay_spares_the_parameters_of_normalization_layers_and_no_others(name, elements, tensors):
    model = nnx.eval_shape(lambda: vc.models.create(name, num_classes=10, rngs=nnx.Rngs(0)))
    spared = normalization_parameters(model)
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    sizes = {path: leaf.size for path, leaf in leaves}
    assert spared <= sizes.keys()
    assert (sum(sizes[path] for path in spared), len(spared)) == (elements, tensors)


def test_twenty_steps_equal_torchs_adamw_with_the_same_two_groups(x64):
    rng = np.random.default_rng(0)
    params = {"linear": {"kernel": rng.normal(size=(3, 4))}, "norm": {"scale": rng.normal(size=(4,))}}
    gradients = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params) for _ in range(20)]
    optimizer = make_optimizer(CONFIG, 20, frozenset({("norm", "scale")}))
    ours, state = jax.tree.map(jnp.asarray, params), None
    state = optimizer.init(ours)

    kernel, scale = (
        torch.tensor(params[a][b], requires_grad=True) for a, b in (("linear", "kernel"), ("norm", "scale"))
    )
    groups = [{"params": [kernel]}, {"params": [scale], "weight_decay": 0.0}]
    torch_optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    for step, gradient in enumerate(gradients):
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        rate = 1e-2 * step / 5 if step < 5 else 1e-2 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))
        for group in torch_optimizer.param_groups:
            group["lr"] = rate
        kernel.grad, scale.grad = torch.tensor(gradient["linear"]["kernel"]), torch.tensor(gradient["norm"]["scale"])
        torch_optimizer.step()
    # The schedule counts in float32, whence 1e-7.
    np.testing.assert_allclose(ours["linear"]["kernel"], kernel.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours["norm"]["scale"], scale.detach().numpy(), rtol=1e-6)


def test_lars_with_slower_biases_is_that_of_barlow_twins(x64):
    """Against `LARS.step` and `adjust_learning_rate` of its main.py, with its two groups, written out in NumPy."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 4), "kernel": (3, 4), "zero": (2, 2), "scale": (4,), "bias": (4,)}
    params = {name: rng.normal(size=shape) * (name != "zero") for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(20)]
    rule = LARS(weight_decay=0.1, trust_coefficient=0.02, bias_rate=0.0048 / 0.2)
    optimizer = make_optimizer(OptimizerConfig(rule, Cosine(3.2, 5, end=1e-3)), 20, frozenset())
    ours = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(ours)
    moments = {name: np.zeros(shape) for name, shape in shapes.items()}
    for step, gradient in enumerate(gradients):
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for name, p in params.items():
            update, peak = gradient[name], 0.0048 * 16  # of a batch of 4,096
            if p.ndim > 1:
                update, peak = update + 0.1 * p, 0.2 * 16
                norms = np.linalg.norm(p), np.linalg.norm(update)
                update = update * (0.02 * norms[0] / norms[1] if min(norms) > 0 else 1.0)
            moments[name] = 0.9 * moments[name] + update
            params[name] = p - barlow_twins_rate(step, 20, 5, peak) * moments[name]
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)  # rates are float32


def test_equal_arguments_give_the_same_optimizer_so_that_programs_are_compiled_once():
    spared = frozenset({("norm", "scale")})
    assert make_optimizer(CONFIG, 20, spared) is make_optimizer(CONFIG, 20, frozenset(spared))
