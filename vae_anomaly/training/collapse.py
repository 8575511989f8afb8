r"""Collapse: models whose reconstructions are all alike.

A model whose posteriors are all like its prior knows nothing of a row, and reconstructs every row as the mean
one (Bowman et al. 2016, "Generating sentences from a continuous space"). How much of the variance of rows

.. math:: \frac{\sum_j \mathrm{Var}_i\, \hat x_j(\bar z(x_i))}{\sum_j \mathrm{Var}_i\, x_{ij}}

their reconstructions at the centers of their posteriors have was .15 to .98 where something had been learned,
and at most .006 where nothing had (`benchmarks/results/trials.md`). The KL does not tell these apart, and
neither do active units (Burda et al. 2016, "Importance weighted autoencoders"): posteriors that follow the
noise of training rows have many nats and many active units.
"""

from __future__ import annotations

import math

import numpy as np

from vae_anomaly.core.backend import tf
from vae_anomaly.core.rows import Rows, any_missing
from vae_anomaly.engine.programs import architecture_of
from vae_anomaly.model.states import ModelState

__all__ = ["has_collapsed", "reconstructed_variance"]

# Of the variance of rows.
_MOST_ALIKE = 0.01
_ROWS_TO_SEE, _NUMBERS_TO_SEE = 256, 2**21


def has_collapsed(state: ModelState, rows: Rows) -> bool:
    """Whether reconstructions of these rows, or of as many as it takes, are all alike."""
    n_rows = max(2, min(_ROWS_TO_SEE, _NUMBERS_TO_SEE // rows.shape[1]))
    return reconstructed_variance(state, rows[:n_rows]) < _MOST_ALIKE


def reconstructed_variance(state: ModelState, rows: Rows) -> float:
    """The variance of reconstructions as a fraction of that of the rows; NaN if these do not vary."""
    architecture = architecture_of(state)
    template = architecture.template
    vae = template.incomplete(missing_counts=False) if any_missing(rows) else template
    middle = tf.zeros((1, 1, architecture.noise_width))
    with architecture.holding(tf.convert_to_tensor(np.asarray(state.trainable)), state.non_trainable):
        parameters = vae.infer(tf.convert_to_tensor(rows), middle).parameters
        expected = template.likelihood.mean(parameters)[0].numpy()
    missing = np.isnan(rows)
    reconstructed, given = (
        float(np.ma.array(values, mask=missing, dtype=float).var(axis=0).sum()) for values in (expected, rows)
    )
    return reconstructed / given if given > 0 else math.nan
