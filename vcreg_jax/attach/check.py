"""Does every regularizer of a model reach its parameters? `vc.check`, once and before training."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from vcreg_jax.attach.nnx import placement_of, put_placement
from vcreg_jax.attach.placement import Placement
from vcreg_jax.regularizers.add_gradient import Penalty, Regularizer

_ROUNDING = 1e-5  # a bias gets the sum of a gradient's rows, which is 0 but for rounding


class Reach(NamedTuple):
    """What one regularizer does in one backward pass.

    Attributes:
      arrays: how many arrays of parameters receive something of its gradient.
      norm: of all that they receive.
      verdict: in words, one of those that `check` lists.
    """

    arrays: int
    norm: float
    verdict: str


def check(
    model: nnx.Module, *args: Any, loss: Callable[[Any], Float[Array, ""]] | None = None, **kwargs: Any
) -> dict[str, Reach]:
    """Say of every regularizer of `model` whether its gradient reaches the parameters, by two backward passes each.

    Regularizers are those of `vc.attach`, and those that a module holds as an attribute, as this package's models do;
    one that a call makes by itself is not seen. They are named by the module's path, and the attribute's name. `model`
    itself stays as it is; a copy is called. A verdict is one of

        reaches the parameters
        not called: the model's call does not come by it
        cut off: the loss does not use its output, a stop_gradient stands before or behind, or no parameter comes before
        adds nothing: fewer than two samples, weights of 0, or features that need no change

    Args:
      model: any NNX model, in the mode in which it is trained.
      args: a batch, as the model takes it, and what else it is called with.
      loss: a scalar of what the model returns, by default the sum of that, or of a tuple's first element, the logits.
      kwargs: as `args`.

    Returns:
      A `Reach` by the name of each regularizer; empty for a model without one.

    Examples:
      >>> import jax
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 3, rngs=nnx.Rngs(1)))
      >>> _ = vc.attach(model, vc.VCReg(), where="layers/0")
      >>> x = jax.random.normal(jax.random.key(0), (4, 8))
      >>> {path: found.verdict for path, found in vc.check(model, x).items()}
      {'layers/0': 'reaches the parameters'}
    """
    sites, called = _sites(model), set()
    if not sites:
        return {}
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def norms(params: Any, rest: Any, weights: Float[Array, "sites 2"]) -> Float[Array, " arrays"]:
        def no_loss(params: Any) -> Array:
            copy = nnx.merge(graphdef, params, rest, copy=True)
            modules = dict(nnx.iter_modules(copy))
            for site, pair in zip(sites, weights, strict=True):
                _put_probe(modules[site[0]], site, sites[site], pair, called)
            output = copy(*args, **kwargs)  # pyright: ignore[reportCallIssue]
            return 0.0 * (_sum_of_first(output) if loss is None else loss(output))

        gradient = jax.grad(no_loss)(params)
        return jnp.stack([jnp.linalg.norm(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(gradient)])

    each = jnp.eye(2 * len(sites)).reshape(-1, len(sites), 2)
    in_turn = jax.jit(lambda params, rest: jax.lax.map(lambda weights: norms(params, rest, weights), each))
    found = jax.device_get(in_turn(params, rest)).reshape(len(sites), 2, -1)
    return {
        "/".join(map(str, (*path, *name))): Reach(
            int((own > _ROUNDING * own.max()).sum()),
            float((own**2).sum() ** 0.5),
            _verdict((path, name) in called, bool(own.any()), bool(noise.any())),
        )
        for (path, name), (own, noise) in zip(sites, found, strict=True)
    }


def _verdict(called: bool, own: bool, noise: bool) -> str:
    if not called:
        return "not called: the model's call does not come by it"
    if own:
        return "reaches the parameters"
    if noise:
        return "adds nothing: fewer than two samples, weights of 0, or features that need no change"
    return (
        "cut off: the loss does not use its output, a stop_gradient stands before or behind, or no parameter comes "
        "before"
    )


_Site = tuple[tuple[Any, ...], tuple[str, ...]]  # a module's path, and the attribute's name unless it is attached


def _sites(model: nnx.Module) -> dict[_Site, Regularizer]:
    sites: dict[_Site, Regularizer] = {}
    for path, module in nnx.iter_modules(model):
        if (placement := placement_of(module)) is not None:
            sites[path, ()] = placement.reg
        for name, value in vars(module).items():
            if isinstance(value, Penalty) and not isinstance(value, nnx.Module):
                sites[path, (name,)] = value
    return sites


def _put_probe(module: Any, site: _Site, reg: Regularizer, pair: Array, called: set[_Site]) -> None:
    """Has the module add pair[0] times what `reg` adds, and pair[1] times noise."""

    def probe(reg: Regularizer) -> Regularizer:
        def apply(h: Array) -> Array:
            called.add(site)
            return _probe(reg if isinstance(reg, Penalty) else jax.tree_util.Partial(reg), pair, h)

        return apply

    if site[1]:
        setattr(module, site[1][0], probe(reg))
    else:
        placement = placement_of(module)
        values = {field.name: getattr(placement, field.name) for field in fields(Placement)}
        put_placement(module, _Probed(**values, probe=probe))


class _Probed(Placement):
    """A placement whose regularizer, mask and all, is probed."""

    def __init__(self, probe: Callable[[Regularizer], Regularizer], **values: Any):
        super().__init__(**values)
        object.__setattr__(self, "_probe", probe)

    def regularizer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Regularizer:
        return self._probe(super().regularizer(args, kwargs))  # pyright: ignore[reportAttributeAccessIssue]


@jax.custom_vjp
def _probe(reg: Any, pair: Array, h: Array) -> Array:
    del reg, pair
    return h


def _probe_backward(residuals: Any, incoming: Array) -> tuple[None, None, Array]:
    reg, pair, h = residuals
    own = jax.vjp(reg, h)[1](jnp.zeros_like(h))[0].astype(pair.dtype)
    noise = jax.random.normal(jax.random.key(0), h.shape)
    return None, None, (incoming + pair[0] * own + pair[1] * noise).astype(h.dtype)


_probe.defvjp(lambda reg, pair, h: (h, (reg, pair, h)), _probe_backward)


def _sum_of_first(output: Any) -> Array:
    first = output[0] if isinstance(output, tuple) else output
    return sum((leaf.sum() for leaf in jax.tree.leaves(first)), start=jnp.zeros(()))
