"""
Which shape does the posterior have?
====================================

A VAE approximates the true posterior p(z|x) by one that it can draw from, usually a Gaussian whose latent
variables are independent. Where the true posterior has another shape, that costs nats of the evidence lower
bound. A flow bends the Gaussian into other shapes. Here the decoders are given and simple, so that the truth
is known by quadrature. Nothing is downloaded. Run it with::

    python examples/plot_posteriors.py [PICTURE]

which also writes the picture, if a path is given.
"""

import os
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import logsumexp

from vae_anomaly import KerasNetwork, VAEDetector
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.posteriors import Flow

# A quick mode, to check that the script runs: its pictures show nothing of interest.
EPOCHS = 2 if os.environ.get("VAE_ANOMALY_QUICK") else 300
NOISE = 0.3


# %%
# Two decoders without weights
# ----------------------------
# Each makes one number x of two latent variables. Of the first, z that explain an x lie along a parabola; of
# the second, the sign of one latent variable cannot be known.
z = keras.Input((2,))
first, second = z[:, :1], z[:, 1:]
DECODERS = {
    "banana: x = z₂ - z₁² + noise": (keras.Model(z, second - first * first), -2.0),
    "two modes: x = z₁² + z₂/2 + noise": (keras.Model(z, first * first + 0.5 * second), 2.0),
}


# %%
# The encoder returns a mean and a variance of each latent variable, and for the flow some numbers more.
def fit(decoder: keras.Model, rows: np.ndarray, posterior: str | Flow, n_context: int = 0) -> VAEDetector:
    x = keras.Input((1,))
    hidden = keras.layers.Dense(64, "relu")(keras.layers.Dense(64, "relu")(x))
    encoder = keras.Model(x, [keras.layers.Dense(width)(hidden) for width in (2, 2, n_context) if width])
    return VAEDetector(
        KerasNetwork(encoder, decoder),
        likelihood=Gaussian(scale=NOISE),
        scaler=None,
        posterior=posterior,
        members=1,
        epochs=EPOCHS,
        n_draws=500,
        n_training_draws=8,
        random_state=0,
    ).fit(rows)


# %%
# The truth on a grid of z: log p(x|z) + log p(z), whose sum is the evidence p(x).
axis = np.linspace(-4.5, 4.5, 181)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")


def log_joint(decoder: keras.Model, x: float) -> np.ndarray:
    expected = decoder.predict_on_batch(grid)[:, 0]
    squares = ((x - expected) / NOISE) ** 2 + (grid**2).sum(axis=1)
    return np.asarray(-0.5 * squares - np.log(NOISE) - 1.5 * np.log(2 * np.pi))


def log_evidence(decoder: keras.Model, x: float) -> float:
    return float(logsumexp(log_joint(decoder, x)) + 2 * np.log(axis[1] - axis[0]))


# %%
# Exact, Gaussian, flow
# ---------------------
# On the left the exact posterior of one x, beside it draws from the two that were fitted. The bound above
# each is the mean over 200 new rows, in nats: the Gaussian has to choose a part of the truth, and the flow
# reaches most of it. A flow is continuous, and leaves a bridge between two modes.
figure, axes = plt.subplots(2, 3, figsize=(10, 6.8), layout="constrained", sharex=True, sharey=True)
for line, (title, (decoder, x)) in zip(axes, DECODERS.items(), strict=True):
    rng = np.random.RandomState(0)
    expected = decoder.predict_on_batch(rng.standard_normal((2200, 2)).astype("float32"))
    rows = expected + NOISE * rng.standard_normal((2200, 1))
    train, new = rows[:2000], rows[2000:]
    density = np.exp(log_joint(decoder, x)).reshape(181, 181)
    line[0].contourf(axis, axis, density, levels=np.linspace(0.05, 1, 10) * density.max(), cmap="Blues")
    evidence = np.mean([log_evidence(decoder, value) for value in new[:, 0]])
    line[0].set_title(f"exact: log p(x) = {evidence:.2f}")
    line[0].set_ylabel(f"{title}\nz₂")
    found = {
        "Gaussian": fit(decoder, train, "gaussian"),
        "flow": fit(decoder, train, Flow("realnvp", n_context=8), 8),
    }
    for ax, (name, detector) in zip(line[1:], found.items(), strict=True):
        noise = np.random.RandomState(1).standard_normal((3000, 1, 2)).astype("float32")
        draws = np.asarray(detector.model_.infer(np.array([[x]], "float32"), noise).z)[:, 0]
        ax.contour(axis, axis, density, levels=3, colors="lightgray", zorder=0)
        ax.scatter(*draws.T, s=2, alpha=0.4)
        ax.set_title(f"{name}: ELBO = {detector.score(new):.2f}")
        print(f"{title.split(':')[0]}, {name}: ELBO {detector.score(new):.3f}, log p(x) {evidence:.3f}")
for ax in axes[1]:
    ax.set_xlabel("z₁")
axes[0, 0].set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.6))
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=78)
plt.show()

# %%
# What next
# ---------
# - A flow in a model of your rows: ``VAEDetector(posterior="realnvp")``. A decoder that is learned adapts to
#   a Gaussian posterior, so less is gained than here; the benchmarks say how much.
# - Latent variables that are categories: ``plot_categories.py``.
