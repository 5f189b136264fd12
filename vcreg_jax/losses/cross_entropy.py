"""Cross entropy: a value per example, of which the caller takes the mean."""

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int


def cross_entropy(
    logits: Float[Array, "*batch k"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch k"],
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    """Compute -sum_k t_k log softmax(logits)_k per example, with t = (1 - s) p + s / k.

    p is onehot(labels), or the labels themselves where they are distributions over the classes.

    Args:
      logits: `(*batch, k)`.
      labels: class indices `(*batch,)`, or distributions `(*batch, k)`.
      label_smoothing: s, in 0..1.

    Returns:
      A value per example, `(*batch,)`, in float32 or wider.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> loss = vc.losses.cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).mean()
      >>> round(float(loss), 4)  # log 4
      1.3863

    Reference:
      Torch's `CrossEntropyLoss(label_smoothing=s, reduction="none")`.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if jnp.issubdtype(labels.dtype, jnp.integer):
        at_label = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        at_label = optax.softmax_cross_entropy(logits, labels)
    if label_smoothing == 0.0:
        return at_label
    over_classes = optax.softmax_cross_entropy(logits, jnp.full_like(logits, 1.0 / logits.shape[-1]))
    return (1.0 - label_smoothing) * at_label + label_smoothing * over_classes
