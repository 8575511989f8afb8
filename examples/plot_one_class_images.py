"""
Can a detector that only knows threes tell them from other digits?
==================================================================

One-class detection: examples of one kind are at hand, none of what may come instead. A `VAEDetector` is
fitted on images of handwritten threes, which scikit-learn bundles, and judges threes it has not seen and all
the other digits. Nothing is downloaded. Run it with::

    python examples/plot_one_class_images.py
"""

import os
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from vae_anomaly import VAEDetector, plotting
from vae_anomaly.thresholds import Conformal

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick: dict[str, Any] = {"epochs": 2} if os.environ.get("VAE_ANOMALY_QUICK") else {}

# %%
# Images are arrays of shape (n, height, width) with values in [0, 1]; they go into the detector as they are.
# Three quarters of the threes are for training.
digits = load_digits()
images, digit = digits.images / 16, digits.target
threes = np.random.default_rng(0).permutation(np.flatnonzero(digit == 3))
train = threes[: len(threes) * 3 // 4]
new = np.setdiff1d(np.arange(len(images)), train)
anomaly = digit[new] != 3
print(f"{len(train)} threes to train on; {(~anomaly).sum()} threes and {anomaly.sum()} other digits to judge")

# %%
# The threshold comes with a promise: of new threes, at most 10 % on average raise an alarm. For that, a
# quarter of the training images is held out and only used to set the threshold.
promised = 0.1
detector = VAEDetector(
    threshold=Conformal(false_alarm_rate=promised), calibration=0.25, random_state=0, **quick
)
detector.fit(images[train])

# %%
# Scores and alarms
# -----------------
scores = -detector.score_samples(images[new])
alarm = detector.predict(images[new]) == -1
print(f"AUROC: {roc_auc_score(anomaly, scores):.3f}")
print(f"other digits found: {alarm[anomaly].mean():.0%}")
print(f"false alarms: {alarm[~anomaly].sum()} of {(~anomaly).sum()} threes ({promised:.0%} promised)")

ax = plotting.score_histogram(scores, y=anomaly, threshold=-detector.offset_)
ax.set(title="New images: threes (normal) and other digits (anomaly)")
ax.set_yscale("log")  # there are many more other digits than threes
plt.show()

# %%
# Which digits are hard?
# ----------------------
# The share of each digit's images that raise an alarm. For the threes, these are the false alarms.
shares = [alarm[digit[new] == d].mean() for d in range(10)]
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
bars = ax.bar(range(10), shares, color=["#0072B2" if d == 3 else "#D55E00" for d in range(10)])
ax.bar_label(bars, [f"{share:.0%}" for share in shares])
ax.axhline(
    promised, color="black", linestyle="--", linewidth=1.2, label=f"promised for threes: {promised:.0%}"
)
ax.set(xticks=range(10), xlabel="digit", ylabel="share of the images that raise an alarm", ylim=(0, 1.25))
ax.legend(loc="upper right")
plt.show()

hardest = min((d for d in range(10) if d != 3), key=lambda d: shares[d])
print(f"hardest: {hardest}, of which {shares[hardest]:.0%} are found")

# %%
# The most normal other digits are those that pass for threes. The middle row is what the detector, which
# knows nothing but threes, expects in the place of each; the maps say where the image differs.
others = np.flatnonzero(anomaly)
mistaken = others[np.argsort(scores[others])[:4]]
obvious = others[np.argsort(scores[others])[-4:]]
plotting.reconstructions(detector, images[new][np.r_[mistaken, obvious]])
plt.suptitle("Other digits: the four that look most like a three, the four that look least like one")
plt.show()

# %%
# What next
# ---------
# - ``threshold="conformal"`` without ``calibration`` sets the threshold across five folds: it spends no
#   training image, and takes six times as long.
# - ``VAEDetector.p_values`` says of each image how often a three looks at least as unusual.
# - Where in an image is the defect? See ``plot_anomaly_maps.py``.
