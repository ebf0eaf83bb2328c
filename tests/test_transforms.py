from __future__ import annotations

import pytest
import torch
from compressai import layers

from codec import transforms


@pytest.mark.parametrize("inverse", [False, True])
def test_inference_gdn_equals_the_training_layer(inverse: bool) -> None:
    torch.manual_seed(0)
    trained = layers.GDN(24, inverse=inverse)
    with torch.no_grad():
        trained.beta.add_(torch.rand(24))
        trained.gamma.add_(0.1 * torch.rand(24, 24))
    plain = transforms.GDN(24, inverse=inverse)
    plain.beta.copy_(trained.beta_reparam(trained.beta))
    plain.gamma.copy_(trained.gamma_reparam(trained.gamma)[:, :, None, None])
    y = 5 * torch.randn(2, 24, 9, 7)
    torch.testing.assert_close(plain(y), trained(y), rtol=1e-6, atol=1e-6)


def test_gdn_is_the_equation_of_the_paper() -> None:
    gdn = transforms.GDN(3)
    gdn.beta.copy_(torch.tensor([1.0, 2.0, 3.0]))
    gamma = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    gdn.gamma.copy_(gamma[:, :, None, None])
    y = torch.tensor([1.0, -2.0, 3.0])
    expected = [float(y[c] / (gdn.beta[c] + sum(gamma[c, k] * y[k] ** 2 for k in range(3))) ** 0.5) for c in range(3)]
    assert gdn(y.reshape(1, 3, 1, 1)).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_shapes_follow_n_and_m() -> None:
    x = torch.rand(2, 3, 48, 80)
    y = transforms.analysis(16, 24)(x)
    assert y.shape == (2, 24, 3, 5)
    assert transforms.synthesis(16, 24)(y).shape == x.shape


def test_default_widths_are_the_paper_s() -> None:
    assert transforms.analysis().conv1.weight.shape == (128, 3, 9, 9)
    assert transforms.analysis().conv3.weight.shape == (192, 128, 5, 5)
    assert transforms.synthesis().conv3.weight.shape == (48, 128, 3, 3)


def test_transforms_are_local_and_shift_with_the_image() -> None:
    """Moving the image by one stride moves the latents by one sample, away from the borders."""
    torch.manual_seed(1)
    analysis, synthesis = transforms.analysis(8, 12).eval(), transforms.synthesis(8, 12).eval()
    x = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        y, moved = analysis(x), analysis(x.roll(16, dims=3))
        torch.testing.assert_close(y[..., 3:6], moved[..., 4:7], rtol=1e-5, atol=1e-6)
        z, moved = synthesis(y), synthesis(y.roll(1, dims=3))
    torch.testing.assert_close(z[..., 64:96], moved[..., 80:112], rtol=1e-5, atol=1e-5)
