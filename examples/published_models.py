"""The models of five texts on variational autoencoders in Keras, each as a `VAEDetector`.

The texts train on MNIST's 60,000 digits of 28 x 28 pixels; here it is scikit-learn's 1,797 digits of 8 x 8,
so that nothing is downloaded, and Adam for all. `MODELS` is the table.

The texts weigh the KL against the reconstruction in different ways. Ours is the evidence lower bound: the
error summed over pixels, and ``beta`` times KL = 1/2 sum(z_mean^2 + exp(z_log_var) - 1 - z_log_var), summed
over latents. With d pixels and k latents, each text's own loss is ours, up to a factor, with this ``beta``:

===============================  ============================  ==============================  ============
text                             its error                     its KL                          beta
===============================  ============================  ==============================  ============
"How can a sampling layer ..."   mean over pixels              1/2 sum over latents            d
Tiao's tutorial                  sum over pixels               1/2 sum over latents            1
Generative Deep Learning, 5.2    cross-entropy or squared      1/2 sum over latents            1, against a
                                 error                                                         sum; d, against
                                                                                               a mean
"... with TensorFlow", III, V    mean over pixels              2e-4 times the mean over        4e-4 d / k
                                                               latents, without the 1/2
"Implementing VAEs in Keras"     d times the mean over pixels  1/2 mean over latents           1 / k
===============================  ============================  ==============================  ============

The convolutional models below have their text's ``beta``; the others have 1. The first text's would be 64
here: with it the KL falls to 0, and no latent is used. What else differs:

- RMSprop, in Tiao's tutorial: the library trains with Adam, at a falling learning rate. What that tutorial
  names as next steps is left out: other divergences than the KL, implicit posteriors, Gumbel-softmax and
  normalizing flows.
- The convolutional text ends its decoder in a sigmoid; here the likelihood has it. Our dense layer in front
  of the transposed convolutions is followed by the activation, as all others are.

``benchmarks/published.py`` trains the convolutional one on MNIST. Run this with::

    python examples/published_models.py
"""

import os
import time
from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector
from vae_anomaly.likelihoods import Gaussian

N_STEPS = 12 if os.environ.get("VAE_ANOMALY_QUICK") else 2000

images, digit = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8) / 16
X_train, X_test = train_test_split(images, test_size=0.2, random_state=0, stratify=digit)
n_pixels = 8 * 8

# Pixels as probabilities: binary cross-entropy, summed over the pixels of an image.
bce: dict[str, Any] = {"likelihood": "bernoulli"}
# Of a Gaussian with the variance 1/2, the negative log-density is the squared error, plus a constant.
squared_error: dict[str, Any] = {"likelihood": Gaussian(scale=0.5**0.5), "scaler": None}

convolutions: dict[str, Any] = {
    "filters": (32, 64, 128),
    "kernel_sizes": 3,
    "strides": (1, 2, 2),
    "dense_units": (),
    "decoder_filters": (64, 32),  # and 1, for the pixels
}


def text_beta(latent_dim: int) -> float:
    """The convolutional text's weight of the KL: 2e-4, with a mean over pixels and twice one over latents."""
    return 2e-4 * n_pixels * 2 / latent_dim


MODELS = {
    '"How can a sampling layer be implemented in Keras?"': {
        "784-64-32": VAEDetector(DenseNetwork((64,)), latent_dim=32, **bce),
    },
    "Tiao, A tutorial on variational autoencoders with a concise Keras implementation": {
        "784-256-2": VAEDetector(DenseNetwork((256,)), latent_dim=2, batch_size=100, **bce),
        "linear: logistic factor analysis": VAEDetector(DenseNetwork(()), latent_dim=2, **bce),
        "importance-weighted bound": VAEDetector(
            DenseNetwork((256,)), latent_dim=2, objective="iwae", n_training_draws=5, **bce
        ),
    },
    "Generative Deep Learning, 5.2": {
        "784-512-256-2, cross-entropy": VAEDetector(DenseNetwork((512, 256)), latent_dim=2, **bce),
        "784-512-256-2, squared error": VAEDetector(DenseNetwork((512, 256)), latent_dim=2, **squared_error),
    },
    "Variational Autoencoder with TensorFlow, III and V": {
        "LeakyReLU, 2 latents": VAEDetector(
            ConvNetwork(activation="leaky_relu", **convolutions), latent_dim=2, beta=text_beta(2), **bce
        ),
        "ReLU, batch normalization, 16 latents": VAEDetector(
            ConvNetwork(batch_normalization=True, **convolutions), latent_dim=16, beta=text_beta(16), **bce
        ),
        "SELU with AlphaDropout, 16 latents": VAEDetector(
            ConvNetwork(activation="selu", dropout=0.1, **convolutions),
            latent_dim=16,
            beta=text_beta(16),
            **bce,
        ),
    },
    "Implementing variational autoencoders (VAEs) in Keras": {
        "784-128-64-10": VAEDetector(DenseNetwork((128, 64)), latent_dim=10, batch_size=32, **bce),
    },
}

print(f"{len(X_train)} digits to train on, {len(X_test)} others to measure on, about {N_STEPS} steps each;")
print("error: cross-entropy (nats) or squared error for each pixel; KL: nats for each image\n")
for text, detectors in MODELS.items():
    print(text)
    for name, detector in detectors.items():
        batch_size = 128 if detector.batch_size == "auto" else detector.batch_size
        epochs = max(1, round(N_STEPS * batch_size / len(X_train)))
        # One model on all images, and one draw of z for each image, as the texts measure.
        detector.set_params(members=1, validation_fraction=0.0, score="reconstruction_error", n_draws=1)
        detector.set_params(epochs=epochs, batch_size=batch_size, random_state=0)
        start = time.perf_counter()
        detector.fit(X_train)
        seconds = time.perf_counter() - start
        error = -detector.score_samples(X_test).mean() / n_pixels
        print(f"  {name:40} error {error:.4f}  KL {detector.history_['kl'][-1]:5.2f}  ({seconds:.1f} s)")

new = detector.sample(3, random_state=0, noise=True)
print("\nThree new digits, drawn from the last model:")
for row in range(8):
    print("   ".join("".join("@@" if pixel else "  " for pixel in image[row]) for image in new))
