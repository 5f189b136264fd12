"""Every kind of page, rendered from small made-up results: what is on it is text, numbers and nothing else."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import vcreg_jax as vc
from configs import table5_superclass
from tests.experiments.test_grid_search import result, small
from tests.reports.test_report import PROBE, Page, write_run
from tests.reports.test_tables import finished
from train.config import Candidate
from train.experiments import analyse
from train.experiments.grid import Strengths
from train.experiments.two_moons import Method, TwoMoons
from train.reports import analysis_page, axis_labels, checkup_page, figure1, grid_table, report_page, tables
from vcreg_jax import Sites, VCReg

BAD = "<img src=x onerror=alert(1)>"


def run(folder, name=BAD):
    about = dict.fromkeys(("title", "command", "hardware", "commit", "label"), name)
    named = {"notes": [name], "versions": {name: name}, "config": {name: name}}
    target = {"label": name, "class_names": [name, "b", "c"]}
    write_run(folder, {"baseline": PROBE["baseline"], name: PROBE["VCReg"]}, target=target, **about, **named)
    for arm in ("baseline", name):  # every layer over time, so that each of the page's figures is drawn
        path = folder / arm / "seed0" / "metrics.jsonl"
        numbers = ("effective_rank", "under_unit_std", "off_diagonal_rms", "gradient_ratio")
        looks = [
            {"step": step, "split": "layers"}
            | {f"{layer}/{kind}": 10.0 ** -(i + step) for kind in numbers for i, layer in enumerate((name, "features"))}
            for step in (1, 2)
        ]
        path.write_text("\n".join([path.read_text(), *map(json.dumps, looks)]))
    return report_page.write(folder).read_text()


def analysis_of(arm, seed=0, name=BAD):
    layers = [
        analyse.Layer(
            name=f"block {name}" if i == 0 else f"block {i}", width=4, cdnv={"train": 10.0**-i, "test": 1.0},
            ncc_agreement={"train": 0.9, "test": 0.8}, ncc_accuracy={"train": 0.9, "test": 0.7 + 0.01 * i},
            effective_rank=2.0 + i, singular_values=[3.0, 1.0, 0.1, 1e-3], off_diagonal_rms=0.1, mean_variance=1.0,
        )
        for i in range(19)
    ]  # fmt: skip
    information = {"mine": 1.0, "smile": 1.1, "info_nce": 0.9, "log_batch_size": 6.2}
    cosines = [[1.0, -0.9, 0.3], [-0.9, 1.0, 0.6], [0.3, 0.6, 1.0]]
    return analyse.Analysis("run", arm, seed, 1, layers, [name, "b", "c"], cosines, information)


def analysis(folder, name=BAD):
    own = [analysis_of(name, seed, name) for seed in (0, 1)]
    arms = {"a long name of an arm": [analysis_of("a", 0, name)], name: own}
    about = {"hardware": name, "commit": name, "wall_seconds": 1.0, "command": name, "versions": {name: name}}
    return analysis_page._page(arms, about | {"config": {"data": name}})


def table(folder, name=BAD):
    config = table5_superclass.get_config()
    target = next(iter(config.targets.values()))
    config = replace(
        config, title=name, runs_directory=str(folder), targets={name: target}, notes=(name,),
        paper={name: {name: 50.0}},
        arms={"none": (Candidate(Sites()),), name: (Candidate(Sites()),)},
    )  # fmt: skip
    for arm in config.arms:
        for seed in range(2):
            finished(config, arm, seed, 0.5 + 0.01 * seed, 0.3)
    return tables.write(
        "table5", [tables.gather(config, "python -m train run table5_superclass")], folder / "out"
    ).read_text()


def grid(folder, name=BAD):
    arms = {name: Strengths(Sites(block=VCReg()), (0.64, 1.28), (0.08, 0.16))}
    config = small(folder, title=name, arms=arms)
    found = [result(0.004, alpha, beta, 7, 0.4 + alpha * beta) for alpha in (0.0, 0.64, 1.28) for beta in (0.08, 0.16)]
    found = [own | {"arm": name if own["alpha"] else "baseline"} for own in found if own["alpha"] or own["beta"] < 0.1]
    found = [own | ({} if own["alpha"] else {"beta": 0.0}) for own in found]
    found_so_far = grid_table.GridTable(config, found[:-1], found, {}, name)
    return grid_table.write("strength", [found_so_far], folder).read_text()


def moons(folder, name=BAD):
    config = TwoMoons(
        name="moons", networks={name: (8,)}, methods={name: Method(), "VCReg": Method(regularizer=vc.VCReg())},
        steps=2, seeds=(0, 1), runs_directory=str(folder),
    )  # fmt: skip
    return (figure1.run(config, name) / "report.html").read_text()


def checkup(folder, name=BAD):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    outputs = {
        f"{name if i == 0 else 'blocks'}/{i}": rng.normal(size=(400, 8)) + i * np.eye(4)[labels] @ np.eye(4, 8)
        for i in range(6)
    }
    config = {"model": name, "data": name, "split": "test", "label": name, "images": 400, "classes": 4}
    made = {"hardware": name, "commit": name, "versions": {name: name}, "command": name, "config": config}
    return checkup_page.text(vc.doctor(outputs, labels, 4), made)


PAGES = {"report": run, "analysis": analysis, "table": table, "grid": grid, "moons": moons, "checkup": checkup}


@pytest.fixture(scope="module", params=PAGES)
def text(request, tmp_path_factory):
    return PAGES[request.param](tmp_path_factory.mktemp(request.param) / "run")


def test_names_are_shown_and_not_run(text):
    page = Page(text)
    assert "img" not in page.tags and "<img" not in text.lower() and page.wrong == []
    assert any(BAD in shown for shown in page.text.values())


def test_numbers_on_axes_are_plain_text(text):
    assert "$" not in text and "mathdefault" not in text


def test_the_page_fits_a_phone_has_both_themes_and_a_title_that_says_what_it_is(text):
    page = Page(text)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme:dark" in text and "color-scheme:light dark" in text
    assert len(page.text["title"].split()) > 2 and page.text["h1"]
    assert text.count("<table>") == text.count('<div class="wide"><table>') > 0, "every table scrolls by itself"
    assert "<svg" in text


def test_printed_tables_are_not_cut_and_keep_their_rows_whole(text):
    printed = text.partition("@media print{")[2].partition("</style>")[0]
    assert ".wide{overflow:visible" in printed and "td,th{white-space:normal" in printed
    assert re.search(r"tr,[\w,.]*\{break-inside:avoid\}", printed) and "main{display:block" in printed


def test_text_has_one_size_in_all_pictures(text):
    found = re.findall(r'<svg viewBox="0 0 ([\d.]+) [^>]*max-width:([\d.]+)rem', text)
    assert len(found) == text.count("<svg viewBox")
    for width, most in found:
        assert 16 * float(most) / float(width) == pytest.approx(2, rel=0.01), "pixels a point at most"


def test_arms_keep_their_colours_and_names_do_not_meet(tmp_path):
    own = [analysis_of("a")]
    figures = [analysis_page.spectra("a", own, 0), analysis_page.spectra("b", own, 1)]
    first, second = ({line.get_color() for line in figure.axes[0].lines} for figure in figures)
    assert len(first) == len(second) == 1 and first != second
    depth = analysis_page.through_depth({"a long name": own, "b": own}, "title", lambda layer: layer.effective_rank)
    places = [text.xyann[1] for text in depth.axes[0].texts]
    assert abs(places[0] - places[1]) >= 12, "each name has a line of its own"
    assert len(depth.axes[0].get_xticks()) <= 9


def test_ink_has_enough_contrast_on_every_colour_of_the_maps():
    import matplotlib

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    for share in np.linspace(0, 1, 101):
        colour = matplotlib.colormaps["RdBu"](share)
        inks = {"black": 0.0, "white": 1.0}
        low, high = sorted((luminance(colour), inks[axis_labels.ink_on(colour)]))
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize(("low", "high"), [(1e-7, 1e3), (0.03, 2.0), (0.95, 1.05), (1.1, 1.3)])
def test_a_logarithmic_axis_has_labels_that_are_plain_numbers(low, high):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.plot([1, 2], [low, high])
    axis_labels.log_axis(axes, "y")
    bottom, top = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    labels = [axes.yaxis.get_major_formatter()(tick) for tick in shown]
    assert 2 <= len(labels) <= 10 and all(re.fullmatch(r"[\d.e-]+|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", label) for label in labels)
