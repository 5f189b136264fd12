"""`python -m train analyse`: Table 6 of any run folders as text, as JSON, and as one page with pictures."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

import vcreg_jax as vc
from train.experiments.analyse import Analysis, analyse, checkpoints
from train.files import whole_files
from train.reports import figures, page, summary
from train.reports.axis_labels import ink_on, log_axis, names_above, shorten, thin_out
from train.reports.summary import Sample
from train.run.folder import provenance, write_json

PAPER = {"CDNV": ("0.28", "0.56"), "NCC": ("0.99", "0.81"), "MI": ("2.8", "4.6")}  # Table 6: ConvNeXt, with VCReg
LEGEND = (
    "Mean ± standard deviation (n - 1) over seeds. CDNV: Eq. 8, the mean over pairs of classes. NCC: Eq. 9, the class "
    "means being the training images', as agreement with the network's prediction and as accuracy. MI: nats by equal "
    "critics, read out on test images; a comparison and not a measurement, since features are a function of the image. "
    "The paper says neither which NCC, nor which images, nor which unit (its text has bits)."
)
Arms = Mapping[str, Sequence[Analysis]]


def run(
    runs: Sequence[Path], data_name: str | None, label: str | None, critic_steps: int, output: Path | None, command: str
) -> Path:
    """Analyses every checkpoint of the runs and returns the folder with `analysis.json` and `analysis.html`.

    Where the data set's name or its label is None, it is each run's own; where `output` is, the first run's folder.

    Raises:
      ValueError: before any work, for what is no run, and for data that the networks cannot take.
    """
    found, started = checkpoints(runs), time.perf_counter()
    settings = vc.mine.Settings(steps=critic_steps)
    analyses = []
    for checkpoint in found:
        data = checkpoint.train.data
        data = replace(data, name=data_name or data.name, label=label or data.label)
        analyses.append(analyse(checkpoint, data, settings))
        print(f"{checkpoint.run}, {checkpoint.arm}, seed {checkpoint.seed}: {_in_short(analyses[-1])}", flush=True)
    folder = output or runs[0]
    folder.mkdir(parents=True, exist_ok=True)
    how = {"data": data.name, "label": data.label, "critic": dataclasses.asdict(settings)}
    about = provenance(None, command, time.perf_counter() - started) | {"config": how}
    write_json(folder / "analysis.json", {"analyses": [dataclasses.asdict(one) for one in analyses], **about})
    arms = by_arm(analyses)
    whole_files.write(folder / "analysis.html", _page(arms, about))
    print(f"\n{markdown(arms)}\n\n{LEGEND}\n\nAnalysis: {folder / 'analysis.html'}")
    return folder


def _in_short(one: Analysis) -> str:
    return f"CDNV {one.layers[-1].cdnv['train']:.3f}, MI {one.information['mine']:.2f} nats"


def by_arm(analyses: Sequence[Analysis]) -> Arms:
    """The analyses by arm, in order; with several runs the run's name goes before the arm's."""
    several = len({one.run for one in analyses}) > 1
    arms: dict[str, list[Analysis]] = {}
    for one in analyses:
        arms.setdefault(f"{one.run}: {one.arm}" if several else one.arm, []).append(one)
    return arms


def _rows() -> list[tuple[str, str, Callable[[Analysis], float | None]]]:
    """Name, the paper's column, and where the number is."""

    def last(field: str, split: str) -> Callable[[Analysis], float | None]:
        return lambda one: getattr(one.layers[-1], field)[split]

    names = {
        "cdnv": ("CDNV", "CDNV"),
        "ncc_agreement": ("NCC agreement", "NCC"),
        "ncc_accuracy": ("NCC accuracy", "NCC"),
    }
    rows = [
        (f"{name}, {split}", paper if split == "train" else "", last(field, split))
        for field, (name, paper) in names.items()
        for split in ("train", "test")
    ]
    rows.append(("effective rank, train", "", lambda one: one.layers[-1].effective_rank))
    for key, name in (("mine", "MI by MINE"), ("smile", "MI by SMILE"), ("info_nce", "MI by InfoNCE")):
        rows.append((name, "MI" if key == "mine" else "", lambda one, key=key: one.information[key]))
    return rows


def cells(arms: Arms) -> list[list[str]]:
    """Table 6: a header, then a row per number."""
    counts = " and ".join(map(str, sorted({len(own) for own in arms.values()})))
    table = [[f"n = {counts}", *arms, "paper, without", "paper, VCReg"]]
    for name, paper, of in _rows():
        line = [name]
        for own in arms.values():
            values = [value for one in own if (value := of(one)) is not None]
            line.append(Sample(dict(enumerate(values))).text(3) if values else "\N{EN DASH}")
        table.append([*line, *PAPER.get(paper, ("", ""))])
    limit = next(iter(arms.values()))[0].information["log_batch_size"]
    table.append(["log of InfoNCE's batch", *[f"{limit:.2f}" for _ in arms], "", ""])
    return table


def markdown(arms: Arms) -> str:
    """Table 6 as text."""
    return "\n".join(summary.markdown(cells(arms)))


