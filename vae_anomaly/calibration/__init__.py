r"""Calibration: scores of rows that the model has not been trained on, and what they say of a new row.

A flexible model gives its own training rows lower scores than new rows of the same kind, so a cut among
training scores makes more false alarms than it says. Rows held out of training have honest scores. Either a
fraction of the rows is set aside, or, where rows are few, every row is scored by a model that was trained
without it (cross-fitting): this uses all rows, and costs one more fit for each fold.
"""

from vae_anomaly.calibration.certificate import Certificate, certified_cut, certify
from vae_anomaly.calibration.conformal import p_values
from vae_anomaly.calibration.counting import anomaly_count_curve, count_anomalies
from vae_anomaly.calibration.groups import group_p_values
from vae_anomaly.calibration.labels import AnomalyProbability, precision_cut, recall_cut
from vae_anomaly.calibration.online import ADDIS, LORD, SAFFRON, OnlineSelection
from vae_anomaly.calibration.selection import discoveries
from vae_anomaly.calibration.shift import (
    CovariateShift,
    effective_rows,
    weighted_discoveries,
    weighted_p_values,
)

__all__ = [
    "ADDIS",
    "LORD",
    "SAFFRON",
    "AnomalyProbability",
    "Certificate",
    "CovariateShift",
    "OnlineSelection",
    "anomaly_count_curve",
    "certified_cut",
    "certify",
    "count_anomalies",
    "discoveries",
    "effective_rows",
    "group_p_values",
    "p_values",
    "precision_cut",
    "recall_cut",
    "weighted_discoveries",
    "weighted_p_values",
]
