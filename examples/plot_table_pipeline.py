"""
Which value in a table is wrong?
================================

Records of patients with diabetes, which scikit-learn bundles: age, sex, body mass and blood values. In some
new records one value is replaced by that of another patient: a slip of data entry, which no check of a single
column can see. A pipeline finds the records and names the column. Nothing is downloaded. Run it with::

    python examples/plot_table_pipeline.py
"""

import os
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer

from vae_anomaly import VAEDetector, plotting
from vae_anomaly.explanations import explain
from vae_anomaly.thresholds import Conformal

# A quick mode, to check that the script runs: its pictures show nothing of interest.
quick: dict[str, Any] = {"epochs": 2} if os.environ.get("VAE_ANOMALY_QUICK") else {}

# %%
# Records, some of them with a wrong value
# ----------------------------------------
# Half of the records are for training. In a third of the others, one blood value is exchanged: that of
# another patient, at least one standard deviation away, so that something is wrong indeed.
names = {"s1": "cholesterol", "s2": "LDL", "s3": "HDL", "s4": "cholesterol / HDL", "s5": "log triglycerides"}
patients = load_diabetes(as_frame=True, scaled=False).data.rename(columns={**names, "s6": "glucose"})
patients["sex"] = patients["sex"].map({1: "a", 2: "b"})
train, new = train_test_split(patients, test_size=0.5, random_state=0)
new = new.copy()

rng = np.random.default_rng(0)
wrong = pd.Series("", index=new.index)
for row in rng.choice(new.index, len(new) // 3, replace=False):
    column = rng.choice(list(names.values()))
    own, others = patients.at[row, column], patients[column]
    new.at[row, column] = rng.choice(others[(others - own).abs() > others.std()])
    wrong[row] = column
is_wrong = wrong != ""
print(f"{len(train)} records to train on; {len(new)} to judge, {is_wrong.sum()} of them with a wrong value\n")

# %%
# The pipeline
# ------------
# Transformers for each kind of column, then the detector, whose threshold keeps a promise: at most 10 % of
# correct new records raise an alarm, on average.
promised = 0.1
numbers = patients.columns.drop("sex")
columns = make_column_transformer((PowerTransformer(), numbers), (OneHotEncoder(drop="if_binary"), ["sex"]))
detector = VAEDetector(
    threshold=Conformal(false_alarm_rate=promised), calibration=0.25, random_state=0, **quick
)
pipeline = make_pipeline(columns, detector).fit(train)

scores = pd.Series(-pipeline.score_samples(new), index=new.index)
alarm = pipeline.predict(new) == -1
print(f"AUROC: {roc_auc_score(is_wrong, scores):.3f}")
print(f"wrong records found: {alarm[is_wrong].sum()} of {is_wrong.sum()}")
print(f"false alarms: {alarm[~is_wrong].sum()} of {(~is_wrong).sum()} ({promised:.0%} promised)")
ax = plotting.score_histogram(pipeline, new, is_wrong)
ax.set_title("New records: correct (normal) and with one wrong value (anomaly)")
plt.show()

# %%
# Which column is it?
# -------------------
# `explain` divides each score among the columns that the pipeline receives: what several transformed columns
# make of one is summed. The largest share should be that of the exchanged value.
shares = explain(pipeline, new)
found = new.index[alarm & is_wrong]
named = shares.loc[found].idxmax(axis=1)
right = named == wrong[found]
print(f"the largest share is that of the wrong value: {right.mean():.0%} of the wrong records found")
two = shares.loc[found].rank(axis=1, ascending=False)
among_two = np.mean([two.at[row, wrong[row]] <= 2 for row in found])
print(f"it is among the largest two: {among_two:.0%}; by guessing: {2 / shares.shape[1]:.0%}")

# %%
# The record with the highest score:
worst = scores.idxmax()
print(f"\nrecord {worst}: wrong is {wrong[worst] or 'nothing'}, by the detector {shares.loc[worst].idxmax()}")
ax = plotting.contributions(pipeline, new.loc[[worst]])
ax.set_title(f"Record {worst}, score {scores[worst]:.0f} nats; wrong: {wrong[worst] or 'nothing'}")
plt.show()

# %%
# And the ten most unusual records, each with the columns that make it so:
plotting.top_anomalies(pipeline, new)
plt.show()

# %%
# What should the value be?
# -------------------------
# The same table without any transformer: a DataFrame of mixed columns goes straight in, each with a
# likelihood for its kind. `report` then says in the table's own units what was expected in the place of each
# odd value, given the other values of its record.
direct = VAEDetector(random_state=0, **quick).fit(train)
report = direct.report(new, n_rows=8, n_columns=1)
report["wrong in truth"] = [wrong[row] or "nothing" for row in report["row"]]
shown = ["row", "column", "value", "expected", "low", "high", "wrong in truth"]
print("\n" + report[shown].to_string(index=False, float_format="{:.1f}".format))

# %%
# What next
# ---------
# - ``VAEDetector.select_anomalies`` bounds the share of false alarms among the alarms instead.
# - Gaps need no imputer: missing cells go straight in.
# - Which likelihood suits the columns? See ``plot_likelihoods.py``.
