"""What the stages of `bench gpu` do: each takes its settings and what was kept, and saves after every part."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from train.benchmarks import dispatch, gradient_float64, roofline, step_jax, table1
from train.benchmarks.programs import Settings
from train.benchmarks.timing import LATE, Deadline, Row

__all__ = ["LIBRARIES", "dispatches", "gradient_float64", "jax_table", "rooflines", "table_text", "torch_table"]

Result = dict[str, Any]
Save = Callable[[Result], None]
LIBRARIES = ("PyTorch eager", "PyTorch compiled")  # as in `benchmark_torch`, which not every machine can import


def jax_table(settings: Settings, found: Result, save: Save, end: Deadline) -> None:
    """The columns of one network in JAX, written after each phase."""
    measured = partial(step_jax.measure_phases, settings, settings.models[0], settings.dtypes[0])
    _table(settings, found, save, lambda phases: measured(phases, end))


def torch_table(library: str, settings: Settings, found: Result, save: Save, end: Deadline) -> None:
    """The columns of one network in PyTorch, eager or compiled, written after each phase."""
    from train.benchmarks import step_torch

    measured = partial(step_torch.measure_phases, settings, settings.models[0], settings.dtypes[0], (library,))
    _table(settings, found, save, lambda phases: measured(phases, end))


def _table(
    settings: Settings, found: Result, save: Save, measured: Callable[[Sequence[str]], Iterator[list[Row]]]
) -> None:
    """A phase that lacks a column is timed anew with all of them, since a ratio holds within its rounds alone."""
    rows = {phase: [row for row in table1.rows_of(found) if row.phase == phase] for phase in settings.phases}
    for new in measured([phase for phase in settings.phases if not _whole(rows[phase])]):
        phase = new[0].phase
        rows[phase] = max(new, rows[phase], key=lambda some: sum(bool(row.seconds) for row in some))
        everything = [row for phase in settings.phases for row in rows[phase]]
        complete = all(_whole(own) for own in rows.values())
        save(table1.describe(settings, {}, everything, "") | {"complete": complete})


def _whole(rows: Sequence[Row]) -> bool:
    return bool(rows) and not any(row.not_run == LATE for row in rows)


def table_text(found: Result) -> str:
    """The table as Markdown."""
    return table1.markdown(found["rows"])


def rooflines(settings: Settings, found: Result, save: Save, end: Deadline) -> None:
    """Each network's roofline."""
    networks = {network["model"]: network for network in found.get("networks", [])}
    for model in settings.models:
        if model not in networks and end.left:
            networks[model] = roofline.measure(settings, model, settings.dtypes[0])
        complete = networks.keys() == set(settings.models)
        save({"batch_size": settings.batch_size, "networks": list(networks.values()), "complete": complete})


def rooflines_text(found: Result) -> str:
    """One table for each network."""
    return "\n".join(f"```\n{roofline.text(network).strip()}\n```" for network in found["networks"])


def dispatches(settings: Settings, _found: Result, save: Save, _end: Deadline) -> None:
    """Python's time for a call of the training step."""
    networks = {model: dispatch.measure(settings, model) for model in settings.models}
    save({"batch_size": settings.batch_size, "networks": networks, "complete": True})


def dispatches_text(found: Result) -> str:
    """One line for each time."""
    return "\n".join(
        f"- {model}, {what}: {1e3 * spread['median']:.2f} ms ({1e3 * spread['low']:.2f} to {1e3 * spread['high']:.2f})"
        for model, network in found["networks"].items()
        for what, spread in network["seconds"].items()
    )
