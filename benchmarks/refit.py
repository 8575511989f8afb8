"""What a refit costs beside PyOD's VAE: the same work, in one run, on one core.

2,000 × 10 rows, hidden layers 64-32, 4 latents, batch 32, 50 epochs, Adam 1e-3, Gaussian likelihood against
squared error. PyOD's ``fit`` also scores its training rows, and so does ours. Needs the extra ``bench``::

    taskset -c 0 python benchmarks/refit.py
"""

import argparse
import json
import statistics
import time
import warnings

import numpy as np

from vae_anomaly import DenseNetwork, VAEDetector


def ours(epochs):
    return VAEDetector(
        network=DenseNetwork((64, 32)),
        latent_dim=4,
        batch_size=32,
        epochs=epochs,
        learning_rate=1e-3,
        n_draws=1,
        random_state=0,
    )


def pyods(epochs):
    from pyod.models.vae import VAE

    return VAE(
        encoder_neuron_list=[64, 32],
        decoder_neuron_list=[32, 64],
        latent_dim=4,
        batch_size=32,
        epoch_num=epochs,
        lr=1e-3,
        dropout_rate=0.0,
        batch_norm=False,
        capacity=1000.0,
        random_state=0,
        verbose=0,
    )


def seconds(make, epochs, X):
    detector = make(epochs)
    start = time.perf_counter()
    detector.fit(X)
    return time.perf_counter() - start


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--epochs", type=int, default=50)
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    X = np.random.RandomState(0).normal(size=(2000, 10))
    figures = {"first fit": seconds(ours, options.epochs, X), "refit": [], "pyod": []}
    for _ in range(options.repeats):
        figures["refit"].append(seconds(ours, options.epochs, X))
        figures["pyod"].append(seconds(pyods, options.epochs, X))
    refit, pyod = statistics.median(figures["refit"]), statistics.median(figures["pyod"])
    print(json.dumps({"seconds": figures, "refit / pyod": round(refit / pyod, 4)}))


if __name__ == "__main__":
    main()
