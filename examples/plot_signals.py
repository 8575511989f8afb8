"""
When and in which channel is a signal unusual?
==============================================

Windows of measurements over time go in as they are: an array of shape (n, length, channels), each channel in
its own unit. Here a machine is imagined, with three sensors that follow its rotation; everything is
generated. Run it with::

    python examples/plot_signals.py [PICTURE]

which also writes the picture of the windows, if a path is given.
"""

import os
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from vae_anomaly import ConvNetwork, VAEDetector, plotting

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick: dict[str, Any] = {"epochs": 2} if os.environ.get("VAE_ANOMALY_QUICK") else {}

# %%
# Windows of three sensors
# ------------------------
# A window begins anywhere in a rotation, and the machine turns a little faster or slower each time. The
# sensors have units of their own: a tilt in degrees, an acceleration, and a pressure around 1,000 hPa.
rng = np.random.default_rng(0)
length, units, levels = 96, np.array([4.0, 0.02, 15.0]), np.array([0.0, 9.81, 1000.0])


def windows(n):
    phase, speed = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(0.95, 1.05, (n, 1))
    turn = 2 * np.pi * speed * np.arange(length) / 32 + phase
    clean = np.stack([np.sin(turn), 0.5 * np.cos(2 * turn) + 0.3 * np.sin(turn), np.sin(3 * turn)], axis=-1)
    return (clean + 0.05 * rng.normal(size=clean.shape)) * units + levels


train, normal = windows(300), windows(100)

# %%
# Three things go wrong in others: one value jumps, a sensor hangs for 16 steps, and a piece runs backwards.
jump, hang, backwards = (windows(100) for _ in range(3))
jump[np.arange(100), rng.integers(5, 90, 100), 1] += 1.5 * units[1]
hang[:, 40:56, 0] = hang[:, [40], 0]
backwards[:, 30:60] = backwards[:, 30:60][:, ::-1].copy()

# %%
# A network of one dimension
# --------------------------
# The shape (n, 96, 3) could be that of narrow gray images: ``dimensions=1`` says that it is signals.
# Convolutions run along the time, and each channel is scaled.
detector = VAEDetector(ConvNetwork(dimensions=1), random_state=0, **quick).fit(train)

# %%
# Signals over what was expected
# ------------------------------
# Of each kind, the window with the middle score. Above, its channels, scaled, and what the model expects in
# their place; below, what each step adds to the score.
kinds = {"normal": normal, "a jump": jump, "a sensor hangs": hang, "backwards": backwards}
middle = [signals[np.argsort(detector.score_samples(signals))[50]] for signals in kinds.values()]
panels = plotting.reconstructions(detector, np.stack(middle))
for panel, kind in zip(panels[0], kinds, strict=True):
    panel.set_title(f"{kind}\n{panel.get_title()}", fontsize="medium")
if len(sys.argv) > 1:
    panels[0, 0].figure.savefig(sys.argv[1], dpi=79)
plt.show()

# %%
# How well they are found
# -----------------------
# AUROC of 100 windows of each kind against 100 new normal ones, and how often the step and the channel with
# the largest share are those that jumped.
for name in ("a jump", "a sensor hangs", "backwards"):
    wrong = kinds[name]
    both = -np.concatenate([detector.score_samples(normal), detector.score_samples(wrong)])
    print(f"{name}: AUROC {roc_auc_score(np.repeat([0, 1], 100), both):.3f}")
shares = detector.explain(jump)
print(
    f"the largest share is the acceleration's: {(shares.max(axis=1).argmax(axis=1) == 1).mean():.0%} of jumps"
)
print(f"alarms among new normal windows: {(detector.predict(normal) == -1).mean():.0%}")

# %%
# What next
# ---------
# - Windows of one channel may be rows of a table: ``ConvNetwork(dimensions=1)`` takes them too.
# - A threshold with a promised rate of false alarms: ``VAEDetector(threshold="conformal")``; see
#   ``plot_one_class_images.py``.
