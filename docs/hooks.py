"""What the pages say of the repository, taken from it when they are built."""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OPTIONAL_PAGES = ("pods.md",)


def on_config(config: Any) -> Any:
    """Pages that may be there join the others."""
    for page in OPTIONAL_PAGES:
        if (ROOT / "docs" / page).exists():
            config.nav.insert(5, page)
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The experiments' lab notes in the place of `<!-- lab notes -->`, a script in that of `<!-- examples/x.py -->`."""
    for script in sorted((ROOT / "docs" / "examples").glob("*.py")):
        code = script.read_text(encoding="utf-8")
        markdown = markdown.replace(f"<!-- examples/{script.name} -->", f"```python\n{code}```")
    return markdown.replace("<!-- lab notes -->", lab_notes()) if "<!-- lab notes -->" in markdown else markdown


def lab_notes() -> str:
    """Every config's own words, under its name."""
    notes = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            notes.append(f"## configs/{path.name}\n\n```text\n{ast.get_docstring(tree)}\n```\n")
    return "\n".join(notes)
