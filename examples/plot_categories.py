"""
Which kinds of digits are there?
================================

Latent variables need not be numbers. With categories, a VAE sorts what it sees into kinds that nobody has
named. One variable of sixteen values makes sixteen prototypes of the digits that scikit-learn bundles;
several variables combine. Nothing is downloaded. Run it with::

    python examples/plot_categories.py [PICTURE]

which also writes the picture, if a path is given.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.posteriors import Categorical

# A quick mode, to check that the script runs: its pictures show nothing of interest.
EPOCHS = 2 if os.environ.get("VAE_ANOMALY_QUICK") else 150
N_KINDS = 16

# %%
# The labels are not used in training. The temperature of the relaxed draws falls over the training, from
# draws that mix kinds to draws that are nearly of one.
digits = load_digits()
train, new, train_digit, new_digit = train_test_split(
    digits.images / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
)
detector = VAEDetector(
    DenseNetwork((128, 64)),
    posterior=Categorical(n_variables=1, n_values=N_KINDS, temperature=(1.0, 0.3)),
    likelihood="bernoulli",
    members=1,
    epochs=EPOCHS,
    random_state=0,
).fit(train)

# %%
# Prototypes
# ----------
# What the decoder expects of each kind, with the digit that most of its training images show, and how many of
# them do.
model = detector.model_
prototypes = np.asarray(model.likelihood.mean(model.decode(np.eye(N_KINDS, dtype="float32"))))
kinds = detector.encode(train).argmax(axis=1)
figure, axes = plt.subplots(2, N_KINDS // 2, figsize=(10, 3.2), layout="constrained")
names = np.full(N_KINDS, -1)
for kind, ax in enumerate(axes.ravel()):
    ax.imshow(prototypes[kind].reshape(8, 8), cmap="gray_r")
    ax.set_axis_off()
    counts = np.bincount(train_digit[kinds == kind], minlength=10)
    if counts.any():
        names[kind] = counts.argmax()
        ax.set_title(f"{names[kind]}: {counts.max() / counts.sum():.0%} of {counts.sum()}", fontsize=9)
    else:
        ax.set_title("unused", fontsize=9)
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=78)
plt.show()

# %%
# If a new digit is called what most of its kind are, how often is that right?
found = names[detector.encode(new).argmax(axis=1)]
share = (found == new_digit).mean()
print(f"{(names >= 0).sum()} of {N_KINDS} kinds are used; {share:.0%} of the new digits are named rightly")

# %%
# What next
# ---------
# - Several variables combine: ``posterior="categorical"`` has eight of four values each.
# - Latent variables that are numbers: ``plot_latent_space.py``.
