import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcreg_jax as vc
from configs import digits
from tests.tiny_network import TWO_STAGES
from train.reports import layers_section
from train.trainer import diagnostics, loop
from train.trainer.model import Architecture, abstract_state
from train.trainer.objective import Classification
from train.trainer.prepare import prepare
from train.trainer.step import Normalize, make_train_step, split

REG = vc.VCReg(alpha=1.28, beta=0.16, delta=0.05)
SITES = vc.Sites(block=REG, downsample=REG)


pytestmark = pytest.mark.usefixtures("smallest")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    train = digits.get_config().train
    train = replace(train, model=replace(train.model, name=TWO_STAGES))
    data = replace(train.data, directory=str(tmp_path_factory.mktemp("data")))
    schedule = replace(train.optimizer.schedule, warmup_steps=1)
    return replace(
        train, data=data, optimizer=replace(train.optimizer, schedule=schedule), steps=3, batch_size=16, log_every=1
    )


def test_every_layer_is_diagnosed_and_its_pull_is_that_of_the_penalty_over_that_of_the_loss(config):
    """The oracle runs the network layer by layer and differentiates what comes after the first block."""
    architecture = Architecture(config.model, 2, (8, 8, 1), SITES)
    model = replace(architecture, sites=vc.Sites()).create(0)
    _, params, batch_stats = split(model)
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(0, 256, (16, 8, 8, 1), np.uint8)), "label": jnp.arange(16) % 2}
    normalize = Normalize(config.data.mean, config.data.std)
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "batch_stats": batch_stats}
    found = diagnostics.make_look(architecture, normalize, Classification())(state, batch, 0)

    def loss_after(h):
        h = model.stages[1][0](model.downsamples[0](h, True), True, None)
        logits = model.head(model.norm(h.mean(axis=(1, 2))))
        return -jax.nn.log_softmax(logits)[jnp.arange(16), batch["label"]].mean()

    @jax.jit
    def first_block(images):
        return model.stages[0][0](model.stem_norm(model.stem_conv(normalize(images))), True, None)

    h = first_block(batch["image"])
    pull = np.linalg.norm(jax.jit(jax.grad(REG.penalty))(h)) / np.linalg.norm(jax.jit(jax.grad(loss_after))(h))
    expected = jax.jit(lambda h: vc.diagnose(h, delta=0.05))(h)._asdict() | {"gradient_ratio": pull}
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"block 1/{name}"], value, rtol=2e-3, err_msg=name)
    # The penalty written out: Eq. 3, and Eq. 7 in the place of Eq. 4.
    x = np.asarray(h, np.float64).reshape(-1, h.shape[-1])
    d, covariance = x.shape[1], np.cov(x.T)
    off = np.abs(covariance[~np.eye(d, dtype=bool)])
    terms = {
        "variance_term": 1.28 / d * np.maximum(0, 1 - np.sqrt(np.diag(covariance) + REG.eps)).sum(),
        "covariance_term": 0.16 / (d * (d - 1)) * np.where(off <= 0.05, off**2, 2 * 0.05 * off - 0.05**2).sum(),
    }
    for name, value in (terms | {"penalty": sum(terms.values())}).items():
        np.testing.assert_allclose(found[f"block 1/{name}"], value, rtol=2e-3, err_msg=name)
    assert "features/penalty" not in found and "downsample 1/covariance_term" in found
    layers = [name.split("/")[0] for name in found if name.endswith("effective_rank")]
    assert sorted(layers) == ["block 1", "block 2", "downsample 1", "features"]
    assert found["features/gradient_ratio"] == 0 and found["downsample 1/gradient_ratio"] > 0
    assert 0 < found["block 1/clipped"] < 1


def test_the_training_step_is_the_same_program_with_and_without_it(config, tmp_path, monkeypatch):
    texts = []

    def lowered(*arguments):
        step = make_train_step.__wrapped__(*arguments)  # anew, not what the other run has made
        run = prepare(config, SITES)
        state = abstract_state(run.architecture, run.optimizer, run.mesh)
        batch = {"image": jax.ShapeDtypeStruct((16, 8, 8, 1), np.uint8), "label": jax.ShapeDtypeStruct((16,), np.int32)}
        with jax.set_mesh(run.mesh):
            texts.append(step.lower(state, batch, 0).as_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "make_train_step", functools.cache(lowered))
    for every in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            loop.train(replace(config, diagnose_every=every), SITES, 0, tmp_path, "run")
    assert texts[0] == texts[1] and "stablehlo.convolution" in texts[0]


def test_a_run_looks_at_its_interval_and_not_before_its_first_step(config, tmp_path):
    loop.train(replace(config, diagnose_every=1), SITES, 0, tmp_path, "run")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if line["split"] == "layers"]
    assert [line["step"] for line in looks] == [1, 2]
    assert all(np.isfinite(value) for line in looks for name, value in line.items() if name not in ("split", "sha256"))
    assert looks[0]["block 1/effective_rank"] != looks[1]["block 1/effective_rank"]


def test_a_layer_whose_regularizer_overpowers_the_task_is_named_at_step_1_and_once(config, tmp_path, capsys):
    strong = vc.Sites(block=vc.VCReg(alpha=0.0, beta=1e-9), features=vc.VCReg(alpha=1e4, beta=0.0))
    config = replace(config, diagnose_every=2, steps=3)  # at step 1, and at step 2
    loop.train(config, strong, 0, tmp_path, "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "times the task's" in line]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line for line in lines if line["split"] == "layers"}
    assert list(looks) == [1, 2] and looks[1]["features/gradient_ratio"] > 10 > looks[1]["block 1/gradient_ratio"]
    assert len(said) == 1 and "features: the regularizer's gradient is" in said[0]


def test_a_layer_that_collapses_is_named_with_the_reason():
    found = {
        "block 1/effective_rank": 1.4, "block 1/mean_std": 1.0,
        "block 2/effective_rank": 9.0, "block 2/mean_std": 1e-4,
        "block 3/effective_rank": 9.0, "block 3/mean_std": 0.5,
        "features/effective_rank": float("nan"), "features/mean_std": 1.0,
    }  # fmt: skip
    assert diagnostics.find_collapsed(found) == {
        "block 1": "an effective rank of 1.40",
        "block 2": "a mean standard deviation of 1.0e-04",
        "features": "its features are not finite",
    }


def test_a_page_shows_every_layer_over_time_only_where_all_runs_have_looked(tmp_path):
    for arm, scale in (("baseline", 0.0), ("VCReg", 1.0)):
        folder = tmp_path / arm / "seed3"
        folder.mkdir(parents=True)
        lines = [
            {"step": step, "split": "layers"}
            | {
                f"{layer}/{number}": scale * step
                for layer in ("block 1", "features")
                for number in layers_section.SHOWN
            }
            | {f"{layer}/effective_rank": 7.5 + step for layer in ("block 1", "features")}
            for step in (10, 20)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = layers_section.section(tmp_path, ["baseline", "VCReg"], 3)
    assert html.count("<svg") == 4 and "baseline 27.5, VCReg 27.5" in html
    steps, values = layers_section.read(tmp_path / "VCReg" / "seed3" / "metrics.jsonl")["block 1/off_diagonal_rms"]
    assert steps.tolist() == [10, 20] and values.tolist() == [10.0, 20.0]
    (tmp_path / "VCReg" / "seed3" / "metrics.jsonl").write_text('{"step": 0, "split": "train", "loss": 1}\n')
    assert layers_section.section(tmp_path, ["baseline", "VCReg"], 3) == ""
