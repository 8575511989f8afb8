"""Recipes: which members an ensemble has, and how each of them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from vae_anomaly.core.types import Constraints

__all__ = [
    "DEFAULT_MEMBERS",
    "IMAGE_MEMBERS",
    "MIXED_MEMBERS",
    "PATCH_MEMBERS",
    "SIGNAL_MEMBERS",
    "WIDE_MEMBERS",
    "Member",
    "Recipe",
    "patch_members",
    "resolve_recipe",
]

_FEWEST_ROWS_TO_SPLIT = 10
_HELD_OUT = 0.2


class Member(BaseEstimator):  # type: ignore[misc]
    r"""How one model of an ensemble is trained, where it differs from the others.

    Parameters
    ----------
    trimmed_fraction : float, default=0.0
        Fraction of each training batch, in [0, 1), that has the greatest loss and is left out of the step.
        A model trained so does not learn rows that it finds improbable, such as anomalies among the
        training rows (least trimmed squares, Rousseeuw 1984, for the objective of a VAE). Raise it
        above the fraction of anomalies that you expect; on clean rows it costs a little.
    beta_factor : float, default=1.0
        Multiplies the detector's ``beta``. Below 1 the latent variables carry more of a row, and its
        reconstruction is sharper.
    column_transform : {"yeo-johnson", "whiten"} or None, default=None
        How the columns of real values are transformed inside this model. "yeo-johnson" makes skewed ones near
        normal, each by a power of its own (Yeo & Johnson 2000, "A new family of power transformations to
        improve normality or symmetry"); the others stay as they are. To a model of standardized columns, what
        is too small in a column with a long right tail lies in the middle; to this one, far out. What is too
        large looks nearer: one half of the default members have it.

        "whiten" makes them uncorrelated by the root of their covariance matrix, shrunk as by Ledoit & Wolf
        (2004, "A well-conditioned estimator for large-dimensional covariance matrices"), so that a small
        deviation counts if the rows hardly vary in its direction. It needs the likelihood "gaussian", and
        8 n_features² bytes in each member. Sparse tables, and rows that are all trained on from a file, stay
        as they are. Of hundreds of columns, such as an embedding's, six of the eight default members have it.
    pooling : int, default=1
        Of images that are seen in patches, how many pixels, down and across, this model sees as one, which is
        their mean (average pooling). So its patches cover a larger part of the image, and it finds what is
        larger and smoother, such as a stain. What is expected, sampled or measured by an ELBO is told by the
        members that see every pixel, unless there are none.
    scale : {"per_row"} or None, default=None
        With "per_row" the decoder of this model computes the scale of the likelihood for each row, where the
        likelihood learns one for all rows (``scale="per_feature"``, the default of "gaussian", "laplace" and
        "student_t"). To such a model, a deviation counts more in a row of a kind that hardly varies than in
        one that varies much (a heteroscedastic model); but it may make the scale large where it does not
        know better, above all with few rows. Columns of at most ten values, which have levels and no noise,
        and those with gross errors, beyond 100 in the units of the scaled data, keep one scale.

    Examples
    --------
    >>> from vae_anomaly import Member, VAEDetector
    >>> robust = VAEDetector(members=[Member(trimmed_fraction=0.2)] * 3)
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "trimmed_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_factor": [Interval(Real, 0, None, closed="left")],
        "column_transform": [StrOptions({"yeo-johnson", "whiten"}), None],
        "pooling": [Interval(Integral, 1, None, closed="left")],
        "scale": [StrOptions({"per_row"}), None],
    }

    def __init__(
        self,
        trimmed_fraction: float = 0.0,
        beta_factor: float = 1.0,
        column_transform: str | None = None,
        pooling: int = 1,
        scale: str | None = None,
    ) -> None:
        self.trimmed_fraction = trimmed_fraction
        self.beta_factor = beta_factor
        self.column_transform = column_transform
        self.pooling = pooling
        self.scale = scale


def _as_they_are_and_transformed(*kinds: tuple[float, float]) -> tuple[Member, ...]:
    """Members of these trimmed fractions and beta factors: with the columns as they are, then transformed."""
    return tuple(
        Member(trimmed_fraction, beta_factor, column_transform)
        for column_transform in (None, "yeo-johnson")
        for trimmed_fraction, beta_factor in kinds
    )


#: What ``members="auto"`` means for tables of numbers. On clean training rows the members with a small beta
#: are better, on contaminated ones the trimmed; skewed columns want a transform, others none. Their mean is
#: good on all (`benchmarks/results/trials.md`). The trimmed leave out more rows than are likely to be
#: anomalies: a tight cluster of those, which is easily learned, must not be among what is kept.
DEFAULT_MEMBERS = _as_they_are_and_transformed((0.0, 0.3), (0.3, 1.0), (0.0, 0.1), (0.4, 1.0))

