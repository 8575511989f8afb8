r"""Monitoring: do new rows still look like the training rows?

Drift is not anomalies. Anomalies are few rows in the tail of the scores; after a drift, the scores of most
rows have moved, up or down. So the bulk of the scores and their tail are asked apart.

Everything here compares ranks among scores of rows that were not trained on (`calibration`), and follows from
one assumption alone: without drift, calibration rows and new rows are exchangeable. What does not change the
scores is not seen.
"""

from vae_anomaly.monitoring.batch import Drift, drift
from vae_anomaly.monitoring.evidence import Evidence
from vae_anomaly.monitoring.stream import Monitor

__all__ = ["Drift", "Evidence", "Monitor", "drift"]