def _page(arms: Arms, about: Mapping[str, Any]) -> str:
    header, *body = cells(arms)
    facts = {"hardware": about["hardware"], "commit": about["commit"], "wall time": f"{about['wall_seconds']:.0f} s"}
    n = len(next(iter(arms.values()))[0].class_names)
    depth = [
        through_depth(arms, "CDNV, training images", lambda layer: layer.cdnv["train"], "log"),
        through_depth(arms, "nearest class mean right, test images", lambda layer: layer.ncc_accuracy["test"]),
        through_depth(arms, "effective rank, all positions", lambda layer: layer.effective_rank),
    ]
    pictures = [
        ("depth", depth, "CDNV, NCC accuracy and effective rank at every block output and the features.", _DEPTH),
        (
            "spectra",
            [spectra(*item, i) for i, item in enumerate(arms.items())],
            "Singular values of every layer.",
            _SPECTRA,
        ),
        (
            "geometry",
            [geometry(*item, i) for i, item in enumerate(arms.items())],
            "Cosines between class means.",
            _GEOMETRY.format(n - 1),
        ),
    ]
    shown = "".join(figures.picture(*picture) for picture in pictures)
    data = about["config"]["data"]
    main = f"""<h1>Neural collapse and information on {escape(data)}</h1>
{page.table(header, body)}
<p class="soft">{LEGEND}</p>
{shown}
{page.footer(about["command"], facts | about["versions"], about["config"])}"""
    return page.page(f"Neural collapse and information on {data}", main)


_DEPTH = (
    "Means over positions have a class; the spectrum is of all positions. Line: mean over seeds; band: their range."
)
_SPECTRA = "First seed, training images, over the largest: blocks from faint to strong, the features dashed."
_GEOMETRY = "First seed, features: cosines between class means seen from their centre; collapse makes all -1 / {}."


@figures.styled
def through_depth(
    arms: Arms, title: str, of: Callable[[Any], float], scale: Literal["linear", "log", "share"] = "linear"
) -> Figure:
    """A number at every layer, in the order of computation; a share on an axis from 0 to 1."""
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_axes((0.12, 0.2, 0.85, 0.69))
    for i, own in enumerate(arms.values()):
        values = np.array([[of(layer) for layer in one.layers] for one in own if len(one.layers) == len(own[0].layers)])
        places = np.arange(values.shape[1])
        axes.fill_between(places, values.min(0), values.max(0), color=figures.colour(i), alpha=0.18, linewidth=0)
        axes.plot(places, values.mean(0), color=figures.colour(i), linewidth=2.2)
    names = [layer.name.removeprefix("block ") for layer in next(iter(arms.values()))[0].layers]
    shown = thin_out(names)
    axes.set_xticks(shown, [shorten(names[i], 8) for i in shown])
    names_above(axes, title, [(arm, figures.bold(i)) for i, arm in enumerate(arms)])
    axes.set_xlabel("block")
    if scale == "log":
        log_axis(axes, "y")
    if scale == "share":
        axes.set_ylim(0, 1)
    return figure


@figures.styled
def spectra(arm: str, own: Sequence[Analysis], index: int) -> Figure:
    """Singular values over the largest against the share of the width, a line per layer."""
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_axes((0.12, 0.17, 0.85, 0.7))
    layers = own[0].layers
    for i, layer in enumerate(layers):
        s = np.asarray(layer.singular_values)
        share = np.maximum(s / max(s[0], 1e-30), 1e-5)
        last = i == len(layers) - 1
        style = {"linewidth": 2 if last else 1.4, "linestyle": "--" if last else "-"}
        depth = 0.25 + 0.75 * i / max(len(layers) - 1, 1)
        axes.plot(np.linspace(0, 1, len(s)), share, color=figures.colour(index), alpha=depth, **style)
    axes.set_xlabel("index / width")
    names_above(axes, "singular value / largest", [(arm, figures.bold(index))])
    log_axis(axes, "y")
    return figure


@figures.styled
def geometry(arm: str, own: Sequence[Analysis], index: int) -> Figure:
    """The cosines as a square of colours, written out for few classes."""
    matrix, names = np.asarray(own[0].cosines), [shorten(name, 12) for name in own[0].class_names]
    figure = Figure(figsize=(4.6, 4.9))
    axes = figure.add_axes((0.2, 0.16, 0.74, 0.76))
    cells = axes.pcolormesh(matrix[::-1], cmap="RdBu_r", vmin=-1, vmax=1, linewidth=0)
    few = len(names) <= 12
    if few:
        colours = cells.to_rgba(matrix)
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(j + 0.5, len(names) - i - 0.5, summary.number(value), ha="center", va="center", fontsize=7,
                      color=ink_on(colours[i, j]))  # fmt: skip
    ticks = np.arange(len(names)) + 0.5 if few else []
    narrow = 5 * max(map(len, names)) > 240 / len(names)  # points of a name, and of a cell
    axes.set_xticks(ticks, names if few else [], fontsize=8, rotation=90 if narrow else 0)
    axes.set_yticks(ticks, names[::-1] if few else [], fontsize=8)
    axes.set_aspect("equal")
    names_above(axes, "cosines between class means", [(arm, figures.bold(index))])
    return figure
