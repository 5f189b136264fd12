"""The report's numbers against the standard library's, its words against its numbers, and its page as HTML."""

import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from train.reports import figures, report

PROBE = {"baseline": [0.90, 0.92, 0.91], "VCReg": [0.95, 0.94, 0.97]}
RANK = {"baseline": [3.0, 3.5, 2.5], "VCReg": [11.0, 12.0, 14.5]}


def write_run(folder: Path, probe=PROBE, rank=RANK, **about) -> Path:
    """A run folder of made-up files; `about` replaces entries of experiment.json."""
    seeds = list(range(len(next(iter(probe.values())))))
    known = {
        "name": "digits", "title": "Digits", "arms": list(probe), "seeds": seeds, "superclass_label": "loop",
        "probe_label": "digit", "class_names": ["0", "1", "long name"], "command": "python -m train run",
        "hardware": "a", "commit": "c0ffee", "versions": {"jax": "0.10"}, "config": {"steps": 100}, "wall_seconds": 1.5,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "experiment.json").write_text(json.dumps(known | about))
    for arm, accuracies in probe.items():
        for seed in seeds:
            write_seed(folder / arm / f"seed{seed}", accuracies[seed], rank.get(arm, RANK["VCReg"])[seed])
    return folder


def write_seed(folder: Path, accuracy: float, rank: float) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(round(1000 * accuracy))
    result = {"superclass_accuracy": 0.99, "probe_accuracy": accuracy, "effective_rank": rank, "probe_l2": 0.01}
    (folder / "result.json").write_text(json.dumps(result | {"probe_converged": True}))
    records = [
        {"step": s, "split": x, "loss": rng.uniform(0.5, 1) / s} for s in (1, 5) for x in ("train", "validation")
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    np.savez(
        folder / "features.npz",
        test_features=rng.normal(size=(30, 6)).astype(np.float32),
        test_labels=np.arange(30) % 3,
        singular_values=np.array([5, 2, 1, 0.5, 0.1, 0], np.float32),  # a dead unit's zero has no logarithm
        l2=np.logspace(-4, 2, 4),
        validation_accuracy=np.array([0.9, 0.95, 0.8, 0.2]),
    )


class Page(HTMLParser):
    """Tags that do not close, what the page refers to, the figures' classes with their SVGs, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.figures: dict[str, int] = {}
        self.alts: list[str] = []
        self.tags: set[str] = set()
        self.text: dict[str, str] = {}
        self.feed(text)
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        attrs = [(name, value or "") for name, value in attrs]
        found = dict(attrs)
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "data", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "figure":
            self.figures[found["class"]] = 0
        if tag == "svg":
            self.figures[list(self.figures)[-1]] += 1
            self.alts.append(found["aria-label"])

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


def test_summary_is_the_mean_and_sample_deviation_of_each_arm_and_of_their_difference(tmp_path):
    rows = {row.metric: row for row in report.summary(report.load(write_run(tmp_path)))}
    for metric, values, scale in (("probe accuracy (%)", PROBE, 100), ("effective rank", RANK, 1)):
        row, (a, b) = rows[metric], ([scale * x for x in own] for own in values.values())
        apart = [y - x for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(row.mean, [statistics.mean(a), statistics.mean(b)], rtol=1e-12)
        np.testing.assert_allclose(row.std, [statistics.stdev(a), statistics.stdev(b)], rtol=1e-12)
        np.testing.assert_allclose(row.difference, [statistics.mean(apart)], rtol=1e-12)
        unpaired = math.sqrt(statistics.variance(a) / 3 + statistics.variance(b) / 3)
        np.testing.assert_allclose(row.standard_error, [unpaired], rtol=1e-12)
        np.testing.assert_allclose(row.paired_error, [statistics.stdev(apart) / math.sqrt(3)], rtol=1e-12)
    assert rows["superclass accuracy (%)"].mean == [99.0, 99.0]
    assert [row.n for row in rows.values()] == [3, 3, 3]


def test_the_table_reads_as_worked_out_by_hand(tmp_path):
    # 90, 92, 91: mean 91, std 1.  95, 94, 97: mean 95.33, std 1.53.  5, 2, 6 apart: mean 4.33;
    # sqrt(1/3 + 2.33/3) = 1.05; paired: std 2.08, over sqrt(3) 1.20.
    table = report.table_text(report.summary(report.load(write_run(tmp_path))))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["metric", "baseline", "VCReg", "difference"]
    assert lines[3] == ["probe accuracy (%)", "91.00 ± 1.00", "95.33 ± 1.53", "+4.33 ± 1.05"]
    assert len({len(line) for line in table.splitlines()[:5]}) == 1, "columns are aligned"
    assert "n = 3" in table and "unpaired" in table and "paired by seed: 1.20" in table


def test_one_seed_has_no_deviation_and_no_error(tmp_path):
    rows = report.summary(report.load(write_run(tmp_path, {"baseline": [0.9], "VCReg": [0.89]})))
    lines = report.table_text(rows).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[2:5]] == ["90.00 ± –", "89.00 ± –", "−1.00 ± –"]  # noqa: RUF001
    assert report.headline(rows) == (
        "VCReg's features probe 1.00 points worse than baseline's in one seed, which has no error to judge it by."
    )
    assert Page(report.write(tmp_path).read_text()).wrong == []


@pytest.mark.parametrize(
    ("vcreg", "sentence"),
    [
        ([0.95, 0.94, 0.97], "VCReg's features probe 4.33 points better than baseline's."),
        (
            [0.93, 0.91, 0.925],
            "VCReg's features probe 1.17 points better than baseline's, by less than two standard errors.",
        ),
        ([0.90, 0.93, 0.91], "VCReg and baseline do not differ in probe accuracy by more than the standard error."),
        ([0.91, 0.90, 0.91], "VCReg and baseline do not differ in probe accuracy by more than the standard error."),
        (
            [0.89, 0.91, 0.89],
            "VCReg's features probe 1.33 points worse than baseline's, by less than two standard errors.",
        ),
        ([0.80, 0.81, 0.82], "VCReg's features probe 10.00 points worse than baseline's."),
    ],
)
def test_the_headline_claims_no_more_than_the_error_allows(tmp_path, vcreg, sentence):
    write_run(tmp_path, PROBE | {"VCReg": vcreg})
    assert Page(report.write(tmp_path).read_text()).text["h1"] == sentence


def test_further_arms_are_each_compared_with_the_first(tmp_path):
    rows = report.summary(report.load(write_run(tmp_path, PROBE | {"DeCov": [0.80, 0.82, 0.81]})))
    np.testing.assert_allclose(rows[1].difference, [13 / 3, -10], rtol=1e-12)
    assert "DeCov against baseline" in report.table_text(rows)
    assert report.headline(rows).endswith(" DeCov's features probe 10.00 points worse than baseline's.")
    assert Page(report.write(tmp_path).read_text()).figures["plane"] == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "features.npz"])
def test_a_half_finished_run_is_one_line_that_names_the_first_missing_file(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / "VCReg" / "seed1" / name).unlink()
    with pytest.raises(ValueError, match=rf"not finished: 1 of 18 files are missing, first \['VCReg/seed1/{name}'\]$"):
        report.write(tmp_path)


def test_no_run_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/experiment\.json is missing"):
        report.load(tmp_path / "nowhere")


def test_what_a_file_lacks_is_named(tmp_path):
    write_run(tmp_path)
    seed = tmp_path / "VCReg" / "seed2"
    good = {path: path.read_bytes() for path in (tmp_path / "experiment.json", *seed.iterdir())}
    about, result = (json.loads(good[path]) for path in (tmp_path / "experiment.json", seed / "result.json"))
    arrays = dict(np.load(seed / "features.npz"))
    cases = [
        (tmp_path / "experiment.json", json.dumps({k: v for k, v in about.items() if k != "commit"}), "lacks commit"),
        (tmp_path / "experiment.json", json.dumps(about | {"arms": ["VCReg"]}), "needs two arms"),
        (seed / "result.json", json.dumps({k: v for k, v in result.items() if k != "probe_l2"}), "lacks probe_l2"),
        (seed / "result.json", json.dumps(result | {"probe_accuracy": math.nan}), "probe_accuracy is nan"),
        (seed / "result.json", '{"probe_', "result.json: "),
        (seed / "metrics.jsonl", '{"step": 1, "split": "train", "loss": 1}', "no line of the validation split"),
        (seed / "metrics.jsonl", '{"step": 1, "split": "tr', "metrics.jsonl: not a record"),
    ]
    for path, text, message in cases:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            report.load(tmp_path)
        assert str(path) in str(caught.value)
        path.write_bytes(good[path])
    for name, value, message in (("l2", None, "lacks l2"), ("test_labels", np.full(30, 3), "beyond the 3 class_names")):
        changed = {k: v for k, v in (arrays | {name: value}).items() if v is not None}
        np.savez(seed / "features.npz", allow_pickle=False, **changed)
        with pytest.raises(ValueError, match=rf"VCReg/seed2/features\.npz.* {message}"):
            report.load(tmp_path)


def test_the_page_is_whole_and_needs_nothing_outside_it(tmp_path):
    text = report.write(write_run(tmp_path)).read_text()
    page = Page(text)
    assert page.wrong == []
    assert page.figures == {"strip": 1, "plane": 2, "spectrum": 1, "strength": 1, "loss": 2}
    assert page.links and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "://" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(page.ids)
    assert (
        page.alts[0] == "Probe accuracy of every seed: baseline 90.00%, 92.00%, 91.00%; VCReg 95.00%, 94.00%, 97.00%."
    )


def test_what_files_say_is_shown_and_not_run(tmp_path):
    bad = "<script>$a_{1}$&\"'</script>"
    about = dict.fromkeys(("title", "command", "hardware", "commit", "superclass_label", "probe_label", "paper"), bad)
    names = {"class_names": ["0", bad, "$"], "versions": {bad: bad}, "config": {bad: bad}}
    arm = "<script>$b$"  # a folder's name too, hence without a slash
    probe = {"baseline": PROBE["baseline"], arm: PROBE["VCReg"]}
    text = report.write(write_run(tmp_path, probe, **about, **names)).read_text()
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text.lower()
    assert page.wrong == []
    assert page.text["title"] == bad and bad in page.text["dd"] and bad in page.text["dt"] and bad in page.text["pre"]
    assert f"{arm}'s features" in page.text["h1"] and arm in page.text["text"]


def test_a_probe_that_did_not_converge_is_named(tmp_path):
    write_run(tmp_path)
    assert "converged" not in report.write(tmp_path).read_text()
    path = tmp_path / "VCReg" / "seed1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"probe_converged": False}))
    assert "The probe stopped before it converged: VCReg seed 1." in report.write(tmp_path).read_text()


def test_the_same_run_gives_the_same_page_and_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    first = report.write(write_run(tmp_path)).read_bytes()
    assert report.write(tmp_path).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_the_plane_is_that_of_the_eigenvectors_of_the_covariance():
    features = np.random.default_rng(0).normal(size=(50, 5)) * [1, 5, 2, 0.1, 3] + 7
    points, share = figures.plane(features)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    expected = (features - features.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-10)
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum(), rtol=1e-10)
    for shift in range(1, 5):  # the order of the dimensions changes nothing, signs included
        np.testing.assert_allclose(figures.plane(np.roll(features, shift, axis=1))[0], points, atol=1e-10)


def test_every_seed_shows_even_where_accuracies_are_equal():
    drawn = figures.strip({"baseline": [0.9, 0.9, 0.9], "VCReg": [0.9, 0.91, 0.95]})
    dots = [line for line in drawn.axes[0].lines if line.get_marker() == "o"]
    places = [tuple(place) for line in dots for place in np.asarray(line.get_xydata())]
    assert sorted({round(float(x), 6) for x, _ in places}) == [90.0, 91.0, 95.0]
    assert len(set(places)) == 6


def test_thick_lines_are_means_over_seeds_and_dots_are_choices():
    seeds = [np.array([[1, 2, 5], [4.0, 2.0, 1.0]]), np.array([[1, 5, 6], [6.0, 3.0, 9.0]])]
    drawn = figures.losses({"baseline": seeds, "VCReg": seeds}, "train")
    thick = [line for line in drawn.axes[0].lines if line.get_linewidth() > 2]
    assert len(drawn.axes[0].lines) == 6
    np.testing.assert_allclose(
        np.asarray(thick[0].get_xydata()), [[1, 5.0], [5, 2.0]], rtol=1e-12
    )  # the steps both seeds logged

    sweep = [(np.array([0.01, 1.0]), np.array([0.9, 0.8])), (np.array([0.01, 1.0]), np.array([0.7, 0.8]))]
    chosen = {"baseline": [0.01, 1.0], "VCReg": [1.0, 1.0]}
    lines = figures.strengths({"baseline": sweep, "VCReg": sweep}, chosen).axes[0].lines
    np.testing.assert_allclose(np.asarray(lines[0].get_xydata()), [[0.01, 80], [1, 80]], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(lines[1].get_xydata()), [[0.01, 90], [1, 80]], rtol=1e-12)

    drawn = figures.spectra({"baseline": [np.array([4.0, 1.0]), np.array([8.0, 6.0])]}, {"baseline": 1.5})
    np.testing.assert_allclose(np.asarray(drawn.axes[0].lines[0].get_xydata()), [[1, 1], [2, 0.5]], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(drawn.axes[0].lines[1].get_xydata()), [[1.5, 0.75]], rtol=1e-12)


def test_a_diverged_run_is_still_drawn(tmp_path):
    write_run(tmp_path)
    for arm in PROBE:
        (tmp_path / arm / "seed0" / "metrics.jsonl").write_text(
            "\n".join(f'{{"step": 1, "split": "{split}", "loss": NaN}}' for split in ("train", "validation"))
        )
        path = tmp_path / arm / "seed0" / "features.npz"
        dead = {"test_features": np.zeros((30, 6)), "singular_values": np.zeros(6, np.float32)}
        np.savez(path, allow_pickle=False, **(dict(np.load(path)) | dead))
    page = Page(report.write(tmp_path).read_text())
    assert page.wrong == []
    assert page.text["text"].count("first direction 0% of the variance, second 0%") == 2
