"""
What do two latent variables know of digits?
============================================

A VAE describes each image by a few numbers, its latent variables, and draws it again from them. With two, the
whole latent space can be drawn: where the images lie, and what each place stands for. These are the two
pictures that most texts on VAEs end with, here of the digits that scikit-learn bundles. Nothing is
downloaded. Run it with::

    python examples/plot_latent_space.py [PICTURE]

which also writes the picture of the manifold, if a path is given.
"""

import os
import sys

import matplotlib.pyplot as plt
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from vae_anomaly import VAEDetector, plotting
from vae_anomaly.likelihoods import UnitGaussian

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick = {"epochs": 2} if os.environ.get("VAE_ANOMALY_QUICK") else {}

# %%
# The labels are not used in training; they only colour the pictures.
digits = load_digits()
train, new, train_digit, new_digit = train_test_split(
    digits.images / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
)

# %%
# The default likelihood of images lets the model leave details out, which is good at finding anomalies. A
# picture of the latent space is clearer with a smaller scale of the noise, which asks for more of the
# details.
detector = VAEDetector(latent_dim=2, likelihood=UnitGaussian(scale=0.1), random_state=0, **quick).fit(train)

# %%
# Where the images lie
# --------------------
# Each point is an image that was not trained on, placed at the mean of its posterior q(z|x). Digits of a kind
# lie together, although nobody told the model that there are kinds.
ax = plotting.latent_scatter(detector, new, new_digit)
ax.set_title("New digits in the latent space")
ax.get_legend().set_title("digit")
plt.show()

neighbours = KNeighborsClassifier(15).fit(detector.encode(train), train_digit)
accuracy = neighbours.score(detector.encode(new), new_digit)
print(f"read from the two numbers alone: {accuracy:.0%} of new digits, 10 % by chance")

# %%
# What each place stands for
# --------------------------
# The other way round: the image that the decoder draws at each place. The places are quantiles of the prior,
# so that each tile stands for as much of it as any other. Digits change into each other by way of shapes that
# are neither: between the islands of the first picture.
ax = plotting.latent_manifold(detector, 12)
ax.set_title("What the decoder draws at each place")
if len(sys.argv) > 1:
    ax.figure.savefig(sys.argv[1], dpi=70)
plt.show()

# %%
# What two numbers leave out
# --------------------------
# Two numbers do not say everything about an image. The default, chosen by the size of the images, keeps more:
richer = clone(detector).set_params(latent_dim="auto").fit(train)
for model in (detector, richer):
    unexplained = -model.score_samples(new).mean()
    print(f"{model.latent_dim_:2} latent variables leave {unexplained:.0%} of the variance of new digits")

# %%
# What next
# ---------
# - Two latent variables are for looking. To find anomalies, leave ``latent_dim`` and ``likelihood`` alone.
# - With more of them, `plotting.latent_scatter` draws the two principal directions.
# - Drawing new digits from the latent space: ``plot_generating.py``.
# - The models of five texts with their own settings: ``published_models.py``.
