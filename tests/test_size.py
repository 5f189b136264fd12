"""A file is one idea, a function fits on a screen."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("vcreg_jax", "train", "configs") for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE, LONGEST_BODY = 300, 50
MAY_BE_LONGER: dict[str, int] = {}  # function -> lines, with the reason


def _bodies(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            yield node.name, (node.end_lineno or 0) - first.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    assert path.read_text().count("\n") <= LONGEST_FILE
    too_long = {name: size for name, size in _bodies(path) if size > MAY_BE_LONGER.get(name, LONGEST_BODY)}
    assert not too_long
