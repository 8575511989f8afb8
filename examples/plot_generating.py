"""
Does a model make new digits, or copy those it has seen?
========================================================

A fitted `VAEDetector` is a model of what is normal, and it can be asked for examples: it draws latent
variables from the prior, and images from those. Looking at them tells what the model has learned to call
normal. But a model that knows its training images by heart would look just as good; so we measure how far the
new images are from the old ones. The images are digits that scikit-learn bundles; nothing is downloaded. Run
it with::

    python examples/plot_generating.py
"""

import os
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from vae_anomaly import VAEDetector, plotting

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick: dict[str, Any] = {"epochs": 2} if os.environ.get("VAE_ANOMALY_QUICK") else {}

# %%
digits = load_digits()
train, held_out, train_digit, _ = train_test_split(
    digits.images / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
)
detector = VAEDetector(random_state=0, **quick).fit(train)

# %%
# New digits
# ----------
# What the model expects of an image for each draw of the latent variables, without the grain that its
# likelihood adds to every pixel. They are blurred: the default of images leaves details to the noise, because
# that finds anomalies better.
ax = plotting.samples(detector, 100, random_state=0)
ax.set_title("100 new digits")
plt.show()

# %%
# New, or copies?
# ---------------
# Below each new digit, the training image nearest to it.
new = detector.sample(len(held_out), random_state=0, noise=False)
neighbors = KNeighborsClassifier(1).fit(train.reshape(len(train), -1), train_digit)
distance, nearest = (found[:, 0] for found in neighbors.kneighbors(new.reshape(len(new), -1)))

figure, panels = plt.subplots(2, 10, figsize=(10, 2.5), layout="constrained")
for (top, bottom), image, old in zip(panels.T, new, train[nearest], strict=False):
    top.imshow(image, cmap="gray", vmin=0, vmax=1)
    bottom.imshow(old, cmap="gray", vmin=0, vmax=1)
for ax in panels.flat:
    ax.set(xticks=[], yticks=[])
panels[0, 0].set_ylabel("new")
panels[1, 0].set_ylabel("nearest\nof training")
plt.show()

# %%
# Copies would lie at no distance. The measure for what is far: real digits that were not trained on. Expected
# images are smoother than real ones, so the fair comparison is with what the model expects in their place.
smooth = detector.reconstruct(held_out)
real = neighbors.kneighbors(held_out.reshape(len(held_out), -1))[0][:, 0]
of_smooth = neighbors.kneighbors(smooth.reshape(len(smooth), -1))[0][:, 0]
figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
groups = {
    "new digits of the model": distance,
    "real digits, held out": real,
    "the same, as the model expects them": of_smooth,
}
for (name, values), color, style in zip(
    groups.items(), ["#D55E00", "#0072B2", "#56B4E9"], ["-", "-", "--"], strict=True
):
    ax.hist(
        values,
        np.linspace(0, max(map(np.max, groups.values())), 40).tolist(),
        histtype="step",
        color=color,
        linestyle=style,
        linewidth=2,
        label=name,
    )
    print(f"{name}: median distance {np.median(values):.2f}, smallest {values.min():.2f}")
ax.set(xlabel="distance from the nearest training image (0: a copy)", ylabel="images")
figure.legend(loc="outside upper center", ncols=3, frameon=False)
plt.show()

# %%
# Does it know all the digits?
# ----------------------------
# Each new image counts as the digit that its nearest training image shows.
made = np.bincount(train_digit[nearest], minlength=10)
print("new images by digit:", {digit: int(count) for digit, count in enumerate(made)})

# %%
# And does the detector take them for normal? It calls these shares anomalies:
for name, images in {
    "new digits": new,
    "real digits, held out": held_out,
    "pixels at random": np.random.default_rng(0).random(new.shape),
}.items():
    print(f"{name}: {(detector.predict(images) == -1).mean():.1%}")

# %%
# What next
# ---------
# - ``sample`` with its default ``noise=True`` draws from the whole model, grain included, and so new rows of
#   a table, in its own columns and units.
# - Blurred shapes between two digits are what the prior has where no digit lies: see
#   ``plot_latent_space.py``.
# - A sharper model keeps more of each image: ``likelihood=PixelGaussian(scale=0.2)``.
