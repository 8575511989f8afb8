"""Pictures of what a detector says of rows: losses, scores, and how both agree with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from vae_anomaly.calibration import anomaly_count_curve
from vae_anomaly.core.types import Array, Estimator, Flags, Floats, MatrixLike, Values
from vae_anomaly.plotting.canvas import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    RED,
    find_usual_limits,
    format_count,
    legend_beside,
    new_axes,
    unit_of,
    unwrap,
)
from vae_anomaly.scorers import is_anomaly

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["anomaly_counts", "precision_recall_curve", "roc_curve", "score_histogram", "training_curves"]

_STYLES = {
    "loss": ("loss", BLUE, "-"),
    "reconstruction": ("reconstruction", RED, "-"),
    "kl": ("KL", GREEN, "-"),
    "val_loss": ("validation loss", BLUE, "--"),
    "val_reconstruction": ("validation reconstruction", RED, "--"),
    "val_kl": ("validation KL", GREEN, "--"),
}
# A history whose largest figure is so many times its median is drawn on a logarithmic scale.
_WIDE = 20
# A group whose tallest bar is a smaller share of the other's cannot be seen on a linear scale.
_LEAST_SEEN = 0.02


def training_curves(detector: Estimator, *, ax: Axes | None = None) -> Axes:
    """The loss and its parts, epoch by epoch; dashed for held-out rows.

    Losses that span orders of magnitude are drawn on a logarithmic scale, or if some are negative on an
    inverse hyperbolic sine scale, which is logarithmic far from zero.

    Parameters
    ----------
    detector : fitted VAEDetector, Pipeline that ends in one, or dict
        A dict is a ``history_``: lists of one number for each epoch. NaN leaves a gap.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If the history holds no "loss".

    Examples
    --------
    >>> from vae_anomaly import VAEDetector, plotting
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(100, 4, random_state=0)
    >>> detector = VAEDetector(epochs=2, random_state=0).fit(X)
    >>> plotting.training_curves(detector).get_xlabel()
    'epoch'
    """
    unit = "nats per row"
    if isinstance(detector, Mapping):
        history = detector
    else:
        fitted, _ = unwrap(detector)
        history = fitted.history_
        if not fitted.members_[0].specification.posterior.has_density:
            unit += ", an estimate"
    if "loss" not in history:
        raise ValueError(f"a history holds a 'loss' for each epoch; received the keys {sorted(history)}.")
    curves = {key: np.asarray(history[key], dtype=np.float64) for key in _STYLES if key in history}
    ax = new_axes(ax, (8, 4.2))
    for key, values in curves.items():
        label, color, style = _STYLES[key]
        known = np.r_[False, np.isfinite(values), False]
        alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])  # no line leads to or from it
        epochs = np.arange(1, len(values) + 1)
        dots: Values = {"marker": "o", "ms": 4, "markevery": list(alone)} if len(alone) else {}
        ax.plot(epochs, values, style, color=color, label=label, **dots)
    drawn = np.concatenate(list(curves.values()))
    drawn = drawn[np.isfinite(drawn)]
    middle = np.median(np.abs(drawn)) if len(drawn) else 0
    if middle and np.abs(drawn).max() > _WIDE * middle:
        ax.set_yscale("log") if drawn.min() > 0 else ax.set_yscale("asinh", linear_width=middle)
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch", ylabel=unit)
    ax.grid(alpha=0.3)
    legend_beside(ax)
    return ax


def score_histogram(
    scores: Estimator | npt.ArrayLike,
    X: MatrixLike | None = None,
    y: npt.ArrayLike | None = None,
    *,
    threshold: float | None = None,
    anomaly_label: object = "auto",
    bins: int = 50,
    ax: Axes | None = None,
) -> Axes:
    """How many rows have which anomaly score, and where the threshold lies.

    The outermost bars hold the rows farther than five interquartile ranges from the quartiles, if there are
    any; the label of the axis then says how many and how far they reach. Rows per bar are drawn on a
    logarithmic scale where the bars of one of two groups would be too low to see.

    Parameters
    ----------
    scores : array of shape (n_rows,), or fitted VAEDetector, or Pipeline that ends in one
        Anomaly scores, larger = more anomalous, or a detector that scores X.
    X : rows, only with a detector
    y : array of shape (n_rows,) or None, default=None
        Labels, to color normal rows and anomalies.
    threshold : float or None, default=None
        The anomaly score above which rows are flagged. None is the detector's ``-offset_``, and no line
        for an array.
    anomaly_label : scalar or "auto", default="auto"
        Which of the labels marks anomalies; see `scorers.is_anomaly`.
    bins : int, default=50
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For scores that are not finite or not one for each row, labels that cannot be read, and X beside
        scores.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector, plotting
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(100, 4, random_state=0)
    >>> detector = VAEDetector(epochs=2, random_state=0).fit(X)
    >>> ax = plotting.score_histogram(detector, X, y)
    >>> [text.get_text() for text in ax.get_legend().get_texts()][:2]
    ['normal (95 rows)', 'anomaly (5 rows)']
    """
    label = "anomaly score"
    if hasattr(scores, "score_samples"):
        detector = unwrap(scores)[0]
        scores = -scores.score_samples(X)
        threshold = -detector.offset_ if threshold is None else threshold
        label += unit_of(detector)
    elif X is not None:
        raise ValueError("X is for a detector to score, and these are scores: pass labels as y=...")
    scores = _check_scores(scores)
    groups = {"all": (np.ones(len(scores), dtype=bool), BLUE)}
    if y is not None:
        truth = _check_labels(y, scores, anomaly_label)
        groups = {"normal": (~truth, BLUE), "anomaly": (truth, RED)}

    ends = [*find_usual_limits(scores), *([] if threshold is None else [threshold])]
    low, high = min(ends), max(ends)
    beyond = {"first": scores[scores < low], "last": scores[scores > high]}

    edges = np.histogram_bin_edges([low, high], bins).tolist()
    ax = new_axes(ax, (6.4, 4.2))
    tallest = []
    for name, (group, color) in groups.items():
        n_rows = f"{name} ({format_count(group.sum(), 'row')})"
        counts, _, _ = ax.hist(
            np.clip(scores[group], low, high), edges, color=color, alpha=0.65, label=n_rows, zorder=2
        )
        tallest.append(np.max(counts))
    if min(tallest) < _LEAST_SEEN * max(tallest):
        ax.set_yscale("log")
    if threshold is not None:
        above = f"threshold {threshold:.4g} ({format_count((scores > threshold).sum(), 'row')} above)"
        ax.axvline(threshold, color="black", ls="--", lw=1.2, label=above, zorder=3)
    for bar, rows in beyond.items():
        if len(rows):
            end = rows.min() if bar == "first" else rows.max()
            label += f"\nthe {bar} bar also holds {format_count(len(rows), 'row')} as far as {end:.3g}"
    ax.set(xlabel=label, ylabel="rows")
    ax.legend()
    return ax


def anomaly_counts(
    p_values: Estimator | npt.ArrayLike,
    X: MatrixLike | None = None,
    *,
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """How many anomalies there are at least among the most anomalous rows, with a stated confidence.

    The curve is `calibration.anomaly_count_curve`: its confidence is one for all its points, so any of them
    may be chosen by looking. Where it is near the dashed line, nearly all rows so far are anomalies.

    Parameters
    ----------
    p_values : array of shape (n_rows,), or fitted VAEDetector, or Pipeline that ends in one
        P-values, or a detector that was fitted with calibration and makes those of X.
    X : rows, only with a detector
    confidence : float, default=0.95
        In (0, 1).
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For p-values that are not in [0, 1], a detector without calibration, and X beside p-values.

    Examples
    --------
    >>> from vae_anomaly import plotting
    >>> ax = plotting.anomaly_counts([0.001, 0.002, 0.01, 0.04, 0.6, 0.9])
    >>> ax.get_legend().get_texts()[0].get_text()
    'at least, with 95 % confidence (3 of 6 rows)'
    """
    if hasattr(p_values, "score_samples"):
        detector, rows = unwrap(p_values, X)
        p_values = detector.p_values(rows)
    elif X is not None:
        raise ValueError("X is for a detector to judge, and these are p-values.")
    counts = np.r_[0, anomaly_count_curve(p_values, confidence)]
    n_rows = len(counts) - 1
    ax = new_axes(ax, (6.4, 4.2))
    of_all = f"{counts[-1]:,} of {format_count(n_rows, 'row')}"
    label = f"at least, with {100 * confidence:g} % confidence ({of_all})"
    ax.plot(np.arange(n_rows + 1), counts, color=RED, drawstyle="steps-post", label=label)
    ends = [0, max(1, counts[-1])]
    ax.plot(ends, ends, color=GREY, ls="--", lw=1.2, label="all rows so far")
    ax.locator_params(integer=True)
    ax.set(xlabel="most anomalous rows", ylabel="anomalies among them")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def roc_curve(
    y: npt.ArrayLike,
    scores: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    *,
    anomaly_label: object = "auto",
    ax: Axes | None = None,
) -> Axes:
    """Share of the anomalies above each threshold, over the share of normal rows above it.

    Parameters
    ----------
    y : array of shape (n_rows,)
        Labels of normal rows and anomalies.
    scores : array of shape (n_rows,), or dict of such arrays by name
        Anomaly scores, larger = more anomalous; each array of a dict becomes a curve.
    anomaly_label : scalar or "auto", default="auto"
        Which of the labels marks anomalies; see `scorers.is_anomaly`.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes
        The legend holds the area under each curve.

    Raises
    ------
    ValueError
        For labels that cannot be read, and scores that are not finite or not one for each label.

    Examples
    --------
    >>> from vae_anomaly import plotting
    >>> ax = plotting.roc_curve([0, 0, 0, 1], [1.0, 3.0, 2.0, 4.0])
    >>> ax.get_legend().get_texts()[0].get_text()
    'AUROC = 1.000'
    """
    ax = _curves(RocCurveDisplay, y, scores, anomaly_label, ax)
    ax.set(xlabel="share of the normal rows flagged", ylabel="share of the anomalies flagged")
    return ax


def precision_recall_curve(
    y: npt.ArrayLike,
    scores: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    *,
    anomaly_label: object = "auto",
    ax: Axes | None = None,
) -> Axes:
    """Share of anomalies among the rows above each threshold, over the share of the anomalies above it.

    Parameters
    ----------
    y : array of shape (n_rows,)
        Labels of normal rows and anomalies.
    scores : array of shape (n_rows,), or dict of such arrays by name
        Anomaly scores, larger = more anomalous; each array of a dict becomes a curve.
    anomaly_label : scalar or "auto", default="auto"
        Which of the labels marks anomalies; see `scorers.is_anomaly`.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes
        The legend holds the average precision of each curve.

    Raises
    ------
    ValueError
        For labels that cannot be read, and scores that are not finite or not one for each label.

    Examples
    --------
    >>> from vae_anomaly import plotting
    >>> ax = plotting.precision_recall_curve([1, 1, 1, -1], [1.0, 3.0, 2.0, 4.0])
    >>> ax.get_legend().get_texts()[0].get_text()
    'AP = 1.000'
    """
    ax = _curves(PrecisionRecallDisplay, y, scores, anomaly_label, ax)
    ax.set(xlabel="share of the anomalies flagged (recall)", ylabel="anomalies among the flagged (precision)")
    return ax


def _curves(
    display: Estimator,
    y: npt.ArrayLike,
    scores: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    anomaly_label: object,
    ax: Axes | None,
) -> Axes:
    named = scores if isinstance(scores, Mapping) else {"": scores}
    if not named:
        raise ValueError("scores must hold at least one array; received an empty dict.")
    checked = {name: _check_scores(values) for name, values in named.items()}
    truths = [_check_labels(y, values, anomaly_label) for values in checked.values()]
    ax = new_axes(ax, (7.6, 5))
    area, of_chance = ("AUROC", 0.5) if display is RocCurveDisplay else ("AP", np.mean(truths[0]))
    for position, (name, values) in enumerate(checked.items()):
        last = position == len(checked) - 1
        drawn = display.from_predictions(truths[position], values, ax=ax, plot_chance_level=last)
        value = drawn.roc_auc if area == "AUROC" else drawn.average_precision
        drawn.line_.set(color=COLOURS[position % len(COLOURS)], lw=2)
        drawn.line_.set_label(f"{name}{name and ': '}{area} = {value:.3f}")
    drawn.chance_level_.set(color=GREY, label=f"chance: {area} = {of_chance:.3f}")
    ax.set_aspect("auto")  # with scikit-learn's, the layout makes no room for a legend
    legend_beside(ax)
    return ax


def _check_scores(scores: npt.ArrayLike) -> Floats:
    checked: Floats = np.asarray(scores, dtype=np.float64)
    if checked.ndim != 1 or not len(checked) or not np.isfinite(checked).all():
        raise ValueError(f"scores must be one finite number for each row; received {checked!r}.")
    return checked


def _check_labels(y: npt.ArrayLike, scores: Array, anomaly_label: object) -> Flags:
    if np.shape(y) != scores.shape:
        raise ValueError(f"y must hold one label for each of the {len(scores)} rows; received {np.shape(y)}.")
    return is_anomaly(y, anomaly_label)
