"""
Which of the surfaces has a defect?
===================================

A scratch on wood is a hundredth of the picture. Images larger than 32 pixels are therefore seen in patches:
the detector learns what small squares look like, and the most unusual squares make an image's score. Here the
wood is generated and the defects are planted, so that we know where they are. Nothing is downloaded. Run it
with::

    python examples/plot_texture_defects.py [PICTURE]

which also writes the picture of the defects, if a path is given.
"""

import os
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_filter

from vae_anomaly import VAEDetector

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick: dict[str, Any] = {"epochs": 1} if os.environ.get("VAE_ANOMALY_QUICK") else {}
rng = np.random.default_rng(0)
side = 64
down, across = np.mgrid[:side, :side]

# %%
# Wood
# ----
# Fine fibers and broad rings in three channels of brown, and some noise.


def make_wood(n_images: int) -> np.ndarray:
    """Images of wood, (n_images, 64, 64, 3), in bytes."""
    rings = np.zeros((n_images, side, side))
    for weight, width in ((0.1, (12, 1.2)), (0.06, (20, 6))):
        wave = gaussian_filter(rng.normal(size=rings.shape), (0, *width))
        rings += weight * wave / wave.std(axis=(1, 2), keepdims=True)
    brown = np.array([0.6, 0.42, 0.25]) + rings[..., None] * np.array([1.0, 0.8, 0.5])
    return to_bytes(brown + 0.02 * rng.normal(size=brown.shape))


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as bytes."""
    return np.asarray((255 * np.clip(images, 0, 1)).round(), dtype=np.uint8)


# %%
# Three defects: a scratch, a stain, and a place that has lost its grain.
train, flawless, damaged = make_wood(300), make_wood(100), make_wood(3)
scratch = (np.abs(down - 20 - 0.4 * across) < 1) & (np.abs(across - 30) < 9)
stain = np.hypot(down - 40, across - 22) < 6
bald = (np.abs(down - 24) < 6) & (np.abs(across - 44) < 6)
planted = np.stack([scratch, stain, bald])
pixels = damaged / 255
pixels[0][scratch] += 0.2
pixels[1][stain] += np.array([0.12, -0.12, 0.0])
pixels[2][bald] = pixels[2][bald].mean(axis=0)
damaged = to_bytes(pixels)

# %%
# Images need no settings. Bytes are divided by 255, each channel is centered and scaled, and four small
# networks learn squares of 8 x 8 pixels from all over the training images.
detector = VAEDetector(random_state=0, **quick).fit(train)
print(detector.patches_)

# %%
# Which images, and where
# -----------------------
# `predict` says which images have a defect; about 5 % of new flawless ones raise an alarm. `explain` maps how
# unusual each place is: its largest pixel is the score of the image. `anomaly_mask` marks pixels above a
# cut that one in a thousand flawless pixels lies above; `anomaly_regions` puts boxes around them.
print(f"alarms on {len(flawless)} new flawless images: {np.mean(detector.predict(flawless) < 0):.2f}")
print(f"images with a scratch, a stain, a bald place: {detector.predict(damaged)}")
maps, masks = detector.explain(damaged).sum(axis=-1), detector.anomaly_mask(damaged)
regions = detector.anomaly_regions(damaged)
worst = regions.groupby("image").head(1)
print(worst.to_string(index=False))

# %%
# What came in, how unusual each place is, and what is marked. The frame is the box of the worst region.
figure, axes = plt.subplots(3, 3, figsize=(7.5, 7.5), layout="constrained")
for image, row in enumerate(axes):
    row[0].imshow(damaged[image])
    row[1].imshow(maps[image], cmap="inferno")
    row[2].imshow(masks[image], cmap="gray")
    for _, box in worst[worst["image"] == image].iterrows():
        corner = (box["left"] - 0.5, box["top"] - 0.5)
        size = (box["right"] - box["left"], box["bottom"] - box["top"])
        row[0].add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=2))
    for ax in row:
        ax.set_axis_off()
for ax, title in zip(axes[0], ("image", "local score", "anomaly mask"), strict=True):
    ax.set_title(title)
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=79)
plt.show()

# %%
# How often the marks are right
# -----------------------------
found = [(mask & truth).sum() / truth.sum() for mask, truth in zip(masks, planted, strict=True)]
print("fraction of the defect's pixels marked: " + ", ".join(f"{fraction:.2f}" for fraction in found))
print(f"fraction of flawless pixels marked: {detector.anomaly_mask(flawless).mean():.4f} (promised: 0.001)")

# %%
# Where to go from here
# ---------------------
# - ``patches=16`` sees larger squares: for coarse textures.
# - Which score when, and how the detector compares: the guide on images.
# - Small images of whole objects: ``plot_one_class_images.py``.
