"""A finished experiment as one HTML page that needs no network: its table, its words and its pictures."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from train.files import whole_files
from train.reports import figures, layers_section, page
from train.reports.report import DRAWN, Report, headline, legend, load, rows
from train.reports.results import PRETRAINING


def write(run_dir: Path) -> Path:
    """The path of `report.html`, written into the run folder; a run that is not finished raises as in `load`."""
    report = load(run_dir)
    path = run_dir / "report.html"
    whole_files.write(path, _page(report))
    return path


def _page(report: Report) -> str:
    about = report.about
    strip, *pictures = _pictures(report)
    header, *body = rows(report)
    colours = ["soft", *(figures.arm_role(i) for i in range(len(report.arms)))]
    columns = zip(colours + colours[2:], header, strict=True)
    head = "".join(f'<th style="color:var(--{colour})">{escape(x)}</th>' for colour, x in columns)
    layers = layers_section.section(report.folder, report.arms, about["seeds"][0])
    stopped = "; ".join(report.results.unconverged)
    notes = [
        _what_was_trained(report),
        f"The probe stopped before it converged: {stopped}." if stopped else "",
        *about["notes"],
    ]
    facts = {"hardware": about["hardware"], "wall time": f"{about['wall_seconds']:.0f} s", "commit": about["commit"]}
    main = f"""<header><div><p class="soft">{escape(about["title"])}</p><h1>{escape(headline(report))}</h1>
{"".join(f"<p>{escape(note)}</p>" for note in notes if note)}</div>
{strip}</header>
{page.table_of(head, body)}
<p class="soft">{escape(legend(report))}</p>
{"".join(pictures)}{layers}
{"".join(f'<p class="soft">{escape(protocol)}</p>' for protocol in report.results.protocols)}
{page.footer(about["command"], facts | dict(about["versions"]), about["config"])}"""
    return page.page(about["title"], main)


def _what_was_trained(report: Report) -> str:
    """What was trained and what was probed, in a sentence."""
    trained, targets = report.about["label"], report.about["targets"]
    if not targets:
        return f"Trained on {trained}."
    labels = dict.fromkeys(own["label"] for own in targets.values())
    if [*labels] == [trained]:
        return f"Trained on {trained}; then frozen, and a linear probe learned the same from the features."
    named = ", ".join(labels)
    return f"Trained on {trained}; then frozen, and a linear probe learned {named} from the features."


def _pictures(report: Report) -> list[str]:
    """The page's figures: every seed's accuracies, then features, spectrum, strength and losses."""
    shown = [_strip(report, column) for column in (report.results.columns[1:] or [PRETRAINING])]
    name = report.target
    if name is not None:
        shown += _of_features(report, name)
    splits = [s for s in ("train", "validation") if all(s in own for runs in report.curves.values() for own in runs)]
    losses = [figures.losses({arm: [own[s] for own in runs] for arm, runs in report.curves.items()}, s) for s in splits]
    caption = "Thin lines: seeds; thick: their mean. Each panel has its own scale."
    return [*shown, figures.picture("loss", losses, "Loss against training step, one panel per split.", caption)]


def _strip(report: Report, column: str) -> str:
    what = report.column_text(column)
    shares = {
        arm: [value / 100 for value in own[column].values.values()] for arm, own in report.results.accuracy.items()
    }
    first = column == report.target or column == PRETRAINING
    return figures.picture(
        "strip" if first else f"strip-{report.results.columns.index(column)}",
        [figures.strip(shares, what)],
        f"{what[0].upper()}{what[1:]} of every seed: {_listing(shares, '.2%')}.",
        "Every point is a seed; a thin line joins a seed's runs, which share a split. Bars are means.",
    )


def _of_features(report: Report, name: str) -> list[str]:
    """The first target's features in the plane, their spectrum, and how the probe's strength was chosen."""
    target, seed = report.about["targets"][name], report.about["seeds"][0]
    of = {arm: [{w: own[f"{name}/{w}"] for w in DRAWN} for own in runs] for arm, runs in report.arrays.items()}
    ranks = {arm: own[name].mean for arm, own in report.results.effective_rank.items()}
    planes = [
        figures.scatter(own["points"], own["shares"], own["labels"], target["class_names"], arm, i)
        for i, (arm, (own, *_)) in enumerate(of.items())
    ]
    shown = [
        figures.picture(
            "plane",
            planes,
            f"Test features projected to two dimensions, coloured by {target['label']}, one panel per arm.",
            f"Test features of seed {seed}, coloured by {target['label']}: each arm's own first two principal "
            f"components, in one unit on both axes. Only two of {len(of[report.arms[0]][0]['singular_values'])} "
            "directions show: classes that overlap here may lie apart for the probe, which sees them all.",
        ),
        figures.picture(
            "spectrum",
            [figures.spectra({arm: [own["singular_values"] for own in runs] for arm, runs in of.items()}, ranks)],
            f"Singular values. Effective rank: {_listing({arm: [x] for arm, x in ranks.items()}, '.1f')}.",
            "Spectrum of the training features. Line: mean over seeds; band: lowest to highest. Dot: effective "
            "rank, the number of directions of a flat spectrum with the same entropy.",
        ),
    ]
    if all(f"{name}/l2" in own for runs in report.arrays.values() for own in runs):
        sweeps = {
            arm: [(own[f"{name}/l2"], own[f"{name}/validation_accuracy"]) for own in runs]
            for arm, runs in report.arrays.items()
        }
        chosen = {arm: list(own[name].values()) for arm, own in report.results.l2.items()}
        shown.append(
            figures.picture(
                "strength",
                [figures.strengths(sweeps, chosen)],
                f"Validation accuracy of the probe against its strength. Chosen: {_listing(chosen, '.2g')}.",
                f"Line and band: as in the spectrum. Dots: each seed's choice. Cut {figures.SHOWN} points below the "
                "best.",
            )
        )
    return shown


def _listing(values: Mapping[str, Sequence[float]], form: str) -> str:
    return "; ".join(f"{arm} " + ", ".join(format(x, form) for x in own) for arm, own in values.items())
