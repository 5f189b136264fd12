"""Every public name says what it takes and returns, and its examples run: `help(vc.VCReg)` is enough to use it."""

import doctest
import inspect
import re

import pytest
from flax import nnx

import vcreg_jax as vc

MODULES = {
    "vc.losses": vc.losses,
    "vc.metrics": vc.metrics,
    "vc.mine": vc.mine,
    "vc.models": vc.models,
    "vc.torch_weights": vc.torch_weights,
    "vc.linen": vc.linen,
    "vc.probes.linear": vc.probes.linear,
    "vc.probes.quick": vc.probes.quick,
}


def _public():
    """The package's names, and those of its modules, by the name that a user writes."""
    found = {f"vc.{name}": getattr(vc, name) for name in vc.__all__}
    for path, module in MODULES.items():
        own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        names = [name for name in getattr(module, "__all__", own) if not name.startswith("_")]
        found |= {f"{path}.{name}": getattr(module, name) for name in names}
    return {name: thing for name, thing in found.items() if callable(thing) and hasattr(thing, "__qualname__")}


PUBLIC = _public()


def missing(thing) -> list[str]:
    """What the signature has and neither the docstring nor a field's comment names."""
    text = inspect.getdoc(thing) or ""
    named = {
        name for part in ("Args", "Attributes") for name in re.findall(r"^  \*{0,2}(\w+): ", _section(text, part), re.M)
    }
    if isinstance(thing, type):
        named |= set(re.findall(r"^    (\w+): .*  # \w", inspect.getsource(thing), re.MULTILINE))
    if getattr(thing, "_is_protocol", False):
        return []
    called = thing.__init__ if isinstance(thing, type) and issubclass(thing, nnx.Module) else thing
    lacking = [name for name in inspect.signature(called).parameters if name not in {*named, "self"}]
    if not isinstance(thing, type) and inspect.signature(thing).return_annotation not in (None, "None"):
        lacking += [] if _section(text, "Returns") else ["Returns"]
    return lacking


def _section(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?:  .*\n?|\n)+)", text, re.MULTILINE)
    return found[1] if found else ""


def test_the_names_are_found():
    assert {"vc.VCReg", "vc.attach", "vc.losses.NTXent", "vc.mine.estimate", "vc.probes.quick.knn"} <= PUBLIC.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_and_result_is_described(name):
    assert missing(PUBLIC[name]) == []


def test_what_is_not_described_is_found():
    def wrong(first: int, second: int = 0) -> int:
        """Add.

        Args:
          first: of two.
        """
        return first + second

    assert missing(wrong) == ["second", "Returns"]


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if ">>>" in (thing.__doc__ or "")])
def test_every_example_gives_what_it_shows(name):
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(PUBLIC[name]), {}, name, None, 0)
    said = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize(
    "name", ["VCReg", "DeCov", "WLDReg", "Sites", "attach", "detach", "explicit", "masked", "on_axis"]
)
def test_names_that_a_newcomer_meets_first_have_an_example(name):
    assert ">>> import vcreg_jax as vc" in inspect.getdoc(getattr(vc, name))
