"""Learn what benign tumors look like, then find the malignant ones among new tumors.

A table in, the most unusual rows out. The measurements are real ones that scikit-learn bundles; nothing is
downloaded. Run it with::

    python examples/quickstart.py
"""

import time

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer

from vae_anomaly import VAEDetector
from vae_anomaly.datasets import load_tumors
from vae_anomaly.explanations import explain
from vae_anomaly.thresholds import Conformal

X, malignant = load_tumors(contamination=0.2, random_state=2)
known_benign = np.flatnonzero(malignant == 0)[:220]
X_train = X.iloc[known_benign]
X_new, y_new = X.drop(X_train.index), malignant.drop(X_train.index)
print(f"training on {len(X_train)} benign tumors, {X.shape[1]} measurements each")
print(f"judging {len(X_new)} new tumors, {y_new.sum()} of them malignant (the detector is not told)\n")

# At most 5 % of new benign tumors are to raise an alarm: the threshold is set on rows not trained on.
detector = VAEDetector(threshold=Conformal(false_alarm_rate=0.05), random_state=0)
pipeline = make_pipeline(PowerTransformer(), detector)
start = time.perf_counter()
pipeline.fit(X_train)
print(f"fitted in {time.perf_counter() - start:.1f} s, TensorFlow's start included")

anomaly_score = pd.Series(-pipeline.score_samples(X_new), index=X_new.index)
flagged = pipeline.predict(X_new) == -1
print(f"AUROC             {roc_auc_score(y_new, anomaly_score):.3f}")
print(f"average precision {average_precision_score(y_new, anomaly_score):.3f}  (chance: {y_new.mean():.3f})")
print(f"flagged           {flagged.sum()} tumors, {y_new[flagged].sum()} of them malignant")
print(f"false alarms      {(flagged & (y_new == 0)).sum()} of {(y_new == 0).sum()} benign (promised: 5 %)\n")

worst = anomaly_score.nlargest(10).index
print("The ten most unusual new tumors (anomaly score in nats, what adds most to it, the truth):")
shares = explain(pipeline, X_new.loc[worst])
report = pd.DataFrame({"score": anomaly_score[worst].round(1), "because of": shares.idxmax(axis=1)})
report["value"] = [X_new.at[row, column] for row, column in report["because of"].items()]
report["usually"] = X_train.median()[report["because of"]].to_numpy()
report["truth"] = y_new[worst].map({0: "benign", 1: "malignant"})
print(report.to_string())
