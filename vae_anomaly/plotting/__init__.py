"""Pictures of data, scores and detectors, each drawn on the axes you give or on new ones.

=========================  =================================================================
`training_curves`          the loss and its parts, epoch by epoch
`score_histogram`          anomaly scores and the threshold
`anomaly_counts`           anomalies at least among the most anomalous rows
`roc_curve`                anomalies found over false alarms, from labels
`precision_recall_curve`   true alarms over anomalies found, from labels
`top_anomalies`            the most anomalous rows, images or signals
`contributions`            what each column adds to one row's score
`reconstructions`          images or signals, what was expected, and where they are unusual
`samples`                  new images
`latent_scatter`           where rows lie in the latent space
`latent_manifold`          what each place in a latent space of two dimensions stands for
`network_summary`          the layers, their shapes and weights
=========================  =================================================================

matplotlib is an extra (``pip install 'vae-anomaly[plot]'``) and is imported by the first picture. A fitted
detector may stand at the end of a `Pipeline`; images are drawn as the detector receives them. Nothing is
shown and no setting of matplotlib's is changed: call ``matplotlib.pyplot.show()``, or save ``ax.figure``.
Legends stand beside curves and points: give a figure of your own ``layout="constrained"``, which makes room
for them. Anomaly scores are larger = more anomalous, the negative of ``score_samples``.
"""

from vae_anomaly.plotting.models import (
    latent_manifold,
    latent_scatter,
    network_summary,
    reconstructions,
    samples,
)
from vae_anomaly.plotting.rows import contributions, top_anomalies
from vae_anomaly.plotting.scores import (
    anomaly_counts,
    precision_recall_curve,
    roc_curve,
    score_histogram,
    training_curves,
)

__all__ = [
    "anomaly_counts",
    "contributions",
    "latent_manifold",
    "latent_scatter",
    "network_summary",
    "precision_recall_curve",
    "reconstructions",
    "roc_curve",
    "samples",
    "score_histogram",
    "top_anomalies",
    "training_curves",
]
