"""
Where in an image is the defect?
================================

A detector that has only seen flawless images says which new ones are unusual, and `VAEDetector.explain` says
which pixels make them so. Here the images are handwritten digits that scikit-learn bundles, and the defects
are planted, so that we know where they are. Nothing is downloaded. Run it with::

    python examples/plot_anomaly_maps.py [PICTURE]

which also writes the picture of the maps, if a path is given.
"""

import os
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from vae_anomaly import VAEDetector, plotting

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick: dict[str, Any] = {"epochs": 2} if os.environ.get("VAE_ANOMALY_QUICK") else {}

# %%
# Digits with a defect
# --------------------
# Three quarters of the digits are for training. Into each of the others we plant a defect, a square of 2 x 2
# pixels: ink where there was none, or a hole in a stroke. The place is drawn from those where the square is
# blank all over or inked all over; elsewhere it could be part of another way to write the digit.
digits = load_digits()
train, flawless = train_test_split(digits.images / 16, test_size=0.25, random_state=0, stratify=digits.target)
n_images, n_pixels, side = len(flawless), flawless[0].size, 2
rng = np.random.default_rng(0)

damaged, corners = flawless.copy(), []
for image in damaged:
    squares = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    blank, inked = squares.max(axis=(2, 3)) < 0.25, squares.min(axis=(2, 3)) > 0.5
    top, left = rng.choice(np.argwhere(blank | inked))
    image[top : top + side, left : left + side] = 1.0 if blank[top, left] else 0.0
    corners.append((left - 0.5, top - 0.5))
planted = damaged != flawless

# %%
# Images need no settings: four dense networks see them whole, and the score of an image is the share of its
# variance that the model cannot reproduce.
detector = VAEDetector(random_state=0, **quick).fit(train)

# %%
# The maps
# --------
# `explain` divides the score of an image among its pixels: a map that sums to the score. Of the first images,
# what came in, what the model expected in its place, and the map. The frame is where the defect was planted,
# which the detector is not told.
panels = plotting.reconstructions(detector, damaged[:8])
for column, corner in zip(panels.T, corners, strict=False):
    for panel in column[[0, 2]]:
        panel.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="#D55E00", linewidth=2))
if len(sys.argv) > 1:
    panels[0, 0].figure.savefig(sys.argv[1], dpi=79)
plt.show()

# %%
# How often the maps are right
# ----------------------------
# A number for the impression: the probability that a pixel of the defect stands higher in the map than
# another pixel of the same image (0.5 is guessing), and how often the highest pixel of the map lies in the
# defect.
maps = detector.explain(damaged)
auroc = [roc_auc_score(truth.ravel(), pixels.ravel()) for truth, pixels in zip(planted, maps, strict=True)]
highest = maps.reshape(n_images, -1).argmax(axis=1)
hit = planted.reshape(n_images, -1)[np.arange(n_images), highest]
print(f"{n_images} images with a defect of {side**2} of {n_pixels} pixels")
print(f"a pixel of the defect stands higher than another one: {np.mean(auroc):.3f}")
print(
    f"the highest pixel lies in the defect: {hit.mean():.0%} of images (by guessing {side**2 / n_pixels:.0%})"
)

# %%
# And do the images as a whole stand out? The same images with and without their defects:
normal, anomalous = -detector.score_samples(flawless), -detector.score_samples(damaged)
truth = np.repeat([0, 1], n_images)
print(f"AUROC of damaged images against flawless ones: {roc_auc_score(truth, np.r_[normal, anomalous]):.3f}")
ax = plotting.score_histogram(np.r_[normal, anomalous], y=truth, threshold=-detector.offset_)
ax.set_title("New digits: flawless (normal) and the same with a defect (anomaly)")
plt.show()

# %%
# What next
# ---------
# - A threshold with a promised rate of false alarms: ``VAEDetector(threshold="conformal")``; see
#   ``plot_one_class_images.py``.
# - The misses are worth a look: ``plotting.reconstructions(detector, damaged[~hit][:10])``.
# - Of larger images, smooth over more pixels: ``score=unexplained_variance((64, 64, 3), smoothing=2)`` in
#   `vae_anomaly.scoring`.
