"""Where a model of this package applies which regularizer: `Sites`."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from vcreg_jax.regularizers.add_gradient import Regularizer, identity, refuse_class
from vcreg_jax.regularizers.mean_removal import RemoveMean


@dataclass(frozen=True)
class Sites:
    """Say where a model of this package applies which regularizer.

    Appendix A's four placements are 1. `Sites(features=reg)`, 2. `Sites(block=reg)`, 3. `Sites(downsample=reg)`,
    4. `Sites(block=reg, downsample=reg)`. The paper settles on the second.

    Args:
      block: the output of every residual block, after its addition, `(batch, height, width, d)`; in a ViT
        `(batch, tokens, d)`.
      downsample: the output of every downsampling layer between stages, `(batch, height, width, d)`.
      features: the input of the classifier, `(batch, d)`.

    `RemoveMean(reg)` at a site takes the batch's mean off the features first, as the paper's Appendix A does.

    Raises:
      ValueError: for the class of a regularizer in place of one with its weights.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> sites = vc.Sites(block=vc.VCReg(alpha=0.64, beta=0.08))
      >>> model = vc.models.create("resnet20", num_classes=10, sites=sites, rngs=nnx.Rngs(0))

    Reference:
      The VCReg paper (arXiv 2306.13292), Appendix A and Table 7.
    """

    block: Regularizer = identity
    downsample: Regularizer = identity
    features: Regularizer = identity

    def __post_init__(self) -> None:
        for reg in (self.block, self.downsample, self.features):
            refuse_class(reg)

    def map(self, function: Callable[[str, Regularizer], Regularizer]) -> "Sites":
        """Return the same sites with `function(name, reg)` in place of each regularizer; means stay removed.

        Args:
          function: takes the site's name, such as `"block"`, and its regularizer, `identity` where there is none.

        Returns:
          The new sites.

        Examples:
          >>> import vcreg_jax as vc
          >>> vc.Sites(block=vc.RemoveMean(vc.VCReg())).map(lambda name, reg: vc.identity).block.reg is vc.identity
          True
        """

        changed = {name: function(name, reg) for name, reg in self.regularizers.items()}
        removed = (name for name in changed if isinstance(getattr(self, name), RemoveMean))
        return Sites(**changed | {name: RemoveMean(changed[name]) for name in removed})

    @property
    def regularizers(self) -> dict[str, Regularizer]:
        """By the site's name, what is applied there; of `RemoveMean(reg)` it is `reg`."""
        own = {site.name: getattr(self, site.name) for site in fields(self)}
        return {name: reg.reg if isinstance(reg, RemoveMean) else reg for name, reg in own.items()}
