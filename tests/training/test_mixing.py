import pytest
import torch

from training.mixing import mix, mix_amplitudes


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_pixels_and_labels_are_mixed_in_the_same_shares(mixup, cutmix):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1] * 4 + [-100])
    pixels = labels.clamp(0, 1).float()[:, None, None, None].expand(9, 3, 20, 20)
    for _ in range(10):
        mixed, shares = mix(pixels, labels, 2, mixup, cutmix)
        assert torch.allclose(shares[:8].sum(1), torch.ones(8))
        assert not shares[8].any()
        whole = torch.tensor([mixed[index].mean() for index in range(8)])
        alone = shares[:8].max(1).values == 1  # mixed with its own class or with filling
        assert torch.allclose(whole[~alone], shares[:8, 1][~alone], atol=1e-6)


def test_amplitudes_come_from_another_image_and_phases_stay():
    torch.manual_seed(0)
    pixels = torch.randn(6, 3, 20, 31)
    whole = torch.fft.rfft2(pixels.double())
    mixed = torch.fft.rfft2(mix_amplitudes(pixels, 1.0).double())
    inner = (slice(None), slice(None), slice(1, 10), slice(1, 15))  # elsewhere a spectrum is its own mirror image
    turned = torch.angle(mixed / whole)[inner]
    assert turned.abs().median() < 1e-4
    for image in range(6):
        shares = []  # of another image's amplitudes, were it that one, and what remains unexplained
        for other in range(6):
            difference = (whole[other].abs() - whole[image].abs())[inner[1:]].flatten()
            change = (mixed[image].abs() - whole[image].abs())[inner[1:]].flatten()
            share = (change @ difference / (difference @ difference)).nan_to_num()
            shares.append(((change - share * difference).norm().item(), share.item()))
        rest, share = min(shares)
        assert rest < 1e-3
        assert 0 <= share <= 1


def test_as_many_images_as_asked_for_have_mixed_amplitudes():
    torch.manual_seed(0)
    pixels = torch.rand(400, 1, 8, 8)
    assert torch.allclose(mix_amplitudes(pixels, 0.0), pixels, atol=1e-5)
    changed = (mix_amplitudes(pixels, 0.25) - pixels).abs().amax((1, 2, 3)) > 1e-4
    assert 0.15 < changed.float().mean() < 0.35
