"""`python -m train doctor`: a check-up as JSON and as one page with three sentences, a picture and a table."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import vcreg_jax as vc
from train.reports import figures, page
from train.reports.analysis_page import through_depth
from train.run.folder import provenance, write_json

HEADER = ("block", "width", "probe", "effective rank", "between classes", "CDNV", "NC1", "dead", "duplicated")
_CAPTION = (
    "From the first block to the features. Probe: ridge regression, on images that it was not fitted on. The rank is "
    "that of means over positions, over the width. Between classes: the variance's share between the classes' means."
)
_LEGEND = (
    "Of every block's output, means over positions. CDNV and NC1 (neural collapse) are 0 where every class is one "
    "point. Dead: features that do not vary; duplicated: living ones that repeat another."
)


def write(found: vc.Checkup, about: Mapping[str, Any], folder: Path, command: str, seconds: float) -> str:
    """Writes `checkup.json` and `checkup.html` into the folder; returns the sentences and where the page is."""
    folder.mkdir(parents=True, exist_ok=True)
    made = provenance(None, command, seconds) | {"config": dict(about)}
    blocks = [block._asdict() for block in found.blocks]
    write_json(folder / "checkup.json", {"blocks": blocks, "sentences": list(found.sentences), **made})
    (folder / "checkup.html").write_text(text(found, made), encoding="utf-8")
    return "\n".join([*found.sentences, "", f"Check-up: {folder / 'checkup.html'}"])


def text(found: vc.Checkup, made: Mapping[str, Any]) -> str:
    """The page."""
    about = made["config"]
    title = f"Check-up of {about['model']} on {about['data']}"
    one: Any = {about["model"]: [SimpleNamespace(layers=found.blocks)]}
    panels = [
        through_depth(one, "probe accuracy", lambda block: block.probe_accuracy),
        through_depth(one, "effective rank / width", lambda block: block.effective_rank / block.width, "share"),
        through_depth(one, "variance between classes", lambda block: block.between_classes, "share"),
        through_depth(one, "NC1: spread within classes (log)", lambda block: block.nc1, "log"),
    ]
    picture = figures.picture(
        "depth", panels, "Probe, rank, variance between classes and NC1 at every block.", _CAPTION
    )
    facts = {"hardware": made["hardware"], "commit": made["commit"], **made["versions"]}
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in found.sentences)
    looked_at = (
        f"{about['images']:,} images of the split {about['split']}, label {about['label']} ({about['classes']} classes)"
    )
    main = f"""<section><h1>{escape(title)}</h1>{sentences}</section>
{picture}
{page.table(HEADER, [_row(block) for block in found.blocks])}
<p class="soft">{escape(_LEGEND)} {escape(looked_at)}.</p>
{page.footer(made["command"], facts, about)}"""
    return page.page(title, main)


def _row(block: Any) -> list[str]:
    return [
        block.name,
        str(block.width),
        f"{block.probe_accuracy:.1%}",
        f"{block.effective_rank:.1f}",
        f"{block.between_classes:.0%}",
        f"{block.cdnv:.2f}",
        f"{block.nc1:.2f}",
        f"{block.dead:.0%}",
        f"{block.duplicated:.0%}",
    ]
