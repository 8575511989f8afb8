"""Pictures of a model: its network, its latent space, and what it makes of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA

from vae_anomaly.core.rows import with_channels
from vae_anomaly.core.types import Array, Estimator, KerasModel, MatrixLike, RandomStateLike, Shape
from vae_anomaly.data.pixels import as_numbers
from vae_anomaly.plotting.canvas import (
    BLUE,
    COLOURS,
    GREEN,
    HEAT,
    MARKERS,
    ORANGE,
    as_images,
    check_count,
    find_limits,
    find_open_ends,
    find_usual_limits,
    format_count,
    grid_of,
    image_shape_of,
    legend_beside,
    made_shape_of,
    new_axes,
    show,
    tile_images,
    unit_of,
    unwrap,
)
from vae_anomaly.plotting.signals import draw_reconstructions, signal_channels_of
from vae_anomaly.posteriors import Gaussian
from vae_anomaly.priors import Standard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["latent_manifold", "latent_scatter", "network_summary", "reconstructions", "samples"]

_MOST_LABELS = 16
# That tell where the quantiles of a prior lie.
_DRAWS_OF_PRIOR = 10_000
# Of the pixels of anomaly maps, at either end of their colors: a few are so unusual that the others would
# look alike.
_LEFT_OUT = 0.005


def latent_scatter(
    detector: Estimator, X: MatrixLike, y: npt.ArrayLike | None = None, *, ax: Axes | None = None
) -> Axes:
    """Where the encoder puts each row: what `VAEDetector.encode` says, by the first member.

    Two latent dimensions are drawn as they are, more as the two directions in which they vary most (PCA, with
    each direction's share of the variance), one against the anomaly score. They are the posterior's mean,
    ``z_mean``; of a flow, the mean's image; of categories, the probabilities.

    Parameters
    ----------
    detector : fitted VAEDetector, or Pipeline that ends in one
    X : rows
    y : array of shape (n_rows,) or None, default=None
        What colors the points: labels of any kind, at most 16 different ones, or numbers. None is the
        anomaly score. The colors of numbers end five interquartile ranges beyond the quartiles.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If y has not one entry for each row, misses some, or has too many different labels that are no
        numbers.

    Examples
    --------
    >>> from vae_anomaly import DenseNetwork, VAEDetector, plotting
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(100, 4, random_state=0)
    >>> detector = VAEDetector(DenseNetwork((8,)), latent_dim=2, epochs=1, random_state=0).fit(X)
    >>> plotting.latent_scatter(detector, X, y).get_xlabel()
    'z_mean, dimension 1'
    """
    detector, rows = unwrap(detector, X)
    z_mean = detector.encode(rows)
    score_label = "anomaly score" + unit_of(detector)
    n_latents = z_mean.shape[1]
    scores = -detector.score_samples(rows) if y is None or n_latents == 1 else np.empty(0)
    by = scores if y is None else np.asarray(y)
    if by.shape != (len(z_mean),):
        raise ValueError(f"y must hold one entry for each of the {len(z_mean)} rows; received {by.shape}.")
    if pd.isna(by).any():
        raise ValueError(f"y must say what colors every row; it is missing for {pd.isna(by).sum()} of them.")
    labels = None if y is None else _labels(by)
    center = detector.members_[0].specification.posterior.center_name

    if n_latents == 1:
        across, up = z_mean[:, 0], scores
        names = [center, score_label]
    elif n_latents == 2:
        across, up = z_mean.T
        names = [f"{center}, dimension {number}" for number in (1, 2)]
    else:
        pca = PCA(2, svd_solver="full").fit(z_mean)
        across, up = pca.transform(z_mean).T
        names = [
            f"{which} principal direction of {center} ({share:.0%} of variance)"
            for which, share in zip(("1st", "2nd"), pca.explained_variance_ratio_, strict=True)
        ]

    ax = new_axes(ax, (6.8, 5.2))
    title = str(getattr(y, "name", None) or "")
    if labels is None:
        order = np.argsort(by)  # the largest on top
        low, high = find_usual_limits(by)
        drawn = ax.scatter(across[order], up[order], c=by[order], cmap=HEAT, vmin=low, vmax=high, s=16)
        ax.figure.colorbar(
            drawn, ax=ax, label=score_label if y is None else title, extend=find_open_ends(by, low, high)
        )
    else:
        for position, label in enumerate(labels):
            of_label = by == label
            ax.scatter(
                across[of_label],
                up[of_label],
                color=COLOURS[position % len(COLOURS)],
                marker=MARKERS[position % len(MARKERS)],
                label=str(label),
                s=20,
                alpha=0.8,
                linewidths=0,
                zorder=2 + 1 / of_label.sum(),  # the rarest on top
            )
        legend_beside(ax, title=title, markerscale=1.5)
    ax.set(xlabel=names[0], ylabel=names[1])
    return ax


def latent_manifold(
    detector: Estimator, n: int = 15, *, image_shape: Shape | None = None, ax: Axes | None = None
) -> Axes:
    r"""What the decoder makes of each place in a latent space of two dimensions.

    The expected image at each pair of the quantiles :math:`\Phi^{-1}((i - 1/2) / n)`, i = 1 ... n, of the
    prior N(0, 1), by the first member: each tile stands for as much of the prior as any other. Of other
    priors, at the quantiles of each dimension by itself.

    Parameters
    ----------
    detector : VAEDetector fitted on images with ``latent_dim=2``, or Pipeline that ends in one
    n : int, default=15
        Tiles along each side.
    image_shape : tuple (height, width) or (height, width, channels), or None, default=None
        None is the shape of the images that the detector was fitted on, or that its network was given.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes
        Its numbers are those of z in the middle of the tiles, a scale by quantiles.

    Raises
    ------
    ValueError
        If there are not two latent dimensions, if they are categories, or if rows are not images.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from vae_anomaly import VAEDetector, plotting
    >>> images = load_digits().images[:100] / 16
    >>> detector = VAEDetector(latent_dim=2, epochs=1, random_state=0).fit(images)
    >>> ax = plotting.latent_manifold(detector, n=3)
    >>> ax.images[0].get_array().shape
    (26, 26)
    """
    check_count("n", n)
    detector, _ = unwrap(detector)
    shape = made_shape_of(detector, image_shape)
    if detector.latent_dim_ != 2:
        raise ValueError(
            f"a manifold is drawn of two latent dimensions; the detector has {detector.latent_dim_}: fit it "
            "with latent_dim=2, or draw samples."
        )
    model = detector.model_
    if model.posterior.latents != "real":
        raise ValueError(
            "a manifold is drawn of latent dimensions that are real numbers, and those of the detector are "
            "categories: draw samples."
        )
    shares = (np.arange(n) + 0.5) / n
    across = up = stats.norm.ppf(shares)
    if not isinstance(model.prior, Standard):
        draws = np.asarray(model.prior.sample(_DRAWS_OF_PRIOR, 0, model.weights_of("prior"), model))
        across, up = np.quantile(draws, shares, axis=0).T
    z = np.stack(np.meshgrid(across, up[::-1]), axis=-1).reshape(-1, 2)  # upwards, as an axis goes
    expected = np.asarray(model.likelihood.expectations(model.decode(z.astype(np.float32))))
    rows = np.asarray(model.likelihood.values(expected), dtype=np.float64)
    images = as_images(detector._fitted.preparation.expected_back(rows), shape)
    ax = new_axes(ax, (6, 6))
    show(ax, tile_images(images, n), find_limits(images))
    ticks = np.unique(np.linspace(0, n - 1, min(n, 5)).round())
    names = [[f"{quantiles[int(tick)]:.1f}" for tick in ticks] for quantiles in (across, up)]
    height, width = images.shape[1:3]
    ax.set_xticks(ticks * (width + 1) + (width - 1) / 2, names[0])
    ax.set_yticks((n - 1 - ticks) * (height + 1) + (height - 1) / 2, names[1])
    ax.set(xlabel="z, dimension 1", ylabel="z, dimension 2")
    return ax


def _labels(y: Array) -> list[Any] | None:
    """The different labels, or None for numbers that are measured rather than named."""
    labels = pd.unique(y)
    if len(labels) <= _MOST_LABELS and not (y.dtype.kind == "f" and (y % 1).any()):
        return sorted(labels, key=lambda label: (str(type(label)), label))
    if y.dtype.kind in "iuf":
        return None
    raise ValueError(f"y may hold {_MOST_LABELS} different labels; received {len(labels)}.")


def reconstructions(
    detector: Estimator,
    images: MatrixLike,
    *,
    image_shape: Shape | None = None,
    axes: Axes | npt.ArrayLike | None = None,
) -> Array:
    """Images or signals, what the model expects in their place, and where they are unusual.

    Parameters
    ----------
    detector : VAEDetector fitted on images or signals, or Pipeline that ends in one
    images : array of shape (n, height, width[, channels]) or (n, length, channels), or flat rows
        Each becomes a column of three panels, or of two for signals; titles are anomaly scores.
    image_shape : tuple (height, width) or (height, width, channels), or None, default=None
        None is the shape of the images that the detector was fitted on, or that its network was given.
    axes : array of 3 n matplotlib Axes, 2 n for signals, or None, default=None

    Returns
    -------
    array of matplotlib Axes, shape (3, n), or (2, n) for signals
        Images, expected images, and the pixels' shares of the score by `VAEDetector.explain`, summed over
        channels. The maps share one scale, which leaves out the outermost 0.5 % of the pixels on each side.
        Of signals, each channel has its color: scaled and as expected (dashed) above, its shares of the
        score below.

    Raises
    ------
    ValueError
        If rows are not images, or for another number of axes.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from vae_anomaly import VAEDetector, plotting
    >>> images = load_digits().images[:100] / 16
    >>> detector = VAEDetector(epochs=1, random_state=0).fit(images)
    >>> plotting.reconstructions(detector, images[:4]).shape
    (3, 4)
    """
    detector, rows = unwrap(detector, images)
    if image_shape is None and signal_channels_of(detector):
        return draw_reconstructions(detector, rows, axes)
    shape = image_shape_of(detector, image_shape)
    originals = as_images(as_numbers(detector._validate(rows)), shape)  # in the units of what is expected
    expected = as_images(detector.reconstruct(rows), shape)
    maps = np.reshape(detector.explain(rows), (len(originals), *with_channels(shape))).sum(axis=-1)
    scores = -detector.score_samples(rows)
    panels = grid_of(axes, 3 * len(originals), len(originals), tile=1.3).reshape(3, -1)
    low, high = (float(end) for end in np.quantile(maps, [_LEFT_OUT, 1 - _LEFT_OUT]))
    for column, (top, middle, bottom) in enumerate(panels.T):
        show(top, originals[column], find_limits(originals))
        show(middle, expected[column], find_limits(originals))
        drawn = show(bottom, maps[column], (low, high), cmap=HEAT)
        top.set_title(f"score {scores[column]:.4g}", fontsize="medium")
    for panel, name in zip(panels[:, 0], ("image", "expected", "anomaly"), strict=True):
        panel.set_ylabel(name)
    label = (
        "share of the score" if detector._fitted.preparation.patches is None else "local score"
    ) + unit_of(detector)
    panels[0, 0].figure.colorbar(
        drawn, ax=list(panels.flat), label=label, extend=find_open_ends(maps, low, high)
    )
    return panels


def samples(
    detector: Estimator,
    n: int = 16,
    *,
    random_state: RandomStateLike = None,
    image_shape: Shape | None = None,
    ax: Axes | None = None,
) -> Axes:
    """New images or patches from the model, by `VAEDetector.sample` without noise, as tiles of a square.

    Parameters
    ----------
    detector : VAEDetector fitted on images, or Pipeline that ends in one
    n : int, default=16
        How many.
    random_state : int, RandomState instance or None, default=None
    image_shape : tuple (height, width) or (height, width, channels), or None, default=None
        None is the shape of the images that the detector was fitted on, or that its network was given.
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If rows are not images.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from vae_anomaly import VAEDetector, plotting
    >>> images = load_digits().images[:100] / 16
    >>> detector = VAEDetector(epochs=1, random_state=0).fit(images)
    >>> plotting.samples(detector, 4, random_state=0).images[0].get_array().shape
    (17, 17)
    """
    detector, _ = unwrap(detector)
    shape = made_shape_of(detector, image_shape)
    images = as_images(detector.sample(n, random_state, noise=False), shape)
    ax = new_axes(ax, (5, 5))
    show(ax, tile_images(images, math.ceil(math.sqrt(n))), find_limits(images))
    ax.set_axis_off()
    return ax


def network_summary(detector: Estimator, *, ax: Axes | None = None) -> Axes:
    """The first member's layers: down the encoder, through z, up the decoder.

    Each box holds a layer's name, its kind, the shape of its output for one row and its number of weights.

    Parameters
    ----------
    detector : fitted VAEDetector, or Pipeline that ends in one
    ax : matplotlib Axes or None, default=None

    Returns
    -------
    matplotlib Axes
        The title holds the number of all weights.

    Examples
    --------
    >>> from vae_anomaly import DenseNetwork, VAEDetector, plotting
    >>> from vae_anomaly.datasets import make_anomalies
    >>> X, y = make_anomalies(100, 4, random_state=0)
    >>> detector = VAEDetector(DenseNetwork((8,)), latent_dim=2, epochs=1, random_state=0).fit(X)
    >>> plotting.network_summary(detector).get_title()
    '4 features → 2 latent dimensions → 4 features: 140 weights'
    """
    detector, _ = unwrap(detector)
    model = detector.model_
    width, latents = model.n_features, model.latent_dim
    encoder = [("x", format_count(width, "feature")), *_layers(model.encoder)]
    law = f"{model.likelihood.name} → {format_count(width, 'feature')}"
    n_shared = model.likelihood.n_shared * width
    law += f" ({format_count(n_shared, 'weight')})" if n_shared else ""
    decoder = [*_layers(model.decoder), ("p(x|z)", law)]
    own = _own_parts(model)
    n_weights = model.encoder.count_params() + model.decoder.count_params() + n_shared
    n_weights += sum(n_own for _, _, n_own in own)
    z = ("z", format_count(latents, "latent dimension"))

    described = [(name, text) for name, text, _ in own]
    n_lines = max(len(encoder), len(decoder))
    widest = max(len(name) + len(text) for name, text in [*encoder, *decoder, *described])
    ax = new_axes(ax, (2 * max(3.0, 0.062 * widest + 0.4), 0.3 * (n_lines + len(own) + 4)))
    size = ax.get_window_extent()
    points = 72 / ax.figure.dpi
    n_in_all = n_lines + len(own) + 3
    font = min(8.5, points * size.width * 0.46 / (0.6 * widest), points * size.height * 0.55 / n_in_all)
    boxes = [(0.0, line, box, BLUE) for line, box in enumerate(reversed(encoder))]
    boxes += [(0.52, line, box, ORANGE) for line, box in enumerate(decoder)]
    boxes += [(0.26, -2 - line, box, GREEN) for line, box in enumerate([z, *described])]
    for left, line, (name, text), color in boxes:
        ax.barh(line, 0.48, 0.8, left, color=color, alpha=0.25)
        ax.text(left + 0.01, line, name, va="center", weight="bold", fontsize=font)
        ax.text(left + 0.47, line, text, va="center", ha="right", fontsize=font)
    for left, title, start, end in (
        (0.24, "encoder ↓", (0.24, -0.5), (0.36, -1.5)),
        (0.76, "decoder ↑", (0.64, -1.5), (0.76, -0.5)),
    ):
        ax.text(left, n_lines, title, ha="center", va="center", fontsize=font + 1)
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black"})
    members = len(detector.members_)
    ends = format_count(width, "feature")
    each = f", in each of {members} members" if members > 1 else ""
    ax.set_title(f"{ends} → {z[1]} → {ends}: {n_weights:,} weights{each}", fontsize=font + 2)
    ax.set(xlim=(-0.01, 1.01), ylim=(-2.6 - len(own), n_lines + 0.6))
    ax.set_axis_off()
    return ax


def _own_parts(model: KerasModel) -> list[tuple[str, str, int]]:
    """Name, description and number of weights of a posterior and a prior that are not the usual ones."""
    described = []
    for name, role, part, usual in (
        ("q(z|x)", "posterior", model.posterior, Gaussian),
        ("p(z)", "prior", model.prior, Standard),
    ):
        if not isinstance(part, usual):
            n_weights = sum(math.prod(weight.shape) for weight in model.weights_of(role).values())
            text = f" ({format_count(n_weights, 'weight')})" if n_weights else ""
            described.append((name, type(part).__name__ + text, n_weights))
    return described


def _layers(network: KerasModel) -> list[tuple[str, str]]:
    """Name and description of each layer that does something."""
    described = []
    for layer in network.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        text = kind if activation == "linear" else f"{kind} {activation}"
        try:
            outputs = layer.output
            shapes = [output.shape[1:] for output in (outputs if isinstance(outputs, list) else [outputs])]
            text += " → " + " + ".join("×".join(map(str, shape)) for shape in shapes)
        except (AttributeError, ValueError):  # a subclassed layer knows no shape before it is called
            pass
        if layer.count_params():
            text += f" ({format_count(layer.count_params(), 'weight')})"
        described.append((layer.name, text))
    return described
