"""The convolutional settings of "Variational Autoencoder with TensorFlow V" on MNIST's test digits.

The document trains filters 32-64-128 with kernels of 3, strides 1-2-2, LeakyReLU and two latents for 6 epochs
of 60,000 digits in batches of 128, and reports a mean binary cross-entropy of 0.2004 for each pixel. Here are
the same settings and as many steps, on 9,000 digits; the cross-entropy is that of 1,000 others. It takes the
file with arrays ``X`` (uint8, 28 x 28) and ``y``::

    python benchmarks/published.py mnist_t10k.npz

The document adds 2e-4 times a KL to a *mean* over pixels. Its KL is a mean over the two latents without the
1/2, which is our sum. Our objective is a sum over pixels, 784 times as much, so that its weight is ``beta`` =
784 * 2e-4 = 0.157. The decoder was measured with one layer more than the document's, before there was
``decoder_filters=(64, 32)``.
"""

import argparse
import math
import time

import numpy as np
from sklearn.model_selection import train_test_split

from vae_anomaly import ConvNetwork, VAEDetector
from vae_anomaly.core.backend import keras

N_PIXELS = 28 * 28
BATCH = 128
N_STEPS = 6 * round(60_000 / BATCH)


def detector(epochs):
    # LeakyReLU's slope in the document's Keras; the name "leaky_relu" stands for 0.2.
    network = ConvNetwork(
        filters=(32, 64, 128),
        kernel_sizes=3,
        strides=(1, 2, 2),
        dense_units=(),
        activation=keras.layers.LeakyReLU(0.3),
    )
    return VAEDetector(
        network,
        latent_dim=2,
        likelihood="bernoulli",
        score="reconstruction_error",
        beta=2e-4 * N_PIXELS,
        epochs=epochs,
        batch_size=BATCH,
        members=1,
        validation_fraction=0.0,
        random_state=0,
        verbose=1,
    )


def measured(path, n_steps):
    images = np.load(path)["X"] / 255
    train, test = train_test_split(images, test_size=1000, random_state=0)
    epochs = max(1, round(n_steps * BATCH / len(train)))
    start = time.perf_counter()
    fitted = detector(epochs).fit(train)
    seconds = time.perf_counter() - start
    return {
        "epochs": epochs,
        "steps": epochs * math.ceil(len(train) / BATCH),
        "minutes": round(seconds / 60),
        "test_bce": round(-float(fitted.score_samples(test).mean()) / N_PIXELS, 4),
        "test_bce_at_z_mean": round(cross_entropy(test, fitted.model_), 4),
        "training_bce": round(fitted.history_["reconstruction"][-1] / N_PIXELS, 4),
        "training_kl": round(fitted.history_["kl"][-1], 2),
        "training_kl_part": round(fitted.history_["kl"][-1] * 2e-4, 5),
    }


def cross_entropy(images, model):
    """Mean over pixels, with each image decoded from the mean of its posterior."""
    z_mean, _ = model.encode(images.reshape(len(images), -1).astype("float32"))
    (logits,) = (np.asarray(part) for part in model.decode(z_mean))
    rows = images.reshape(len(images), -1)
    return float((np.logaddexp(0, logits) - rows * logits).mean())


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("path", help="an .npz file with X of shape (10000, 28, 28), uint8")
    arguments.add_argument("--steps", type=int, default=N_STEPS)
    options = arguments.parse_args()
    for name, figure in measured(options.path, options.steps).items():
        print(f"{name:20} {figure}")


if __name__ == "__main__":
    main()
