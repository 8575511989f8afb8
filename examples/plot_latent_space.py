"""
What do two latent variables know of digits?
============================================

A VAE describes each image by a few numbers, its latent variables, and draws it again from them. With two, the
whole latent space can be drawn: where the images lie, and what each place stands for. These are the two
pictures that most texts on VAEs end with, here of the digits that scikit-learn bundles. Nothing is
downloaded. Run it with::

    python examples/plot_latent_space.py [PICTURE]

which also writes the picture, if a path is given.
"""

import os
import sys

import matplotlib.pyplot as plt
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from vae_anomaly import DenseNetwork, VAEDetector, plotting

# A quick mode, to check that the script runs: its pictures show nothing of interest.
EPOCHS = 2 if os.environ.get("VAE_ANOMALY_QUICK") else 200

# %%
# The labels are not used in training; they only color the pictures.
digits = load_digits()
train, new, train_digit, new_digit = train_test_split(
    digits.images / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
)

# %%
# The model is one of the texts': dense layers, and pixels as probabilities, whose cross-entropy is the loss.
detector = VAEDetector(
    DenseNetwork((256, 128)), latent_dim=2, likelihood="bernoulli", epochs=EPOCHS, random_state=0
).fit(train)

# %%
# Two pictures of one plane
# -------------------------
# On the left, each point is an image that was not trained on, at the mean of its posterior q(z|x). Digits of
# a kind lie together, although nobody told the model that there are kinds.
#
# On the right, the other way round: the image that the decoder expects at each place. The places are
# quantiles of the prior, so that each tile stands for as much of it as any other. Digits change into each
# other by way of shapes that are neither.
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 5.2), layout="constrained")
plotting.latent_scatter(detector, new, new_digit, ax=left)
left.set_title("Where new digits lie")
left.get_legend().set_title("digit")
plotting.latent_manifold(detector, 14, ax=right)
right.set_title("What each place stands for")
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=78)
plt.show()

# %%
# A number for the left picture: how well can a new digit be read from its place, by the 15 training images
# that lie nearest?
neighbors = KNeighborsClassifier(15).fit(detector.encode(train), train_digit)
accuracy = neighbors.score(detector.encode(new), new_digit)
print(f"read from two numbers: {accuracy:.0%} of the new digits; by guessing 10 %")

# %%
# What two numbers leave out
# --------------------------
# Two numbers do not say everything about an image. The same with as many as the network takes by default:
richer = clone(detector).set_params(latent_dim="auto").fit(train)
for model in (detector, richer):
    unexplained = -model.score_samples(new).mean()
    print(f"{model.latent_dim_:2} latent variables leave {unexplained:.0%} of the variance of new digits")

# %%
# What next
# ---------
# - Two latent variables and cross-entropy are for looking. What finds anomalies in images is the default:
#   ``VAEDetector()``, as in ``plot_one_class_images.py``.
# - With more of them, `plotting.latent_scatter` draws the two principal directions.
# - Drawing new digits from the latent space: ``plot_generating.py``.
# - The models of five texts with their own settings: ``published_models.py``.
