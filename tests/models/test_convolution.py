import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vcreg_jax.models.convolution import convolution


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"), [(8, 3, 1, 1), (8, 3, 2, 1), (7, 3, 2, 1), (8, 1, 2, 0), (9, 5, 3, 2)]
)
def test_a_convolution_and_its_gradients_equal_torchs(x64, one_torch_thread, size, kernel, stride, pad, in_loop):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=s)) for s in ((2, 3, size, size, 4), (2, kernel, kernel, 4, 5)))

    def value_and_gradients(x, weight):
        y, pull = jax.vjp(lambda x, weight: convolution(x, weight, stride, pad), x, weight)
        return y, *pull(jnp.cos(y))

    ours = jax.lax.map(lambda own: value_and_gradients(*own), (x, weight)) if in_loop else None
    for index in range(2):
        theirs = [torch.tensor(np.asarray(values[index]), requires_grad=True) for values in (x, weight)]
        y = torch.nn.functional.conv2d(theirs[0].permute(0, 3, 1, 2), theirs[1].permute(3, 2, 0, 1), None, stride, pad)
        y.backward(torch.cos(y.detach()))
        expected = y.detach().permute(0, 2, 3, 1), theirs[0].grad, theirs[1].grad
        own = value_and_gradients(x[index], weight[index]) if ours is None else [part[index] for part in ours]
        for mine, wanted in zip(own, expected, strict=True):
            np.testing.assert_allclose(mine, wanted.numpy(), atol=1e-12)
