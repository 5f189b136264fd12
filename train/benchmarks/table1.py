"""`python -m train bench table1`: the paper's Table 1 measured here, beside the paper's numbers and PyTorch's.

Every network in every precision is measured by each library in a process of its own, one after another: so JAX and
PyTorch never share the device, each has its memory from empty, and what one keeps is gone when the next begins. Within
a process all columns take turns. The ratios to be trusted are therefore those within a library; images per second of
two libraries stand side by side from one run, minutes apart.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from train.benchmarks import programs, step_jax
from train.benchmarks.programs import PHASES, Settings
from train.benchmarks.timing import NEVER, Deadline, Row, Spread, in_own_process, ratio
from train.files import whole_files
from train.reports import figures
from train.run.provenance import commit, hardware

# Table 1: forward and backward, batch 128, one A100; seconds over those of the identity, as the paper prints them.
PAPER = {
    ("vit_b_32", "VCReg"): 1.099,
    ("vit_b_32", "naive"): 6.4,
    ("vit_b_32", "BatchNorm"): 1.108,
    ("convnext_tiny", "VCReg"): 1.066,
    ("convnext_tiny", "naive"): 6.7,
    ("convnext_tiny", "BatchNorm"): 1.059,
}
HEADINGS = ("library", "network", "dtype", "phase", "column", "ms (quartiles)", "images/s", "over identity (quartiles)")
HEADINGS += ("of the fastest", "n", "paper", "peak MiB")
VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")


def device_facts(platform: str | None) -> dict[str, str]:
    """The platform that JAX chooses, or is told, and the machine's description."""
    device = programs.one_device_mesh(platform).devices.item()
    return {"platform": device.platform, "device_kind": device.device_kind, "hardware": hardware()}


def run(
    settings: Settings, facts: dict[str, str], torch: bool, json_path: Path, command: str, end: Deadline = NEVER
) -> dict[str, Any]:
    """Measures, prints the table, and writes it after every network: JSON, and a picture beside it.

    Of the time until `end` each measurement may take its equal part of what the ones before have left.

    Raises:
      ValueError: before any work, when PyTorch is asked for and missing, or has no such device.
    """
    measures = [step_jax.measure]
    if torch:
        if settings.platform == "tpu" or not (util.find_spec("torch") and util.find_spec("torchvision")):
            raise ValueError("--torch needs a CPU or GPU and pip install -e '.[torch]'.")
        from train.benchmarks import step_torch

        measures.append(step_torch.measure)
    rows: list[Row] = []
    result: dict[str, Any] = {}
    left = len(settings.models) * len(settings.dtypes) * len(measures)
    for model in settings.models:
        for dtype in settings.dtypes:
            for measure in measures:
                rows += in_own_process(measure, settings, model, dtype, end.part(1 / left))
                left -= 1
            result = describe(settings, facts, rows, command)
            whole_files.write(json_path, json.dumps(result, indent=1) + "\n")
            with whole_files.replace(json_path.with_suffix(".svg")) as partial:
                picture(result["rows"]).savefig(partial, format="svg", facecolor="white", metadata={"Date": None})
    print(f"\n{markdown(result['rows'])}\n\n{json_path} and {json_path.with_suffix('.svg')}")
    return result


def describe(settings: Settings, facts: dict[str, str], rows: Sequence[Row], command: str) -> dict[str, Any]:
    """What is written: the rows with their statistics, and where they come from."""
    installed = [name for name in VERSIONS if util.find_spec(name)]
    measured = {name: getattr(settings, name) for name in ("batch_size", "image_size", "num_classes", "rounds")}
    return {
        "command": command,
        "commit": commit(),
        **facts,
        "versions": {name: metadata.version(name) for name in installed},
        **measured,
        "columns": {name: _write(regularizer) for name, regularizer in settings.columns.items()},
        "rows": summary(rows, settings.batch_size),
    }


def _write(regularizer: Any) -> str:
    return repr(regularizer) if is_dataclass(regularizer) else regularizer.__name__


