import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vcreg_jax.models.depthwise import depthwise_conv


@pytest.mark.parametrize(("height", "width", "kernel_size"), [(5, 4, 7), (8, 8, 3), (2, 9, 5)])
def test_depthwise_convolution_and_both_gradients_equal_torchs(x64, height, width, kernel_size):
    rng = np.random.default_rng(0)
    x, incoming = rng.normal(size=(2, 3, height, width, 6))
    kernel = rng.normal(size=(kernel_size, kernel_size, 1, 6))

    output, vjp = jax.vjp(depthwise_conv, jnp.asarray(x), jnp.asarray(kernel))
    x_gradient, kernel_gradient = vjp(jnp.asarray(incoming))

    torch_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch_kernel = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    expected = torch.nn.functional.conv2d(torch_x, torch_kernel, padding=kernel_size // 2, groups=6)
    expected.backward(torch.tensor(incoming.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(output, expected.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x_gradient, torch_x.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kernel_gradient, torch_kernel.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-12, atol=1e-12)


def test_the_form_for_other_backends_equals_torchs_too(x64):
    """The branch that no CPU takes, called by name."""
    from vcreg_jax.models.depthwise import _convolve_in_groups, _vjp_of_grouped_convolution

    rng = np.random.default_rng(1)
    x, incoming = rng.normal(size=(2, 2, 6, 5, 3))
    kernel = rng.normal(size=(7, 7, 1, 3))
    torch_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch_kernel = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    expected = torch.nn.functional.conv2d(torch_x, torch_kernel, padding=3, groups=3)
    expected.backward(torch.tensor(incoming.transpose(0, 3, 1, 2)))
    arguments = jnp.asarray(x), jnp.asarray(kernel)
    np.testing.assert_allclose(
        _convolve_in_groups(*arguments), expected.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12
    )
    gradients = _vjp_of_grouped_convolution(*arguments, jnp.asarray(incoming))
    np.testing.assert_allclose(gradients[0], torch_x.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradients[1], torch_kernel.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-12, atol=1e-12)
