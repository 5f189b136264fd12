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

from train.experiments import targets
from train.files import json_files
from train.reports import figures, report, report_page
from train.reports.summary import Sample, difference, number, with_error

PROBE = {"baseline": [0.90, 0.92, 0.91], "VCReg": [0.95, 0.94, 0.97]}
RANK = {"baseline": [3.0, 3.5, 2.5], "VCReg": [11.0, 12.0, 14.5]}


def write_run(folder: Path, probe=PROBE, rank=RANK, target=None, **about) -> Path:
    """A run folder of made-up files; `about` replaces entries of experiment.json."""
    seeds = list(range(len(next(iter(probe.values())))))
    known = {
        "name": "digits", "title": "Digits", "notes": [], "arms": list(probe), "seeds": seeds, "label": "loop",
        "targets": {"digit": {"label": "digit", "class_names": ["0", "1", "long name"]} | (target or {})},
        "command": "python -m train run", "hardware": "a", "commit": "c0ffee", "versions": {"jax": "0.10"},
        "config": {"steps": 100}, "wall_seconds": 1.5,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    json_files.write(folder / "experiment.json", known | about)
    for arm, accuracies in probe.items():
        for seed in seeds:
            write_seed(folder / arm / f"seed{seed}", accuracies[seed], rank.get(arm, RANK["VCReg"])[seed])
    return folder


def write_seed(folder: Path, accuracy: float, rank: float) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(round(1000 * accuracy))
    digit = {"accuracy": accuracy, "effective_rank": rank, "l2": 0.01, "converged": True, "protocol": "a protocol"}
    json_files.write(folder / "result.json", {"accuracy": 0.99, "targets": {"digit": digit}})
    records = [
        {"step": s, "split": x, "loss": rng.uniform(0.5, 1) / s} for s in (1, 5) for x in ("train", "validation")
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    points, shares = targets.plane(rng.normal(size=(30, 6)))
    arrays = {
        "points": points,
        "shares": shares,
        "labels": np.arange(30) % 3,
        "singular_values": np.array([5, 2, 1, 0.5, 0.1, 0], np.float32),  # a dead unit's zero has no logarithm
        "l2": np.logspace(-4, 2, 4),
        "validation_accuracy": np.array([0.9, 0.95, 0.8, 0.2]),
    }
    np.savez(folder / "features.npz", allow_pickle=False, **{f"digit/{name}": value for name, value in arrays.items()})


def edit(path: Path, change) -> None:
    """Writes what `change` makes of the file's content."""
    found = json_files.read(path)
    change(found)
    json_files.write(path, found)


def lines_of(folder: Path) -> list[list[str]]:
    return report.rows(report.load(folder))


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


def test_means_deviations_and_errors_are_those_of_the_standard_library():
    a, b = Sample(dict(enumerate(PROBE["baseline"]))), Sample(dict(enumerate(PROBE["VCReg"])))
    apart = [y - x for x, y in zip(PROBE["baseline"], PROBE["VCReg"], strict=True)]
    np.testing.assert_allclose([a.mean, b.mean], [statistics.mean(own) for own in PROBE.values()], rtol=1e-12)
    np.testing.assert_allclose([a.std, b.std], [statistics.stdev(own) for own in PROBE.values()], rtol=1e-12)
    found = difference(b, a)
    np.testing.assert_allclose(found.mean, statistics.mean(apart), rtol=1e-12)
    unpaired = math.sqrt(sum(statistics.variance(own) / 3 for own in PROBE.values()))
    np.testing.assert_allclose(found.standard_error, unpaired, rtol=1e-12)
    np.testing.assert_allclose(found.paired_error, statistics.stdev(apart) / math.sqrt(3), rtol=1e-12)
    assert math.isnan(difference(Sample({7: 1.0, 8: 2.0}), a).paired_error), "other seeds do not pair"
    assert difference(Sample({}), a) is None and str(Sample({})) == "not run"
    assert (number(-1.005, 1), number(math.nan)) == ("\N{MINUS SIGN}1.0", "\N{EN DASH}")
    assert with_error(1.25, math.nan) == "1.25" and math.isnan(Sample({0: 1.0, 1: math.inf}).std)


def test_the_table_reads_as_worked_out_by_hand(tmp_path):
    # 90, 92, 91: mean 91, std 1.  95, 94, 97: mean 95.33, std 1.53.  5, 2, 6 apart: mean 4.33;
    # sqrt(1/3 + 2.33/3) = 1.05; paired: std 2.08, over sqrt(3) 1.20.
    text = report.text(report.load(write_run(tmp_path)))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["", "baseline", "VCReg", "difference"]
    assert lines[2] == ["loop accuracy (%)", "99.00 ± 0.00", "99.00 ± 0.00", "+0.00 ± 0.00"]
    assert lines[3] == ["digit probe accuracy (%)", "91.00 ± 1.00", "95.33 ± 1.53", "+4.33 ± 1.05"]
    assert lines[4] == ["effective rank", "3.00 ± 0.50", "12.50 ± 1.80", "+9.50 ± 1.08"]
    assert len({len(line) for line in text.splitlines()[:5]}) == 1, "columns are aligned"
    assert "n = 3" in text and "unpaired" in text and "paired by seed: 1.20" in text


def test_one_seed_has_no_deviation_and_no_error(tmp_path):
    loaded = report.load(write_run(tmp_path, {"baseline": [0.9], "VCReg": [0.89]}))
    assert report.rows(loaded)[2][1:] == ["90.00", "89.00", "\N{MINUS SIGN}1.00"]
    assert report.headline(loaded) == (
        "VCReg's features probe 1.00 points worse than baseline's in one seed, which has no error to judge it by."
    )
    assert Page(report_page.write(tmp_path).read_text()).wrong == []


def test_where_the_probe_learns_the_trained_label_the_rows_say_so(tmp_path):
    rows = lines_of(write_run(tmp_path, label="digit"))
    assert [row[0] for row in rows[1:]] == ["accuracy (%)", "probe accuracy (%)", "effective rank"]
    assert "a linear probe learned the same from the features" in report_page.write(tmp_path).read_text()


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
    assert Page(report_page.write(tmp_path).read_text()).text["h1"] == sentence


def test_further_arms_are_each_compared_with_the_first(tmp_path):
    loaded = report.load(write_run(tmp_path, PROBE | {"DeCov": [0.80, 0.82, 0.81]}))
    header, _, probe, _ = report.rows(loaded)
    assert header[4:] == ["VCReg less baseline", "DeCov less baseline"]
    assert probe[4:] == ["+4.33 ± 1.05", "\N{MINUS SIGN}10.00 ± 0.82"]
    assert report.headline(loaded).endswith(" DeCov's features probe 10.00 points worse than baseline's.")
    assert Page(report_page.write(tmp_path).read_text()).figures["plane"] == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "features.npz"])
