"""Fitting: what a fit decides once, before it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from vae_anomaly import likelihoods, networks, scoring
from vae_anomaly.core.rows import with_channels
from vae_anomaly.data.tables import Table
from vae_anomaly.ensemble.members import ProgressStore, Seeds
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.networks import Network
from vae_anomaly.scoring import Score

__all__ = ["draw_seeds", "resolve_parts"]


def draw_seeds(random_state: Any, n_members: int, store: ProgressStore | None) -> tuple[int, list[Seeds]]:
    """What decides the draws, and what decides each member's training."""
    rng = check_random_state(random_state)
    drawn = rng.randint(np.iinfo(np.int32).max, size=1 + 4 * n_members)
    if store is not None:
        drawn = store.seeds(drawn, random_state)
    draws_seed, *seeds = map(int, drawn)
    return draws_seed, [Seeds(*four) for four in np.reshape(seeds, (-1, 4)).tolist()]


def resolve_parts(
    network: str | Network,
    likelihood: Any,
    score: str | Score,
    table: Table | None,
    image_shape: tuple[int, ...] | None,
) -> tuple[Network, Likelihood]:
    """The network and the likelihood to use: checked copies, out of reach of a later set_params."""
    if network == "auto":
        network = "dense" if image_shape is None else "conv"
    network = networks.resolve(network)
    network._validate_params()
    network = network.for_images(image_shape and with_channels(image_shape)).snapshot()
    if table is not None:
        likelihood = table.likelihood
    elif isinstance(likelihood, (dict, list, tuple)) or likelihood == "mixed":
        raise ValueError(
            f"likelihood={likelihood!r} is of a table's columns, and X holds images: give them one "
            "likelihood, such as 'unit_gaussian', 'bernoulli' or 'gaussian'."
        )
    elif likelihood == "auto":
        likelihood = network.default_likelihood(image_shape)
    likelihood = likelihoods.resolve(likelihood).snapshot()
    likelihood._validate_params()
    scoring.resolve_name(score, 1, network.shape_of_images(image_shape))
    return network, likelihood
