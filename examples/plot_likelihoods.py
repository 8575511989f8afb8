"""
Which likelihood suits a table?
===============================

The likelihood p(x|z) says what the model takes for noise: how far a value may lie from what is expected
before that is surprising. Four kinds of noise, four likelihoods, and a figure that needs no labels to choose
among them. Run it with::

    python examples/plot_likelihoods.py
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from vae_anomaly import DenseNetwork, VAEDetector
from vae_anomaly.likelihoods import Gaussian, Likelihood

EPOCHS = 2 if os.environ.get("VAE_ANOMALY_QUICK") else 100

# %%
# Four kinds of noise
# -------------------
# The same eight columns, which depend on two hidden variables, and noise of four kinds around them.
rng = np.random.default_rng(0)
n_columns = 8
mixing = rng.normal(size=(2, n_columns))


def table(kind, n_rows):
    hidden = rng.normal(size=(n_rows, 2))
    size = (n_rows, n_columns)
    noise = {
        "normal": lambda: rng.normal(size=size),
        "heavy tails": lambda: rng.standard_t(2, size=size),
        "1 % gross errors": lambda: (
            rng.normal(size=size) + 30 * (rng.random(size) < 0.01) * rng.normal(size=size)
        ),
        "noise that differs\nfrom row to row": lambda: np.exp(hidden[:, :1]) * rng.normal(size=size),
    }[kind]()
    return np.tanh(hidden) @ mixing + hidden @ mixing + 0.5 * noise


KINDS = ["normal", "heavy tails", "1 % gross errors", "noise that differs\nfrom row to row"]
LIKELIHOODS: dict[str, str | Likelihood] = {
    '"gaussian"': "gaussian",
    '"laplace"': "laplace",
    '"student_t"': "student_t",
    'Gaussian(scale=\n"per_row")': Gaussian(scale="per_row"),
}

# %%
# Fit and measure
# ---------------
# Two figures for each pair. `VAEDetector.score` is the evidence lower bound of rows that were not trained on,
# in nats: a density, so it compares likelihoods, and it needs no labels. And the AUROC for anomalies in which
# every column by itself looks normal: each value comes from another row.
bound = pd.DataFrame(index=KINDS, columns=list(LIKELIHOODS), dtype=float)
auroc = bound.copy()
for kind in KINDS:
    train, new = table(kind, 1500), table(kind, 1500)
    anomalies = rng.permuted(table(kind, 1500), axis=0)
    for name, likelihood in LIKELIHOODS.items():
        # One model, exactly so many epochs: quicker than the default, and enough to compare.
        detector = VAEDetector(
            DenseNetwork((32,)), latent_dim=2, likelihood=likelihood, epochs=EPOCHS, random_state=0
        ).fit(train)
        bound.loc[kind, name] = detector.score(new)
        scores = -detector.score_samples(np.r_[new, anomalies])
        auroc.loc[kind, name] = roc_auc_score(np.repeat([0, 1], 1500), scores)

behind = bound.sub(bound.max(axis=1), axis=0)
chosen, finder = bound.idxmax(axis=1), auroc.idxmax(axis=1)
for kind in KINDS:
    print(f"{kind}: the bound chooses {chosen[kind]}, best at finding {finder[kind]}".replace("\n", " "))
behind_best = max(auroc.loc[kind].max() - auroc.loc[kind, chosen[kind]] for kind in KINDS)
print(f"in AUROC, the choice by the bound is at most {behind_best:.3f} behind the best")

# %%
# What comes out
# --------------
# The best of each line is framed. Where two likelihoods are next to equal, as they are for normal noise,
# chance decides between them, and either will do. Errors and heavy tails are what a Gaussian
# suffers from: it takes them for noise of all rows.
figure, panels = plt.subplots(1, 2, figsize=(11.5, 4.4), sharey=True, layout="constrained")
titles = [
    "Evidence lower bound of new rows,\nnats behind the best",
    "AUROC for rows of\nvalues that do not fit together",
]
ranges = [(-3, 0), (0.8, 1)]
for ax, figures, title, (low, high) in zip(panels, [behind, auroc], titles, ranges, strict=True):
    ax.imshow(figures, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(figures.to_numpy()):
        color = "white" if value > low + 0.6 * (high - low) else "black"
        best = value == figures.iloc[row].max()
        frame = {"edgecolor": "#D55E00", "facecolor": "none", "linewidth": 2} if best else None
        text = f"{value:.2f}" if ax is panels[0] else f"{value:.3f}"
        ax.text(column, row, text, ha="center", va="center", color=color, bbox=frame)
    ax.set_xticks(range(len(LIKELIHOODS)), LIKELIHOODS)
    ax.set_yticks(range(len(KINDS)), KINDS)
    ax.set_title(title)
panels[0].set_ylabel("noise in the data")
figure.supxlabel("likelihood")
plt.show()

# %%
# What next
# ---------
# On data of your own, let a search compare; without ``scoring``, it maximizes the bound of held-out rows::
#
#     GridSearchCV(VAEDetector(epochs=100), {"likelihood": ["gaussian", "laplace", "student_t"]}).fit(X)
#
# - Scalers change the units of a density: compare likelihoods behind the same scaler.
# - A DataFrame chooses for each column by its dtype: numbers, counts, booleans and categories.
# - For images, the default is a Gaussian of one scale for all pixels; see ``docs/choosing.md``.