def summary(rows: Iterable[Row], batch_size: int) -> list[dict[str, Any]]:
    """Each row with the statistics of its seconds, and those of its ratio to the identity of the same rounds."""
    rows = list(rows)
    baselines = {_group(row): row.seconds for row in rows if row.column == "identity"}
    described = []
    for row in rows:
        values: dict[str, Any] = asdict(row)
        if row.seconds:
            time = Spread.of(row.seconds)
            values |= {"time": asdict(time), "images_per_second": batch_size / time.median}
            if baseline := baselines.get(_group(row)):
                values["over_identity"] = asdict(ratio(row.seconds, baseline))
                values["fastest_over_identity"] = min(row.seconds) / min(baseline)
        if row.phase == PHASES[0]:
            values["paper_over_identity"] = PAPER.get((row.model, row.column))
        described.append(values)
    return described


def rows_of(result: dict[str, Any]) -> list[Row]:
    """The rows that `describe` has written."""
    names = [field.name for field in fields(Row)]
    written = [{name: row[name] for name in names if name in row} for row in result.get("rows", [])]
    return [replace(Row(**row), seconds=tuple(row["seconds"])) for row in written]


def _group(row: Row) -> tuple[str, ...]:
    return row.library, row.model, row.dtype, row.phase


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, aligned, as Markdown."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(row[name] for name in ("library", "model", "dtype", "phase", "column"))
    paper = f"{row['paper_over_identity']:g}" if row.get("paper_over_identity") else ""
    if not row["seconds"]:
        return (*names, f"not run: {row['not_run']}"[:60], "", "", "", "0", paper, "")
    time, over = row["time"], row.get("over_identity")
    ms = f"{1e3 * time['median']:.4g} ({1e3 * time['low']:.4g} to {1e3 * time['high']:.4g})"
    ratios = f"{over['median']:.3f} ({over['low']:.3f} to {over['high']:.3f})" if over else ""
    fastest = f"{row['fastest_over_identity']:.3f}" if over else ""
    memory = f"{row['memory'] / 2**20:.0f}" if row["memory"] else ""
    return (*names, ms, f"{row['images_per_second']:.4g}", ratios, fastest, str(time["n"]), paper, memory)


@figures.styled
def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Time over the identity's: a panel per network, a line per library, precision and column; the paper's as rings."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = [row for row in rows if row["column"] != "identity" and row.get("over_identity")]
    lines = list(dict.fromkeys(_line(row) for row in shown))
    soft = matplotlib.rcParams["axes.labelcolor"]
    figure = Figure(figsize=(2.2 + 3.0 * len(models), 1.2 + 0.32 * max(len(lines), 1)))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for model, axes in zip(models, panels, strict=True):
        axes.axvline(1.0, color=soft, linewidth=0.8)
        for row in (row for row in shown if row["model"] == model):
            phase, over = PHASES.index(row["phase"]), row["over_identity"]
            y = lines.index(_line(row)) + 0.2 * (phase - 0.5)
            colour = figures.colour(phase)
            axes.plot([over["low"], over["high"]], [y, y], color=colour, linewidth=2, alpha=0.5)
            axes.plot(over["median"], y, "o", color=colour, markersize=5)
            if row["library"] == "JAX" and row.get("paper_over_identity"):
                axes.plot(row["paper_over_identity"], y, "o", color=soft, fillstyle="none", markersize=7)
        axes.set(title=model, xlabel="time over identity's", xscale="log", ylim=(len(lines) - 0.5, -0.5))
        _label_ratios(axes)
        axes.set_yticks(range(len(lines)), lines)
    for phase, name in enumerate(PHASES):
        figure.text(0.01 + 0.3 * phase, 0.01, f"● {name}", color=figures.colour(phase), fontsize=9, fontweight="bold")
    figure.text(0.61, 0.01, "○ the paper's, on an A100", color=soft, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def _line(row: dict[str, Any]) -> str:
    return f"{row['library']}, {row['dtype']}, {row['column']}"


def _label_ratios(axes: Any) -> None:
    """Few round numbers under a logarithmic axis."""
    low, high = axes.get_xlim()
    step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if (high - low) / step <= 8 or step == 10)
    first = math.ceil(low / step)
    ticks = [round(step * i, 2) for i in range(first, math.floor(high / step) + 1)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
