"""Pictures of single rows: the most anomalous ones, and what makes one anomalous."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vae_anomaly import explanations
from vae_anomaly.core.rows import array_of, dense
from vae_anomaly.core.types import Array, Estimator, MatrixLike, Shape, Unchecked
from vae_anomaly.data.frames import to_pandas
from vae_anomaly.plotting.canvas import (
    BLUE,
    GREY,
    RED,
    as_images,
    check_count,
    find_limits,
    grid_of,
    image_shape_of,
    new_axes,
    show,
    unit_of,
    unwrap,
)
from vae_anomaly.plotting.signals import draw_anomalies, signal_channels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["contributions", "top_anomalies"]


def top_anomalies(
    detector: Estimator,
    X: Unchecked,
    k: int = 10,
    *,
    n_features: int = 10,
    image_shape: Shape | None = None,
    axes: Any = None,
) -> Any:
    """The most anomalous rows: images or signals with their scores; for a table, what makes up their scores.

    Parameters
    ----------
    detector : fitted VAEDetector, or Pipeline that ends in one
    X : rows, images or signals
    k : int, default=10
        How many, the most anomalous first.
    n_features : int, default=10
        For a table, how many columns to name: those with the largest shares in these rows' scores. The
        others are summed.
    image_shape : tuple (height, width) or (height, width, channels), or None, default=None
        None is the shape of the images that the detector was fitted on, or that its network was given.
    axes : array of k matplotlib Axes, one matplotlib Axes for a table, or None, default=None

    Returns
    -------
    array of k matplotlib Axes for images and signals, one matplotlib Axes for a table
        Rows are named by the index of a DataFrame, else by their position. Signals are drawn as lines of
        scaled channels. The numbers of a table are
        shares by `VAEDetector.explain`, in the units of the score, which they sum to; its colors compare
        them with the largest of the row.

    Raises
    ------
    ValueError
        As `VAEDetector.explain`, for another number of axes, or if k or n_features is not a positive integer.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector, plotting
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(100, 4, random_state=0)
    >>> detector = VAEDetector(epochs=2, random_state=0).fit(X)
    >>> ax = plotting.top_anomalies(detector, X, k=3)
    >>> ax.images[0].get_array().shape
    (3, 4)
    """
    check_count("k", k)
    check_count("n_features", n_features)
    X = to_pandas(X)
    scores = -detector.score_samples(X)
    worst = np.argsort(-scores, kind="stable")[:k]
    framed = hasattr(X, "columns")
    names = np.asarray(X.index if framed else np.arange(len(scores)))[worst]
    rows = X.iloc[worst] if framed else array_of(X)[worst]
    model, received_rows = unwrap(detector, rows)
    titles = [f"row {name}\nscore {score:.4g}" for name, score in zip(names, scores[worst], strict=True)]
    if image_shape is None and signal_channels_of(model):
        return draw_anomalies(model, received_rows, titles, axes)
    if image_shape or model._shape_of_images:
        images = as_images(received_rows, image_shape_of(model, image_shape))
        grid = grid_of(axes, len(worst), min(len(worst), 5), tile=1.5)
        for panel, image, title in zip(grid, images, titles, strict=True):
            show(panel, image, find_limits(images))
            panel.set_title(title, fontsize="medium")
        return grid

    shares = _explain_by_name(detector, rows)
    order = np.argsort(-shares.mean().to_numpy(), kind="stable")
    shown = _with_others(shares.iloc[:, order], n_features)
    single = shown.to_numpy().copy()
    if shown.shape[1] < shares.shape[1]:
        single[:, -1] = np.nan  # a sum is not compared with single shares
    peaks = np.nanmax(single, axis=1, keepdims=True)
    relative = single / np.where(peaks > 0, peaks, np.inf)  # nothing stands out among negative shares
    ax = new_axes(axes, (2.6 + 0.62 * shown.shape[1], 1.6 + 0.32 * len(shown)))
    drawn = ax.imshow(relative, cmap="Oranges", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), share in np.ndenumerate(shown.to_numpy()):
        color = "white" if relative[row, column] > 0.55 else "black"
        ax.text(column, row, _short(share), ha="center", va="center", color=color, fontsize=8)
    ax.set_xticks(range(shown.shape[1]), shown.columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(shown)), [f"row {n}: {s:.4g}" for n, s in zip(names, scores[worst], strict=True)])
    ax.set_ylabel("anomaly score" + unit_of(model))
    ax.figure.colorbar(drawn, ax=ax, label="share of the score, over the row's largest")
    return ax


def contributions(
    detector: Estimator,
    row: MatrixLike | pd.Series | None = None,
    *,
    names: Sequence[str] | None = None,
    n_features: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """What each column adds to the anomaly score of one row of a table, the largest share on top.

    Parameters
    ----------
    detector : fitted VAEDetector, Pipeline that ends in one, or shares of one row
        Shares are what ``explain`` returns for one row: an array of shape (n_features,) or
        (1, n_features), a Series or a DataFrame of one row.
    row : array of shape (n_features,) or (1, n_features), Series, DataFrame of one row, or None
        The row to explain. Its values are written beside the names.
    names : list of str or None, default=None
        Names of the columns. None takes them from a Series or DataFrame, or from the detector.
    n_features : int, default=10
        How many columns have a bar of their own. The others share one.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes
        The bars sum to the anomaly score, which is the title.

    Raises
    ------
    ValueError
        As `VAEDetector.explain`, for more than one row, for another number of names, or if n_features is no
        positive integer.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector, plotting
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(100, 4, random_state=0)
    >>> detector = VAEDetector(epochs=2, random_state=0).fit(X)
    >>> ax = plotting.contributions(detector, X[0], names=["length", "width", "height", "weight"])
    >>> len(ax.patches)
    4
    """
    check_count("n_features", n_features)
    values = None
    unit = ""
    if hasattr(detector, "score_samples"):
        row = _to_row(detector, row)
        shares = _explain_by_name(detector, row)
        values = np.asarray(dense(row), dtype=object)[0]
        unit = unit_of(unwrap(detector)[0])
    else:
        shares = _as_frame(detector, None)
    if len(shares) != 1:
        raise ValueError(f"contributions are drawn of one row; received {len(shares)}: see top_anomalies.")
    names = list(shares.columns) if names is None else [str(name) for name in names]
    if len(names) != shares.shape[1]:
        raise ValueError(f"names must hold {shares.shape[1]} names; received {len(names)}.")
    if values is not None:
        names = [f"{name} = {_value(value)}" for name, value in zip(names, values, strict=True)]
    order = np.argsort(-shares.to_numpy()[0], kind="stable")
    bars = _with_others(shares.set_axis(names, axis=1).iloc[:, order], n_features)
    lengths = bars.to_numpy()[0]

    ax = new_axes(ax, (6.8, 1.2 + 0.32 * len(lengths)))
    colors = [RED if length > 0 else BLUE for length in lengths]
    if len(lengths) < shares.shape[1]:
        colors[-1] = GREY
    drawn = ax.barh(range(len(lengths)), lengths, color=colors)
    ax.bar_label(drawn, [_short(length) for length in lengths], padding=3)
    ax.set_yticks(range(len(lengths)), bars.columns)
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(xlabel="share of the anomaly score" + unit, title=f"anomaly score {lengths.sum():.4g}{unit}")
    return ax


def _to_row(detector: Estimator, row: Unchecked) -> Unchecked:
    """One row as a table of the kind that the detector was fitted on."""
    if row is None:
        raise ValueError("a detector's contributions are those of a row: pass the row to explain.")
    if hasattr(row, "columns"):
        return row
    names = getattr(detector, "feature_names_in_", None)
    if names is not None or isinstance(row, pd.Series):
        return _as_frame(row, names)
    row = array_of(row)
    return row[None] if row.ndim == 1 else row


def _explain_by_name(detector: Estimator, X: MatrixLike) -> pd.DataFrame:
    explained = explanations.explain(detector, X) if hasattr(detector, "steps") else detector.explain(X)
    return _as_frame(explained, getattr(detector, "feature_names_in_", None))


def _as_frame(rows: Unchecked, names: Array | None) -> pd.DataFrame:
    """Rows, or one row, as a table with named columns."""
    if isinstance(rows, pd.Series):
        return rows.to_frame().T.infer_objects()  # back to the types that one row of many types lost
    if isinstance(rows, pd.DataFrame):
        return rows
    rows = np.atleast_2d(rows)
    if rows.ndim != 2:
        raise ValueError(
            f"expected rows of a table; received an array of shape {rows.shape}: reconstructions draws what "
            "makes images anomalous."
        )
    return pd.DataFrame(rows, columns=[f"x{i}" for i in range(rows.shape[1])] if names is None else names)


def _with_others(shares: pd.DataFrame, n_features: int) -> pd.DataFrame:
    """The first columns, and the sum of the others unless that is but one."""
    n_others = shares.shape[1] - n_features
    if n_others <= 1:
        return shares
    others = shares.iloc[:, n_features:].sum(axis=1)
    return shares.iloc[:, :n_features].assign(**{f"{n_others} others": others})


def _short(number: float) -> str:
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e6 else f"{number:.3g}"


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, Real) and not isinstance(value, Integral) else str(value)