def test_a_half_finished_run_is_one_line_that_names_the_first_missing_file(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / "VCReg" / "seed1" / name).unlink()
    with pytest.raises(ValueError, match=rf"not finished: 1 of 18 files are missing, first \['VCReg/seed1/{name}'\]$"):
        report_page.write(tmp_path)


def test_no_run_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/experiment\.json is missing"):
        report.load(tmp_path / "nowhere")


def test_what_a_file_lacks_is_named(tmp_path):
    write_run(tmp_path)
    seed = tmp_path / "VCReg" / "seed2"
    good = {path: path.read_bytes() for path in (tmp_path / "experiment.json", *seed.iterdir())}
    arrays = dict(np.load(seed / "features.npz"))
    cases = [
        (tmp_path / "experiment.json", lambda about: about.pop("commit"), "lacks commit"),
        (tmp_path / "experiment.json", lambda about: about.update(seeds=[]), "needs an arm and a seed"),
        (seed / "result.json", lambda result: result["targets"]["digit"].pop("protocol"), "KeyError: 'protocol'"),
        (seed / "result.json", lambda result: result["targets"]["digit"].update(accuracy=math.nan), "numbers are"),
        (seed / "result.json", lambda result: result.pop("accuracy"), "KeyError: 'accuracy'"),
    ]
    for path, change, message in cases:
        edit(path, change)
        with pytest.raises(ValueError, match=message) as caught:
            report.load(tmp_path)
        assert str(path) in str(caught.value)
        path.write_bytes(good[path])
    for path, text, message in [
        (seed / "result.json", '{"accur', "result.json cannot be read"),
        (seed / "metrics.jsonl", '{"step": 1, "split": "validation", "loss": 1}', "no line of the train split"),
        (seed / "metrics.jsonl", '{"step": 1, "split": "tr', "metrics.jsonl: not a record"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            report.load(tmp_path)
        path.write_bytes(good[path])
    for name, value, message in (("points", None, "lacks digit/points"), ("labels", np.full(30, 3), "beyond its 3")):
        changed = {k: v for k, v in (arrays | {f"digit/{name}": value}).items() if v is not None}
        np.savez(seed / "features.npz", allow_pickle=False, **changed)
        with pytest.raises(ValueError, match=rf"VCReg/seed2/features\.npz.* {message}"):
            report.load(tmp_path)


def test_the_page_is_whole_and_needs_nothing_outside_it(tmp_path):
    text = report_page.write(write_run(tmp_path)).read_text()
    page = Page(text)
    assert page.wrong == []
    assert page.figures == {"strip": 1, "plane": 2, "spectrum": 1, "strength": 1, "loss": 2}
    assert page.links and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "://" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(page.ids)
    seeds = "baseline 90.00%, 92.00%, 91.00%; VCReg 95.00%, 94.00%, 97.00%"
    assert page.alts[0] == f"Digit probe accuracy of every seed: {seeds}."


def test_what_files_say_is_shown_and_not_run(tmp_path):
    bad = "<script>$a_{1}$&\"'</script>"
    about = dict.fromkeys(("title", "command", "hardware", "commit", "label"), bad) | {"notes": [bad]}
    names = {"versions": {bad: bad}, "config": {bad: bad}, "target": {"label": bad, "class_names": ["0", bad, "$"]}}
    arm = "<script>$b$"  # a folder's name too, hence without a slash
    probe = {"baseline": PROBE["baseline"], arm: PROBE["VCReg"]}
    text = report_page.write(write_run(tmp_path, probe, **about, **names)).read_text()
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text.lower()
    assert page.wrong == []
    assert page.text["title"] == bad and bad in page.text["dd"] and bad in page.text["dt"] and bad in page.text["pre"]
    assert f"{arm}'s features" in page.text["h1"] and arm in page.text["text"]


def test_a_probe_that_did_not_converge_is_named(tmp_path):
    write_run(tmp_path)
    assert "converged" not in report_page.write(tmp_path).read_text()
    edit(
        tmp_path / "VCReg" / "seed1" / "result.json", lambda result: result["targets"]["digit"].update(converged=False)
    )
    assert "The probe stopped before it converged: VCReg, seed 1, digit." in report_page.write(tmp_path).read_text()


def test_the_same_run_gives_the_same_page_and_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    first = report_page.write(write_run(tmp_path)).read_bytes()
    assert report_page.write(tmp_path).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_the_plane_is_that_of_the_eigenvectors_of_the_covariance():
    features = np.random.default_rng(0).normal(size=(50, 5)) * [1, 5, 2, 0.1, 3] + 7
    points, share = targets.plane(features)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    expected = (features - features.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-10)
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum(), rtol=1e-10)
    for shift in range(1, 5):  # the order of the dimensions changes nothing, signs included
        np.testing.assert_allclose(targets.plane(np.roll(features, shift, axis=1))[0], points, atol=1e-10)


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
        points, shares = targets.plane(np.zeros((30, 6)))
        dead = {
            "digit/points": points,
            "digit/shares": shares,
            "digit/singular_values": np.zeros(6, np.float32),
        }
        np.savez(path, allow_pickle=False, **(dict(np.load(path)) | dead))
    page = Page(report_page.write(tmp_path).read_text())
    assert page.wrong == []
    assert page.text["text"].count("first direction 0% of the variance, second 0%") == 2
