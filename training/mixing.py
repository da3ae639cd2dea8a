"""Images of a batch mixed with each other, as tensors: mixup, cutmix, and the amplitudes of their spectra.

All chances come from torch's generators, which checkpoints keep.
"""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from training.loss import IGNORED


def mix(pixels: torch.Tensor, labels: torch.Tensor, classes: int, mixup: float, cutmix: float):
    """Mix each image of a batch with another one: (images, 3, height, width) and the shares (images, classes).

    mixup: alpha of the Beta distribution that the weight of the two images is drawn from (Zhang et al., ICLR 2018);
    cutmix: the same for the area of a rectangle pasted from the other image (Yun et al., ICCV 2019); 0 leaves one out.
    With both, one of them is drawn for each batch.
    """
    targets = torch.zeros(len(labels), classes, device=labels.device)
    counted = labels != IGNORED
    targets[counted] = one_hot(labels[counted], classes).float()
    order = torch.randperm(len(labels)).to(labels.device)
    paste = cutmix > 0 and (mixup == 0 or torch.rand(()) < 0.5)
    alpha = torch.tensor(float(cutmix if paste else mixup))
    share = torch.distributions.Beta(alpha, alpha).sample().item()  # of the image's own
    if paste:
        rows, columns = pixels.shape[-2:]
        height, width = round(rows * (1 - share) ** 0.5), round(columns * (1 - share) ** 0.5)
        top = torch.randint(rows - height + 1, ()).item()
        left = torch.randint(columns - width + 1, ()).item()
        region = slice(top, top + height), slice(left, left + width)
        mixed = pixels.clone()
        mixed[..., region[0], region[1]] = pixels[order][..., region[0], region[1]]
        share = 1 - height * width / (rows * columns)
    else:
        mixed = share * pixels + (1 - share) * pixels[order]
    # Filling stays uncounted, and an image mixed with filling keeps its full weight.
    other = torch.where(counted[order, None], targets[order], targets)
    return mixed, torch.where(counted[:, None], share * targets + (1 - share) * other, 0.0)


def mix_amplitudes(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Blend the amplitudes of an image's spectrum with those of another one, by as much as chance says.

    pixels (images, channels, height, width); each image is changed with the probability `share`. Its phases stay, and
    with them where things are; how it looks becomes the other's (Xu et al., A Fourier-based framework for domain
    generalization, CVPR 2021).
    """
    chance = torch.rand(3, len(pixels), 1, 1, 1, device=pixels.device)
    spectrum = torch.fft.rfft2(pixels)
    amplitudes = spectrum.abs()
    others = amplitudes[chance[0].flatten().argsort()]
    amplitudes = amplitudes + chance[1] * (chance[2] < share) * (others - amplitudes)
    mixed = torch.fft.irfft2(torch.polar(amplitudes, spectrum.angle()), s=pixels.shape[-2:])
    return mixed.contiguous(memory_format=torch.channels_last)
