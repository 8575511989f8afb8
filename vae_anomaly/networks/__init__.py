"""Networks: specifications that build an encoder and a decoder (a user's own models: `keras_network`).

A network is a scikit-learn style parameter object: it holds hyperparameters, can be cloned, printed
and grid-searched (``network__hidden_units``), and builds its Keras models only when asked. It knows
layers and shapes; it does not know what its raw outputs mean (the likelihood does).

Rows in, rows out: an encoder takes ``(n_rows, n_features)`` and returns ``[z_mean, z_log_var]``, both
``(n_rows, latent_dim)``, or whatever else the posterior wants; a decoder takes ``(n_rows, latent_dim)`` and
returns ``(n_rows, n_features * n_params)``, the parameters of a feature next to each other.

To add one: subclass `Network`, write ``build``, and pass an instance as ``network=``.
"""

from __future__ import annotations

from vae_anomaly.networks.base import Network, initializer_of
from vae_anomaly.networks.conv import ConvNetwork
from vae_anomaly.networks.dense import DenseNetwork

__all__ = ["NETWORKS", "ConvNetwork", "DenseNetwork", "Network", "initializer_of"]

#: Every network that has a name.
NETWORKS: dict[str, type[Network]] = {"dense": DenseNetwork, "conv": ConvNetwork}


def resolve(network: str | Network) -> Network:
    """The network with this name, or the instance itself."""
    if not isinstance(network, str):
        return network
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {['auto', *NETWORKS]} or a Network; received {network!r}.")
    return NETWORKS[network]()
