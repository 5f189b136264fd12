"""The frame that every HTML page shares: one file that needs no network, light or dark as the reader's system is."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from train.reports import figures

_CSS = """
body{margin:0;background:var(--paper);color:var(--ink);font:1.05rem/1.6 Charter,"Iowan Old Style",Georgia,serif}
main{max-width:62rem;margin:auto;padding:clamp(1.5rem,6vw,5rem) clamp(1rem,4vw,2.5rem);gap:3.5rem 3rem}
main,header,figure>div{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr))}
header,figure>div{gap:1rem 3rem;align-items:center}
main>*{grid-column:1/-1;min-width:0}main>.spectrum,main>.strength{grid-column:auto}
h1{font-size:clamp(1.6rem,3.6vw,2.1rem);line-height:1.15;font-weight:600;margin:.3em 0 .6em;text-wrap:balance}
figure{margin:0}svg{display:block;width:100%;height:auto;overflow:visible}.soft,figcaption,dt{color:var(--soft)}
.soft,figcaption,table,dl,svg,summary{font-family:system-ui,sans-serif;font-size:.85rem}
figcaption{max-width:44rem;margin-top:.8rem}.words{white-space:normal;min-width:9rem}
.wide{overflow-x:auto;background:linear-gradient(270deg,var(--paper) 50%,transparent) 100%/2rem 100% no-repeat local,
linear-gradient(270deg,var(--rule),transparent) 100%/1rem 100% no-repeat}
table{border-collapse:separate;border-spacing:0;font-size:1rem;font-variant-numeric:tabular-nums;width:100%}
td,th{padding:.6rem 0 .6rem 1.5rem;text-align:right;white-space:nowrap}
tbody :is(td,th){border-top:1px solid var(--rule)}tbody tr:last-child :is(td,th){border-bottom:1px solid var(--rule)}
th:first-child{text-align:left;padding-left:0;font-weight:400}.wide+.soft{margin-top:-3rem}
dl{display:grid;grid-template-columns:fit-content(40%) 1fr;gap:0 1.5rem}dd{margin:0}pre{overflow-x:auto;font-size:.8rem}
h1,h2,p,dt,dd,figcaption{overflow-wrap:anywhere}section>*+*{margin-top:1.2rem}.strips{display:grid;gap:2rem}
.moons{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(9rem,44%),1fr));gap:1.5rem 1rem}
.moons figcaption{margin-top:.3rem}section>figure>div{max-width:36rem}
section table{font-size:.9rem}thead th{white-space:normal;vertical-align:bottom}
.strips{grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}section .wide+.soft{margin-top:1.2rem}
@media(max-width:40rem){td,th{padding:.5rem 0 .5rem .75rem}table{font-size:.9rem}
th:first-child{white-space:normal;min-width:6rem;position:sticky;left:0;background:var(--paper)}}
@media print{body{background:none}main{display:block;max-width:none;padding:0}main>*{margin-bottom:1.5rem}
.wide{overflow:visible;background:none}.wide+.soft{margin-top:0}header,figure>div{grid-template-columns:1fr 1fr}
header figure>div{grid-template-columns:1fr}
td,th{white-space:normal;padding:.3rem 0 .3rem .6rem}table{font-size:.75rem}pre{white-space:pre-wrap}
tr,figure,svg,.soft{break-inside:avoid}h1,h2{break-after:avoid}thead{display:table-header-group}}
"""


def page(title: str, main: str) -> str:
    """A whole page; `main` is HTML, `title` plain text."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{figures.CSS}{_CSS}</style></head><body><main>
{main}
</main></body></html>
"""


def of_tables(name: str, body: str) -> str:
    """A page of tables that a report has gathered under `name`."""
    title = f"{re.sub(r'^table', 'Table ', name).capitalize()}: what was run and what it gave"
    return page(title, f"<header><h1>{escape(title)}</h1></header>{body}")


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of plain text, the first column being the rows' names."""
    return table_of("".join(f"<th>{escape(cell)}</th>" for cell in header), body)


def table_of(head: str, body: Sequence[Sequence[str]]) -> str:
    """As `table`, under header cells that are HTML already."""
    lines = (f"<tr><th>{escape(x)}</th>{''.join(map(_cell, ys))}</tr>" for x, *ys in body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(text: str) -> str:
    """Numbers stay on one line; what is longer than any of them may wrap."""
    kind = ' class="words"' if len(text) > 24 else ""
    return f"<td{kind}>{escape(text)}</td>"


def not_run(command: str) -> str:
    """What stands in place of results, with the command that makes them."""
    return f"Not run. To run it: {command}"


def made_by(made: Mapping[str, Any], command: str) -> str:
    """How the numbers of a run were made, in a line; `made` is empty while it goes on, as `command` says."""
    if not made:
        return f"The run is not finished. To go on: {command}"
    seconds = f"{made['wall_seconds']:.0f} s"
    return f"{made['hardware']}, commit {made['commit']}, {seconds} in the last call: {made['command']}"


def footer(command: str, facts: Mapping[str, Any], config: Any) -> str:
    """How the page's numbers were made."""
    return f"""<footer><h2>How this was made</h2><pre>{escape(command)}</pre>
<dl>{"".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())}</dl>
<details><summary>Configuration</summary><pre>{escape(json.dumps(config, indent=2))}</pre></details></footer>"""