#: The same for mixed tables, on which members that trim more found less (`benchmarks/results/trials.md`).
MIXED_MEMBERS = _as_they_are_and_transformed((0.0, 0.3), (0.1, 1.0), (0.0, 0.1), (0.2, 1.0))

#: The same for tables of hundreds of columns of numbers, such as embeddings (`benchmarks/results/trials.md`).
#: Whitened members keep the whole KL: with a smaller one, their latent variables would learn noise. The two
#: others tell what is expected.
WIDE_MEMBERS = (
    Member(beta_factor=0.3),
    Member(trimmed_fraction=0.1),
    *(Member(trimmed_fraction, 1.0, "whiten") for trimmed_fraction in (0.0, 0.1) * 3),
)

#: The same for signals: convolutions take longer than dense members, and one found nearly all that two found.
#: The second doubles the rows that a member was not trained on, among which the threshold is set.
SIGNAL_MEMBERS = (Member(),) * 2

#: The same for whole images.
IMAGE_MEMBERS = (Member(),) * 4

#: The same for patches of images. Their latents have to carry a texture's grain and not its defects: with a
#: beta of 1 a patch without any texture is more probable than one with it (`benchmarks/results/trials.md`).
PATCH_MEMBERS = (Member(beta_factor=0.3), Member(beta_factor=0.1)) * 2

# By how much the resolution falls from one scale to the next, and how many patches, side by side, the shorter
# side of an image still holds at the lowest.
_POOLING, _FEWEST_PATCHES_ACROSS = 4, 2


def patch_members(shorter_side: int, side: int) -> tuple[Member, ...]:
    """What ``members="auto"`` means for patches of this side in images of this size.

    `PATCH_MEMBERS` see every pixel. What is much larger than a patch, such as a stain, or a part that is
    missing from a picture of a thousand pixels, is nothing unusual in any of them, and is seen at a lower
    resolution: there are two more members for each fourth of the resolution before, as long as an image is
    still two patches wide.
    """
    members, pooling = list(PATCH_MEMBERS), _POOLING
    while shorter_side // pooling >= _FEWEST_PATCHES_ACROSS * side:
        members += [Member(beta_factor=beta_factor, pooling=pooling) for beta_factor in (0.3, 0.1)]
        pooling *= _POOLING
    return tuple(members)


class Recipe(NamedTuple):
    """How a detector is to be trained, with every "auto" decided."""

    members: tuple[Member, ...]
    validation_fraction: float
    early_stopping: bool


def resolve_recipe(
    members: str | int | Sequence[Member],
    validation_fraction: str | float,
    early_stopping: str | bool,
    *,
    default_members: Sequence[Member],
    decide: bool,
    of_images: bool,
    n_rows: int,
) -> Recipe:
    """The recipe that the detector's parameters ask for.

    Parameters
    ----------
    members, validation_fraction, early_stopping
        The detector's parameters.
    default_members : sequence of Member
        What ``members="auto"`` means.
    decide : bool
        Whether the fit decides how long to train: "auto" then stops early.
    of_images : bool
        Of images, "auto" holds some out whether it stops early or not: models of images score those that they
        were trained on far lower than new ones, and a threshold has to be for new ones.
    n_rows : int
        Of fewer than 10 rows, "auto" holds out none.

    Raises
    ------
    TypeError, ValueError
        If ``members`` holds anything but `Member` objects, or nothing, or if early stopping has no rows to
        watch.
    """
    if isinstance(members, str):
        members = default_members
    members = (Member(),) * int(members) if isinstance(members, (int, np.integer)) else tuple(members)
    if not members:
        raise ValueError("members must hold at least one Member; received none.")
    for member in members:
        if not isinstance(member, Member):
            raise TypeError(f"members must be a number or a list of Member objects; received {member!r}.")
        member._validate_params()
    if early_stopping not in ("auto", False) and validation_fraction == 0:
        raise ValueError(
            "early_stopping=True watches rows that are held out of training: set validation_fraction, for "
            "example to 0.1; received validation_fraction=0."
        )
    enough = n_rows >= _FEWEST_ROWS_TO_SPLIT
    if isinstance(early_stopping, str):
        early_stopping = decide and validation_fraction != 0 and enough
    if isinstance(validation_fraction, str):
        holds_out = early_stopping or (of_images and enough)
        validation_fraction = _HELD_OUT if holds_out else 0.0
    return Recipe(members, validation_fraction, bool(early_stopping))
