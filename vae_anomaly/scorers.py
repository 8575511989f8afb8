"""Scorers for `GridSearchCV` and friends, for labels in any convention.

scikit-learn passes a detector's ``decision_function`` (higher = more normal) straight to a metric, so that
``scoring="roc_auc"`` with 1 = anomaly silently maximizes the inverse of what is meant. These scorers know
which label is the anomaly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from vae_anomaly.core.types import Estimator, Flags, Floats, MatrixLike

__all__ = ["AnomalyScorer", "average_precision", "is_anomaly", "roc_auc"]


class AnomalyScorer:
    """Score a detector by a ranking metric against labels.

    Parameters
    ----------
    metric : callable ``(is_anomaly, anomaly_score) -> float``
        Such as `sklearn.metrics.roc_auc_score`; larger is better.
    anomaly_label : scalar or "auto", default="auto"
        The label of anomalies. "auto" reads 1 of {0, 1}, -1 of {-1, 1} and True of booleans; any other
        labels need it said.

    Raises
    ------
    ValueError
        When called on labels that "auto" cannot read, or that hold only one class.

    Examples
    --------
    >>> from sklearn.metrics import roc_auc_score
    >>> from vae_anomaly.scorers import AnomalyScorer
    >>> scoring = AnomalyScorer(roc_auc_score, anomaly_label="fraud")
    """

    def __init__(self, metric: Callable[[Flags, Floats], float], anomaly_label: object = "auto") -> None:
        self.metric = metric
        self.anomaly_label = anomaly_label

    def __call__(self, estimator: Estimator, X: MatrixLike, y: npt.ArrayLike) -> float:
        """The metric of ``estimator`` on ``X``, as a Python float.

        Parameters
        ----------
        estimator : fitted outlier detector, or a Pipeline that ends in one
        X : rows
        y : labels of shape (n_rows,)
        """
        truth = is_anomaly(y, self.anomaly_label)
        return float(self.metric(truth, -estimator.decision_function(X)))

    def __repr__(self) -> str:
        name = getattr(self.metric, "__name__", repr(self.metric))
        return f"AnomalyScorer({name}, anomaly_label={self.anomaly_label!r})"


def is_anomaly(y: npt.ArrayLike, anomaly_label: object = "auto") -> Flags:
    """Which rows the labels call anomalies.

    Parameters
    ----------
    y : array of shape (n_rows,)
        Labels of two classes.
    anomaly_label : scalar or "auto", default="auto"
        As in `AnomalyScorer`.

    Returns
    -------
    bool array of shape (n_rows,)

    Raises
    ------
    ValueError
        For labels that "auto" cannot read, that hold only one class, or none of which is ``anomaly_label``.

    Examples
    --------
    >>> from vae_anomaly.scorers import is_anomaly
    >>> is_anomaly([1, -1, 1])
    array([False,  True, False])
    """
    y = np.asarray(y)
    labels = np.unique(y).tolist()
    if len(labels) != 2:
        raise ValueError(f"expected labels of two classes, normal and anomaly; received {labels}.")
    if isinstance(anomaly_label, str) and anomaly_label == "auto":
        if labels not in ([0, 1], [-1, 1]):
            raise ValueError(
                f"cannot tell which of the labels {labels} is the anomaly: pass it as anomaly_label, as in "
                "AnomalyScorer(roc_auc_score, anomaly_label=...)."
            )
        anomaly_label = 1 if labels == [0, 1] else -1
    elif anomaly_label not in labels:
        raise ValueError(f"anomaly_label={anomaly_label!r} is none of the labels {labels}.")
    return np.asarray(y == anomaly_label)


#: Area under the ROC curve: the chance that an anomaly scores above a normal row.
roc_auc = AnomalyScorer(metrics.roc_auc_score)

#: Average precision: the area under the precision-recall curve of the anomalies.
average_precision = AnomalyScorer(metrics.average_precision_score)
