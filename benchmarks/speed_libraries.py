"""The libraries that `speed.py` compares, each doing the same work in its own usual way.

Same layer widths, batch size, epochs and learning rate (Adam, 1e-3), no dropout; a Gaussian likelihood or the
squared error, plus the KL. Each adapter is made for one case, and imports its library when it is made.
"""

from __future__ import annotations

import importlib
import os
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np


class Case(NamedTuple):
    """The work."""

    n_rows: int
    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent_dim: int
    batch_size: int
    epochs: int
    n_scored: int
    filters: tuple[int, ...] = ()

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    def rows(self, n_rows: int, seed: int) -> np.ndarray:
        """Correlated columns with noise in float32, or images in [0, 1]."""
        rng = np.random.default_rng(seed)
        n_features = int(np.prod(self.shape))
        factors = rng.standard_normal((n_rows, 4), dtype=np.float32)
        loadings = np.random.default_rng(0).standard_normal((4, n_features), dtype=np.float32)
        X = factors @ loadings + 0.3 * rng.standard_normal((n_rows, n_features), dtype=np.float32)
        return (1 / (1 + np.exp(-X))).reshape(-1, *self.shape) if self.is_image else X


CASES = {
    "T1": Case(2_000, (10,), (64, 32), 4, 32, 50, 100_000),
    "T2": Case(20_000, (32,), (128, 64), 8, 128, 20, 100_000),
    "T3": Case(50_000, (256,), (512, 256), 32, 512, 5, 10_000),
    "I1": Case(5_000, (28, 28, 1), (128,), 16, 128, 5, 5_000, (32, 64)),
}
LEARNING_RATE = 1e-3
N_DRAWS = 10
# Peers that score in batches get large ones: their own defaults (Keras: 32 rows) are several times slower.
SCORED_AT_ONCE = 4096


class Library:
    """One way to train a VAE and score rows with it."""

    #: Draws of the latents that a score is averaged over.
    n_draws = N_DRAWS
    takes_images = False

    def __init__(self, case: Case) -> None:
        self.case = case

    def fit(self, X: np.ndarray) -> None:
        raise NotImplementedError

    def score(self, X: np.ndarray) -> np.ndarray:
        """One number a row."""
        raise NotImplementedError


class VaeAnomaly(Library):
    """The package of this repository."""

    takes_images = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.package = importlib.import_module("vae_anomaly")
        # Loaded by the first fit otherwise, which would count as part of it.
        backend = importlib.import_module("vae_anomaly.core.backend")
        _ = backend.keras.Model, backend.tf.float32

    def fit(self, X: np.ndarray) -> None:
        case = self.case
        if case.is_image:
            network = self.package.ConvNetwork(case.shape, filters=case.filters, dense_units=case.hidden)
        else:
            network = self.package.DenseNetwork(case.hidden)
        self.detector = self.package.VAEDetector(
            network=network,
            likelihood="gaussian",
            latent_dim=case.latent_dim,
            batch_size=case.batch_size,
            epochs=case.epochs,
            learning_rate=LEARNING_RATE,
            members=1,
            validation_fraction=0.0,
            random_state=0,
        ).fit(X)

    def score(self, X: np.ndarray) -> np.ndarray:
        return self.detector.score_samples(X)


class _PyOD(Library):
    module = name = ""
    n_draws = 1

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.kind = getattr(importlib.import_module(self.module), self.name)

    def architecture(self) -> dict[str, Any]:
        raise NotImplementedError

    def fit(self, X: np.ndarray) -> None:
        self.detector = self.kind(
            **self.architecture(),
            batch_size=self.case.batch_size,
            epoch_num=self.case.epochs,
            lr=LEARNING_RATE,
            dropout_rate=0.0,
            batch_norm=False,
            random_state=0,
            verbose=0,
        ).fit(X)

    def score(self, X: np.ndarray) -> np.ndarray:
        return self.detector.decision_function(X)


class PyODVAE(_PyOD):
    """PyOD's VAE, with the KL."""

    module, name = "pyod.models.vae", "VAE"

    def architecture(self) -> dict[str, Any]:
        return {
            "encoder_neuron_list": list(self.case.hidden),
            "decoder_neuron_list": list(self.case.hidden[::-1]),
            "latent_dim": self.case.latent_dim,
            "capacity": 1000.0,  # the default of 0 turns the KL off
        }


class PyODAutoEncoder(_PyOD):
    """PyOD's autoencoder."""

    module, name = "pyod.models.auto_encoder", "AutoEncoder"

    def architecture(self) -> dict[str, Any]:
        return {"hidden_neuron_list": [*self.case.hidden, self.case.latent_dim]}


