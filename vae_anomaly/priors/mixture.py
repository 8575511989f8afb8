"""Priors that are mixtures: of Gaussians, and of posteriors."""

from __future__ import annotations

import math
from numbers import Integral
from typing import ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from vae_anomaly.core.backend import keras
from vae_anomaly.core.types import Constraints, KerasModel, Tensor
from vae_anomaly.core.weights import Weight, Weights
from vae_anomaly.posteriors import Context, Gaussian, Posterior
from vae_anomaly.priors.base import Prior
from vae_anomaly.priors.standard import Standard

__all__ = ["AggregatePosterior", "Mixture", "VampPrior"]


class MixturePrior(Prior):
    """Base class of the mixtures of posteriors, wherever their contexts come from."""

    def component(self, vae: KerasModel) -> tuple[Posterior, Weights]:
        """The posterior that the components are of, and its weights."""
        return Gaussian(), {}

    def components(self, weights: Weights, vae: KerasModel) -> Context:
        """The components' contexts, tensors of shape (n_components, ...)."""
        raise NotImplementedError

    def log_weights(self, weights: Weights) -> Tensor:
        """Logarithms of the components' weights, of shape (n_components,) or one number."""
        raise NotImplementedError

    def log_prob(self, z: Tensor, weights: Weights, vae: KerasModel) -> Tensor:
        posterior, own = self.component(vae)
        log_prob = posterior.log_prob(z[..., None, :], self.components(weights, vae), own)
        return keras.ops.logsumexp(log_prob + self.log_weights(weights), axis=-1)

    def sample(self, n_samples: int, seed: int, weights: Weights, vae: KerasModel) -> Tensor:
        posterior, own = self.component(vae)
        context, rng = self.components(weights, vae), np.random.RandomState(seed)
        shares = np.exp(np.asarray(self.log_weights(weights), dtype=float)) * np.ones(context[0].shape[0])
        chosen = rng.choice(len(shares), size=n_samples, p=shares / shares.sum())
        noise = rng.standard_normal((1, n_samples, vae.latent_dim)).astype(np.float32)
        of_samples = tuple(keras.ops.take(values, chosen, axis=0) for values in context)
        return posterior.sample(of_samples, keras.ops.convert_to_tensor(noise), own)[0][0]


class Mixture(MixturePrior):
    r"""A mixture of Gaussians, learned with the model (Dilokthanakul et al. 2016).

    .. math:: p(z) = \sum_k \pi_k \, N(z; \mu_k, \operatorname{diag}(\sigma_k^2))

    The means start at draws from N(0, I), with equal weights and variances of 1.

    Parameters
    ----------
    n_components : int, default=8

    References
    ----------
    Dilokthanakul et al. 2016, "Deep unsupervised clustering with Gaussian mixture variational autoencoders".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.priors import Mixture
    >>> detector = VAEDetector(prior=Mixture(8))
    """

    name = "mixture"
    _parameter_constraints: ClassVar[Constraints] = {
        "n_components": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(self, n_components: int = 8) -> None:
        self.n_components = n_components

    def weights(self, latent_dim: int, n_inputs: int) -> dict[str, Weight]:
        shape = (self.n_components, latent_dim)
        return {
            "mean": Weight(shape, "normal"),
            "log_var": Weight(shape),
            "logits": Weight((self.n_components,)),
        }

    def components(self, weights: Weights, vae: KerasModel) -> Context:
        return Gaussian().context((weights["mean"], weights["log_var"]))

    def log_weights(self, weights: Weights) -> Tensor:
        return keras.ops.log_softmax(weights["logits"])


class _MixtureOfPosteriors(MixturePrior):
    """A mixture of posteriors q(z|u), equally weighted, of rows u that are among its weights."""

    def __init__(self, n_components: int) -> None:
        self.n_components = n_components

    def check(self, posterior: Posterior, latent_dim: int) -> None:
        super().check(posterior, latent_dim)
        if not posterior.has_log_prob:
            raise ValueError(
                f"prior={self!r} is a mixture of posteriors, and asks for the density of any z under each; "
                f"posterior={posterior!r} does not know it: set posterior='gaussian', or choose another "
                "prior, such as Mixture(8)."
            )

    def component(self, vae: KerasModel) -> tuple[Posterior, Weights]:
        return vae.posterior, vae.weights_of("posterior")

    def components(self, weights: Weights, vae: KerasModel) -> Context:
        context: Context = vae.context(weights["inputs"])
        return context

    def log_weights(self, weights: Weights) -> Tensor:
        return -math.log(self.n_components)


class VampPrior(_MixtureOfPosteriors):
    r"""A mixture of the posteriors of pseudo-inputs, which are learned (Tomczak & Welling 2018).

    .. math:: p(z) = \frac1K \sum_k q(z|u_k)

    The pseudo-inputs :math:`u_k` are inputs of the encoder, and start at random training rows. The encoder
    is asked for them wherever p(z) is needed, once for each step or tile of rows.

    Parameters
    ----------
    n_components : int, default=50
        Pseudo-inputs.

    References
    ----------
    Tomczak & Welling 2018, "VAE with a VampPrior".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.priors import VampPrior
    >>> detector = VAEDetector(prior=VampPrior(50))
    """

    name = "vamp"
    _parameter_constraints: ClassVar[Constraints] = {
        "n_components": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(self, n_components: int = 50) -> None:
        super().__init__(n_components)

    def weights(self, latent_dim: int, n_inputs: int) -> dict[str, Weight]:
        return {"inputs": Weight((self.n_components, n_inputs), "training_rows")}


class AggregatePosterior(_MixtureOfPosteriors):
    r"""The mixture of the posteriors of a sample of training rows (Hoffman & Johnson 2016).

    .. math:: p(z) = \frac1K \sum_{k} q(z|x_k)

    The mixture of the posteriors of all rows is the prior with the greatest ELBO. The model is trained with
    the standard prior, and this one takes its place wherever a bound, a score, ``val_loss`` or a sample is
    asked for: rows in a prior that is trained with them would be learned by heart, at a divergence of at most
    log K. The rows :math:`x_k` are complete ones, drawn at random. Each finds its own posterior in the prior,
    and scores lower for it than a new row, by at most log K.

    Parameters
    ----------
    n_components : int, default=200
        Rows in the sample.

    References
    ----------
    Hoffman & Johnson 2016, "ELBO surgery: yet another way to carve up the variational evidence lower bound".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.priors import AggregatePosterior
    >>> detector = VAEDetector(prior=AggregatePosterior(200))
    """

    name = "aggregate"
    _parameter_constraints: ClassVar[Constraints] = {
        "n_components": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(self, n_components: int = 200) -> None:
        super().__init__(n_components)

    def weights(self, latent_dim: int, n_inputs: int) -> dict[str, Weight]:
        return {"inputs": Weight((self.n_components, n_inputs), "training_rows", trainable=False)}

    def in_training(self) -> Prior:
        return Standard()
