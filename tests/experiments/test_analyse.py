import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

import vcreg_jax as vc
from configs import digits
from tests.tiny_network import TWO_STAGES
from train.__main__ import main
from train.config import Experiment
from train.data import pipeline
from train.experiments import analyse
from train.files import json_files
from train.interop import saved_config
from train.reports import analysis_page
from train.run.checkpoints import Checkpoints
from train.run.folder import as_json, claim
from train.trainer.model import Architecture, create_state
from train.trainer.prepare import prepare

pytestmark = pytest.mark.usefixtures("smallest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoint of a digits network, as it was drawn, that tells the ten digits apart."""
    directory = tmp_path_factory.mktemp("analyse")
    train = digits.get_config().train
    data = replace(train.data, label="digit", directory=str(directory / "data"))
    train = replace(train, data=data, model=replace(train.model, name=TWO_STAGES))
    arms = {"VCReg": vc.Sites(block=vc.VCReg(alpha=1.28, beta=0.16, delta=2.0), features=vc.identity)}
    config = Experiment("small", "small", train, arms, runs_directory=str(directory))
    run = prepare(train, arms["VCReg"])
    with claim(directory / "small", config):
        pass
    folder = directory / "small" / "VCReg" / "seed0" / "checkpoints"
    with jax.set_mesh(run.mesh), Checkpoints(folder, train.checkpoints, {}) as checkpoints:
        checkpoints.save(6, create_state(run.architecture, run.optimizer, run.mesh, seed=0), {})
    return directory / "small"


def test_a_config_comes_back_from_its_folder(folder):
    config = saved_config.load(folder)
    assert as_json(config) == json_files.read(folder / "config.json")
    assert config.arms["VCReg"].block == vc.VCReg(alpha=1.28, beta=0.16, delta=2.0)
    assert config.arms["VCReg"].features is vc.identity
    assert config.train.optimizer.schedule.warmup_steps == 50 and config.train.data.mean == (0.3060,)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing: give the folder of a run"):
        saved_config.load(tmp_path)
    (tmp_path / "config.json").write_text('{"class": "Experiment", "nothing": 1}')
    with pytest.raises(ValueError, match="whose Experiment has other fields"):
        saved_config.load(tmp_path)
    (tmp_path / "config.json").write_text('{"class": "Path"}')
    with pytest.raises(ValueError, match="holds a Path, which this version does not know"):
        saved_config.load(tmp_path)


def _network(config):
    """The network whose checkpoint it is, drawn again: weights of the same seed."""
    return Architecture(config.model, 10, (8, 8, 1), vc.Sites()).create(0)


def _split(config, name):
    data = pipeline.load(config.data, name)
    rows = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in data.eval_batches(128)]
    images, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    return jnp.asarray((images / 255 - 0.3060) / 0.3764, jnp.float32), labels


def _layers(model, images):
    """The outputs of every block and the features, and the logits."""

    @jax.jit
    def all_of(x):
        logits, features = model(x)
        x, found = model.stem_norm(model.stem_conv(x)), []
        for index, blocks in enumerate(model.stages):
            x = model.downsamples[index - 1](x, False) if index else x
            for block in blocks:
                found.append(x := block(x, False, None))
        return [*found, features], logits

    layers, logits = all_of(images)
    return [np.asarray(layer, np.float64) for layer in layers], np.asarray(logits)


@pytest.fixture(scope="module")
def written(folder):
    main(["analyse", str(folder), "--critic-steps", "2"])
    return json.loads((folder / "analysis.json").read_text())


def test_every_number_is_what_numpy_and_scikit_learn_find_in_the_layers(folder, written):
    (found,) = written["analyses"]
    config = saved_config.load(folder).train
    model = _network(config)
    splits = {name: _split(config, name) for name in ("train", "test")}
    layers_and_logits = {name: _layers(model, x) for name, (x, _) in splits.items()}
    outputs = {name: layers for name, (layers, _) in layers_and_logits.items()}
    assert [layer["name"] for layer in found["layers"]] == ["block 1", "block 2", "features"]
    for i, layer in enumerate(found["layers"]):
        pooled = {s: h[i].reshape(len(h[i]), -1, h[i].shape[-1]).mean(axis=1) for s, h in outputs.items()}
        nearest = NearestCentroid().fit(pooled["train"], splits["train"][1])
        for split, (_, labels) in splits.items():
            right = (nearest.predict(pooled[split]) == labels).mean()
            agree = (nearest.predict(pooled[split]) == layers_and_logits[split][1].argmax(axis=1)).mean()
            assert layer["ncc_accuracy"][split] == pytest.approx(right, abs=2e-3)
            assert layer["ncc_agreement"][split] == pytest.approx(agree, abs=2e-3)
            own = [pooled[split][labels == c] for c in range(10)]
            pairs = [
                (a.var(axis=0).sum() + b.var(axis=0).sum()) / 2 / ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
                for j, a in enumerate(own)
                for b in own[:j]
            ]
            assert layer["cdnv"][split] == pytest.approx(np.mean(pairs), rel=1e-3)
        rows = outputs["train"][i].reshape(-1, layer["width"])
        s = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) / np.sqrt(len(rows) - 1)
        np.testing.assert_allclose(layer["singular_values"], s, rtol=1e-2, atol=1e-3 * s[0])
    assert -0.5 < np.mean(found["cosines"]) < 0.5 and np.allclose(np.diag(found["cosines"]), 1)


def test_the_page_and_the_table_hold_the_numbers_beside_the_papers(folder, written):
    (one,) = written["analyses"]
    found = analyse.Analysis(**one | {"layers": [analyse.Layer(**layer) for layer in one["layers"]]})
    other = replace(found, seed=1, layers=[replace(layer, cdnv={"train": 3.0, "test": 4.0}) for layer in found.layers])
    without = replace(
        found, layers=[replace(layer, ncc_agreement={"train": None, "test": None}) for layer in found.layers]
    )
    lines = analysis_page.markdown({"VCReg": [found, other], "other labels": [without]}).splitlines()
    text = "\n".join(f"| {' | '.join(cell.strip() for cell in line.strip('|').split('|'))} |" for line in lines)
    values = np.array([one["layers"][-1]["cdnv"]["train"], 3.0])
    assert f"| CDNV, train | {values.mean():.3f} ± {values.std(ddof=1):.3f} |" in text
    assert "| NCC agreement, train | " in text and " | \N{EN DASH} | 0.99 | 0.81 |" in text
    html = (folder / "analysis.html").read_text()
    assert "| 2.8 | 4.6 |" in text and f"<td>{values[0]:.3f}</td><td>0.28</td><td>0.56</td>" in html
    assert html.count("<svg") == 5 and "http" not in html.replace("http://www.w3.org", "")
    assert written["command"].startswith("python -m train analyse ")


def test_a_run_without_a_checkpoint_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        analyse.checkpoints([tmp_path])