class KerasVAE(Library):
    """A subclass of keras.Model with a train_step, as in Keras' own example of a VAE."""

    takes_images = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        self.keras: Any = importlib.import_module("keras")
        self.tf: Any = importlib.import_module("tensorflow")

    def _networks(self) -> tuple[Any, Any]:
        keras, case = self.keras, self.case
        layers = keras.layers
        rows = hidden = keras.Input(case.shape)
        for filters in case.filters:
            hidden = layers.Conv2D(filters, 3, 2, "same", activation="relu")(hidden)
        folded = hidden.shape[1:]
        if case.is_image:
            hidden = layers.Flatten()(hidden)
        for units in case.hidden:
            hidden = layers.Dense(units, activation="relu")(hidden)
        outputs = [layers.Dense(case.latent_dim)(hidden), layers.Dense(case.latent_dim)(hidden)]
        encoder = keras.Model(rows, outputs)
        z = hidden = keras.Input((case.latent_dim,))
        for units in reversed(case.hidden):
            hidden = layers.Dense(units, activation="relu")(hidden)
        if case.is_image:
            hidden = layers.Dense(int(np.prod(folded)), activation="relu")(hidden)
            hidden = layers.Reshape(folded)(hidden)
            for filters in reversed(case.filters):
                hidden = layers.Conv2DTranspose(filters, 3, 2, "same", activation="relu")(hidden)
            return encoder, keras.Model(z, layers.Conv2D(case.shape[-1], 3, padding="same")(hidden))
        return encoder, keras.Model(z, layers.Dense(case.shape[0])(hidden))

    def fit(self, X: np.ndarray) -> None:
        keras, tf = self.keras, self.tf
        encoder, decoder = self._networks()

        class VAE(keras.Model):
            def __init__(self):
                super().__init__()
                self.encoder, self.decoder = encoder, decoder

            def call(self, x):
                mean, log_var = self.encoder(x)
                z = mean + tf.exp(0.5 * log_var) * tf.random.normal(tf.shape(mean))
                return self.decoder(z)

            def train_step(self, x):
                with tf.GradientTape() as tape:
                    mean, log_var = self.encoder(x)
                    z = mean + tf.exp(0.5 * log_var) * tf.random.normal(tf.shape(mean))
                    error = tf.square(x - self.decoder(z))
                    reconstruction = tf.reduce_sum(error, axis=list(range(1, len(x.shape))))
                    kl = 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(log_var) - log_var - 1, axis=1)
                    loss = tf.reduce_mean(reconstruction + kl)
                gradients = tape.gradient(loss, self.trainable_weights)
                self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
                return {"loss": loss}

        keras.utils.set_random_seed(0)
        self.model = VAE()
        self.model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE))
        self.model.fit(X, batch_size=self.case.batch_size, epochs=self.case.epochs, verbose=0)

    def score(self, X: np.ndarray) -> np.ndarray:
        axes = tuple(range(1, X.ndim))
        errors = np.zeros(len(X))
        for _ in range(self.n_draws):
            errors += ((X - self.model.predict(X, batch_size=SCORED_AT_ONCE, verbose=0)) ** 2).sum(axis=axes)
        return errors / self.n_draws


