"""Pictures of signals: lines over time, each channel in the units that the model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vae_anomaly.core.types import Array, Estimator
from vae_anomaly.plotting.canvas import COLOURS, grid_of, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_anomalies", "draw_reconstructions", "signal_channels_of"]


def signal_channels_of(detector: Estimator) -> int | None:
    """The number of channels of the signals that a fitted detector takes, or None."""
    channels: int | None = detector.members_[0].specification.network.signal_channels()
    return channels


def draw_anomalies(detector: Estimator, rows: Any, titles: list[str], axes: Any) -> Array:
    """A panel for each signal; the channels of all panels are drawn alike."""
    signals = _scaled(detector, rows)
    panels = grid_of(axes, len(signals), min(len(signals), 5), tile=2.2)
    for panel, signal, title in zip(panels, signals, titles, strict=True):
        _draw(panel, signal)
        panel.set_title(title, fontsize="medium")
    return panels


def draw_reconstructions(detector: Estimator, rows: Any, axes: Any) -> Array:
    """See `plotting.reconstructions`."""
    signals, expected = _scaled(detector, rows), _scaled(detector, detector.reconstruct(rows))
    shares = np.reshape(detector.explain(rows), signals.shape)
    scores = -detector.score_samples(rows)
    panels = grid_of(axes, 2 * len(signals), len(signals), tile=2.2).reshape(2, -1)
    for column, (top, bottom) in enumerate(panels.T):
        _draw(top, signals[column], linewidth=1)
        _draw(top, expected[column], linestyle="--", linewidth=1)
        _draw(bottom, shares[column], linewidth=1)
        top.set_title(f"score {scores[column]:.4g}", fontsize="medium")
        bottom.set_xlabel("step")
        bottom.set_ylim(float(shares.min()), float(shares.max()) or 1.0)
    panels[0, 0].set_ylabel("signal, expected (dashed)")
    panels[1, 0].set_ylabel("share of the score" + unit_of(detector))
    return panels


def _scaled(detector: Estimator, rows: Any) -> npt.NDArray[np.float32]:
    """Signals of shape (n, length, channels) as the model sees them: channels of any unit fit one axis."""
    scaled = detector._fitted.preparation.rows(detector._validate(rows))
    return np.reshape(scaled, (len(scaled), -1, signal_channels_of(detector) or 1))


def _draw(ax: Axes, signal: Array, **options: Any) -> None:
    for channel, values in enumerate(signal.T):
        ax.plot(values, color=COLOURS[channel % len(COLOURS)], **options)
