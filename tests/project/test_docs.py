"""Every block of code in the README and the documentation runs, page by page; every command is one that there is."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from train import command_line, config_file
from train.commands import COMMANDS, GROUPS
from train.config import ModelConfig
from train.files import json_files

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The code in a page's blocks, with the number of the line before."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in BLOCK.finditer(text) if match[1] == language]
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in found]


def with_blocks(language: str):
    pages = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def _random_weights(url, **_):
    """In the place of a download: what is at that address has these names and shapes."""
    import torchvision

    assert "resnet18" in url
    return torchvision.models.resnet18().state_dict()


@with_blocks("python")
def test_every_block_runs_after_those_before_it(page, monkeypatch):
    import torch

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _random_weights)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _random_weights)
    names = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        # As many empty lines before it as the page has: a traceback names the page's own line.
        smaller = code.replace("resnet50", "resnet18").replace("ResNet50", "ResNet18")  # of the same kind, for time
        exec(compile("\n" * line + smaller, str(page), "exec"), names)


@with_blocks("sh")
def test_every_command_is_one_that_there_is(page):
    for _, script in blocks(page, "sh"):
        for words in (shlex.split(line, comments=True) for line in script.replace("\\\n", " ").splitlines()):
            text = " ".join(words)
            if "python -m train" in text:
                command, *rest = shlex.split(text.split(" -m train ")[1])
                known = COMMANDS
                if command in GROUPS:
                    known, (command, *rest) = GROUPS[command][1](), rest
                if not {"--help", "--fields"} & {*rest}:  # these two end the process
                    given, overrides = command_line.parse_known(known[command], rest, command)
                    if hasattr(given, "config"):
                        config = config_file.load(config_file.find(given.config), getattr(given, "point", None))
                        command_line.override(config, overrides, command)
            elif words and words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), text


def test_the_readmes_blocks_run_as_they_stand_and_it_is_short():
    text, names = (ROOT / "README.md").read_text(encoding="utf-8"), {}
    for _, code in blocks(ROOT / "README.md", "python"):
        exec(code, names)
    assert names["logits"].shape == (2, 1000) and names["features"].shape == (2, 512)
    assert len(text.split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_installed_under_a_name_that_no_registry_knows(page):
    assert re.findall(r"pip install [^#\n]*vcreg[-_]jax", page.read_text(encoding="utf-8")) == []


def test_every_page_is_in_the_menu_and_every_experiment_on_its_page():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not re.search(rf"^ +- {re.escape(page)}$", menu, re.MULTILINE)] == []
    tables = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    experiments = [path.name for path in (ROOT / "configs").glob("*.py") if "def get_config" in path.read_text()]
    assert experiments and [name for name in experiments if f'--8<-- "configs/{name}"' not in tables] == []


def sentences(text: str) -> list[str]:
    """Of running text, without code, tables and headings; an entry of a list ends a sentence, and code is one word."""
    text = re.sub(r"^( *)```.*?^\1```", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    lines = ["" if line.lstrip().startswith(("|", "#", "!", "???", ":::")) else line for line in text.splitlines()]
    plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "Code", "\n".join(lines)))
    paragraphs = re.split(r"\n\s*\n|\n *(?:[-*]|\d+\.) ", plain)
    return [one for own in paragraphs for one in re.split(r"(?<=[.!?])\W*\s+(?=\W*[A-Z0-9])", " ".join(own.split()))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page):
    found = sentences(page.read_text(encoding="utf-8"))
    assert [one for one in found if len(re.findall(r"\S*\w\S*", one)) > 30] == []


def _links(page: Path) -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_what_the_first_pages_link_to_is_there(page):
    assert [link for link in _links(page) if not (page.parent / link).exists()] == []


def _example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.optimized
def test_the_fine_grained_example_probes_well_above_chance():
    assert all(accuracy > 60 for accuracy in _example("fine_grained").main().values())


def test_the_image_folder_example_ends_with_a_table(tmp_path, monkeypatch, smallest):
    example = _example("image_folder")
    monkeypatch.setattr(example, "ModelConfig", lambda _: ModelConfig(smallest))
    table = example.main(tmp_path)
    assert "| probe accuracy (%)" in table and "VCReg" in table
    assert (tmp_path / "runs" / "shapes" / "report.html").stat().st_size > 10_000


@pytest.mark.optimized
def test_the_moving_digits_collapse_without_a_regularizer_and_not_with_one(monkeypatch):
    example = _example("moving_digits")
    monkeypatch.setattr(example, "STEPS", 400)  # half of them, for time
    found = example.main()
    none, *regularized = found.values()
    assert none["spread"] < 0.01 and none["position, R^2"] < 0.2
    assert all(arm["spread"] > 0.5 and arm["position, R^2"] > 0.7 for arm in regularized)


def test_published_results_are_what_was_written(capsys):
    published = sorted((ROOT / "docs" / "results").glob("*.json"))
    for path in published:
        json_files.read(path)  # raises for a hash that is of other numbers; older files have none
    assert capsys.readouterr().err.count("has no hash") < len(published)