class TorchLoop(Library):
    """The least code: tensors in memory, no DataLoader, no scaler, no checks."""

    takes_images = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.torch: Any = importlib.import_module("torch")

    def _networks(self) -> tuple[Any, Any]:
        nn, case = self.torch.nn, self.case

        def dense(widths: list[int]) -> list[Any]:
            pairs = pairwise(widths)
            return [layer for n_in, n_out in pairs for layer in (nn.Linear(n_in, n_out), nn.ReLU())]

        if not case.is_image:
            hidden = [*case.hidden]
            encoder = [*dense([case.shape[0], *hidden]), nn.Linear(hidden[-1], 2 * case.latent_dim)]
            decoder = [*dense([case.latent_dim, *hidden[::-1]]), nn.Linear(hidden[0], case.shape[0])]
            return nn.Sequential(*encoder), nn.Sequential(*decoder)
        height, width, channels = case.shape
        side = (height // 2 ** len(case.filters), width // 2 ** len(case.filters))
        convolutions, transposed = [], []
        for n_in, n_out in zip((channels, *case.filters[:-1]), case.filters, strict=True):
            convolutions += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.ReLU()]
        depths = [case.filters[-1], *case.filters[::-1]]
        for n_in, n_out in pairwise(depths):
            transposed += [nn.ConvTranspose2d(n_in, n_out, 3, 2, 1, output_padding=1), nn.ReLU()]
        flat = case.filters[-1] * side[0] * side[1]
        encoder = [*convolutions, nn.Flatten(), *dense([flat, *case.hidden])]
        encoder.append(nn.Linear(case.hidden[-1], 2 * case.latent_dim))
        decoder = [*dense([case.latent_dim, *case.hidden[::-1], flat])]
        decoder += [nn.Unflatten(1, (case.filters[-1], *side)), *transposed]
        decoder.append(nn.Conv2d(case.filters[0], channels, 3, padding=1))
        return nn.Sequential(*encoder), nn.Sequential(*decoder)

    def _tensor(self, X: np.ndarray) -> Any:
        x = self.torch.from_numpy(X)
        return x.permute(0, 3, 1, 2).contiguous() if self.case.is_image else x

    def fit(self, X: np.ndarray) -> None:
        torch, case = self.torch, self.case
        torch.manual_seed(0)
        self.encoder, self.decoder = self._networks()
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizer = torch.optim.Adam(weights, LEARNING_RATE)
        x = self._tensor(X)
        for _ in range(case.epochs):
            for chosen in torch.randperm(len(x)).split(case.batch_size):
                batch = x[chosen]
                mean, log_var = self.encoder(batch).chunk(2, dim=1)
                z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
                reconstruction = (batch - self.decoder(z)).square().flatten(1).sum(1)
                kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
                loss = (reconstruction + kl).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def score(self, X: np.ndarray) -> np.ndarray:
        torch = self.torch
        parts = []
        with torch.no_grad():
            for x in self._tensor(X).split(SCORED_AT_ONCE):
                mean, log_var = self.encoder(x).chunk(2, dim=1)
                scale = torch.exp(0.5 * log_var)
                errors = torch.zeros(len(x))
                for _ in range(self.n_draws):
                    z = mean + scale * torch.randn_like(mean)
                    errors += (x - self.decoder(z)).square().flatten(1).sum(1)
                parts.append(errors / self.n_draws)
        return torch.cat(parts).numpy()


class AlibiDetect(Library):
    """OutlierVAE; runs where alibi-detect is installed."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        self.module = importlib.import_module("alibi_detect.od")
        self.tf: Any = importlib.import_module("tensorflow")

    def fit(self, X: np.ndarray) -> None:
        keras, case = self.tf.keras, self.case

        def network(widths: list[int], n_in: int, last: list[Any]) -> Any:
            inputs = [keras.layers.InputLayer((n_in,))]
            return keras.Sequential(inputs + [keras.layers.Dense(units, "relu") for units in widths] + last)

        self.detector = self.module.OutlierVAE(
            threshold=0.0,
            score_type="mse",
            encoder_net=network(list(case.hidden), case.shape[0], []),
            decoder_net=network(
                list(case.hidden[::-1]), case.latent_dim, [keras.layers.Dense(case.shape[0])]
            ),
            latent_dim=case.latent_dim,
            samples=self.n_draws,
        )
        self.detector.fit(
            X,
            optimizer=keras.optimizers.Adam(LEARNING_RATE),
            epochs=case.epochs,
            batch_size=case.batch_size,
            verbose=False,
        )

    def score(self, X: np.ndarray) -> np.ndarray:
        return self.detector.score(X, batch_size=SCORED_AT_ONCE)[1]


class _ScikitLearn(Library):
    module = name = ""
    settings: ClassVar[dict[str, Any]] = {}
    n_draws = 0

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.kind = getattr(importlib.import_module(self.module), self.name)

    def fit(self, X: np.ndarray) -> None:
        self.detector = self.kind(**self.settings).fit(X)

    def score(self, X: np.ndarray) -> np.ndarray:
        return -self.detector.score_samples(X)


class IForest(_ScikitLearn):
    """scikit-learn's isolation forest."""

    module, name, settings = "sklearn.ensemble", "IsolationForest", {"random_state": 0}


class LOF(_ScikitLearn):
    """scikit-learn's local outlier factor."""

    module, name, settings = "sklearn.neighbors", "LocalOutlierFactor", {"novelty": True}


LIBRARIES: dict[str, type[Library]] = {
    "vae_anomaly": VaeAnomaly,
    "PyOD VAE": PyODVAE,
    "PyOD AutoEncoder": PyODAutoEncoder,
    "Keras": KerasVAE,
    "torch loop": TorchLoop,
    "alibi-detect": AlibiDetect,
    "IForest": IForest,
    "LOF": LOF,
}
