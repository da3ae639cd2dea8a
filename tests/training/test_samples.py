import numpy as np
from PIL import Image
from transformers import ViTImageProcessorPil

from training.examples import Examples
from training.samples import save_samples


def test_the_page_shows_what_the_network_is_given(parts, tmp_path):
    processor = ViTImageProcessorPil(size={"height": 40, "width": 40}, image_mean=[0.2] * 3, image_std=[0.3] * 3)
    rows = parts["train"]
    save_samples(tmp_path / "samples.png", Examples(rows, processor, "ultrasound", seed=1))
    page = np.asarray(Image.open(tmp_path / "samples.png"))
    assert page.shape == (6 * 60, 5 * 44, 3)
    plain = np.asarray(rows[0]["image"].convert("RGB").resize((40, 40), Image.Resampling.BILINEAR))
    assert np.abs(page[16:56, :40].astype(int) - plain).max() <= 1
    assert np.abs(page[16:56, 44:84].astype(int) - plain).max() > 20
    save_samples(tmp_path / "plain.png", Examples(rows, processor))
    assert Image.open(tmp_path / "plain.png").width == 44
