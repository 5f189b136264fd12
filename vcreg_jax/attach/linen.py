"""Regularizers in any Flax Linen model, also one that was written without a thought of them: `vc.linen.intercept`."""

from collections.abc import Callable
from typing import Any, Literal

from flax import linen
from jax import Array

from vcreg_jax.attach.placement import Placement, Where, matches, nothing_matched
from vcreg_jax.regularizers.add_gradient import Regularizer


class intercept:  # noqa: N801 - reads as a function of a function, `intercept(model.apply, ...)`
    """Wrap `function` so that `reg` is applied to the output of every Linen module in it that `where` means.

    `apply = vc.linen.intercept(model.apply, reg, where=ResidualBlock)` takes the place of `model.apply` in the training
    step, in `TrainState.create(apply_fn=apply)` too. Parameters and their tree, state and `model` itself stay what they
    were. Put `jit` and `grad` outside: a function that is already compiled calls no modules. To undo it, use
    `model.apply`. Inside of `nn.remat` and `nn.scan` it is applied once to each call of the module that they transform.

    After the first call the attribute `paths` holds the paths of the modules it was applied to.

    Args:
      function: any function in which Linen modules are called: `model.apply`, a loss.
      reg: a regularizer; its weights may not be arrays.
      where: which modules: a class or several; a pattern of paths such as `"ResNetBlock_*"`, matched from the path's
        end as for files, or from its start if it begins with `/`; or a function of path and module.
      item: which array of an output that is a tuple, dict or other pytree: `0`, `"features"`, `"hidden/2"`. The carry
        of a scan's body is 0.
      at: `"input"` regularizes the module's first argument instead: the features, before a classifier `"head"`.
      mask: from the arguments of the module's call, which rows count: `mask=lambda x, mask: mask`. See `masked`.

    Raises:
      ValueError: when called, for a `where` that matched nothing, naming what is near; for an output that is no array,
        naming its arrays; where no module was called at all. At once for a `reg` that holds arrays.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> from flax import linen
      >>> model, x = linen.Dense(16), jnp.ones((4, 8))
      >>> variables = model.init(jax.random.key(0), x)
      >>> apply = vc.linen.intercept(model.apply, vc.VCReg(alpha=0.64, beta=0.08), where=linen.Dense)
      >>> apply(variables, x).shape
      (4, 16)
    """

    paths: tuple[str, ...] = ()  # of the modules it was applied to, known after the first call

    def __init__(
        self,
        function: Callable[..., Any],
        reg: Regularizer,
        *,
        where: Where,
        item: str | int | None = None,
        at: Literal["output", "input"] = "output",
        mask: Callable[..., Array] | None = None,
    ):
        self._function, self._where = function, where
        self._placement = Placement(reg, item, at, mask)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `function` returns."""
        seen: dict[str, Any] = {}
        done: list[str] = []
        running: list[str] = []

        def interceptor(next_method, args, kwargs, context):
            if context.method_name != "__call__":
                return next_method(*args, **kwargs)
            path, name = "/".join(context.module.path), type(context.module).__name__
            seen[path] = context.module
            # A module within itself is a call of its parent class's method: what counts is the whole module's output.
            if path in running or not matches(self._where, path, context.module):
                return next_method(*args, **kwargs)
            args = self._placement.on_input(name, args, kwargs)
            running.append(path)
            output = next_method(*args, **kwargs)
            running.pop()
            done.append(path)
            return self._placement.on_output(name, output, args, kwargs)

        with linen.intercept_methods(interceptor):
            result = self._function(*args, **kwargs)
        self.paths = tuple(dict.fromkeys((*self.paths, *done)))
        if not self.paths:
            raise nothing_matched(self._where, seen) if seen else _no_module_was_called()
        return result


def _no_module_was_called() -> ValueError:
    return ValueError(
        "intercept saw no Linen module in this function. If it is compiled already, put jit outside: "
        "jax.jit(vc.linen.intercept(model.apply, ...))."
    )
