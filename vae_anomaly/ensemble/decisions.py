"""Decisions: what a fit does, with every "auto" decided by the parameters and the kind and number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vae_anomaly import likelihoods, networks, objectives, posteriors, priors, scoring, thresholds
from vae_anomaly.core.types import Shape, ThresholdRule
from vae_anomaly.data.patches import Patches
from vae_anomaly.data.tables import Table
from vae_anomaly.engine.devices import check_devices, device_of
from vae_anomaly.ensemble import calibration_rows
from vae_anomaly.ensemble.calibration_rows import CalibrationRows
from vae_anomaly.ensemble.recipe import (
    DEFAULT_MEMBERS,
    IMAGE_MEMBERS,
    MIXED_MEMBERS,
    SIGNAL_MEMBERS,
    WIDE_MEMBERS,
    Member,
    Recipe,
    patch_members,
    resolve_recipe,
)
from vae_anomaly.likelihoods import Likelihood
from vae_anomaly.networks import DenseNetwork, Network
from vae_anomaly.networks.base import check_unambiguous
from vae_anomaly.networks.conv_sizes import decide_dimensions
from vae_anomaly.posteriors import Posterior
from vae_anomaly.priors import Prior
from vae_anomaly.scoring import Score
from vae_anomaly.training.plan import AUTO_BATCH_SIZE, PARAMETERS, Plan

__all__ = ["Decisions", "decide", "n_rows_in_memory", "trains_on_all"]

# Of which a fifth is held out: five passes are 16,000 steps of 128.
_ROWS_IN_MEMORY = 500_000

# Pixels of the shorter side of images that are seen whole, and of patches of larger ones.
_LARGEST_WHOLE, _SIDE_OF_PATCHES = 32, 8
# More passes forget more of earlier rows, fewer learn less of new ones (`benchmarks/streams.py`).
_PASSES_OVER_NEW_ROWS = 5
# On one class of MNIST digits found better than 256-64 and convolutions, in a sixth of the latter's time.
_UNITS_OF_IMAGES = (128, 64)


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a fit does, with every "auto" decided that the kind and the number of rows decide.

    Attributes
    ----------
    network : Network
        A checked copy, out of reach of a later set_params.
    likelihood : Likelihood
        The same.
    posterior : Posterior
        The same.
    prior : Prior
        The same.
    image_shape : tuple or None
        The shape of an image that was handed in.
    of_images : (height, width, channels) or None
        What a row is: flat rows may be images too.
    patches : Patches or None
        The squares of an image that the network sees; None if it sees whole rows.
    plan : Plan
    recipe : Recipe
    score : str or Score
    rule : threshold rule
    calibration : CalibrationRows
        A fraction to hold out, the folds, or that members judge the rows that they leave out.
    parameters : the detector's parameters, for those that nothing has to be decided of
    trains_on_all : bool
        Whether, of a stream, all rows are trained on, and not only those that were drawn.
    """

    network: Network
    likelihood: Likelihood
    posterior: Posterior
    prior: Prior
    image_shape: Shape | None
    of_images: Shape | None
    patches: Patches | None
    plan: Plan
    recipe: Recipe
    score: str | Score
    rule: ThresholdRule
    calibration: CalibrationRows
    parameters: Mapping[str, Any]
    trains_on_all: bool

    def latent_dim(self, n_features: int) -> int:
        """The number of latent dimensions of a model of so many features.

        Raises
        ------
        ValueError
            If network, posterior or prior are none of so many.
        """
        given, own = self.parameters["latent_dim"], self.posterior.own_latent_dim()
        if own is not None and given not in ("auto", own):
            raise ValueError(
                f"posterior={self.posterior!r} has {own} latent dimensions; received latent_dim={given!r}: "
                "leave latent_dim out."
            )
        latent_dim = own if own is not None else given
        if latent_dim == "auto":
            n_seen = n_features - len(self.likelihood.ignored)
            usual = self.network.default_latent_dim(n_seen, self.of_images is not None)
            latent_dim = max(usual, self.posterior.fewest_latents(), self.prior.fewest_latents())
        latent_dim = int(latent_dim)
        self.posterior.check(latent_dim)
        self.prior.check(self.posterior, latent_dim)
        self.network.check_heads(self.posterior.heads(latent_dim), latent_dim)
        return latent_dim


def decide(
    parameters: Mapping[str, Any],
    table: Table | None,
    image_shape: Shape | None,
    n_rows: int,
    takes_new_rows: bool = False,
    is_wide: bool = False,
) -> Decisions:
    """Decide every "auto", and refuse parameters that contradict each other or the rows.

    Parameters
    ----------
    parameters : the detector's
    table : Table or None
        If columns have likelihoods of their own.
    image_shape : tuple or None
    n_rows : int
    takes_new_rows : bool, default=False
        Whether a fitted detector goes on with new rows: "auto" then takes few passes over them, all of them.
    is_wide : bool, default=False
        Whether there are hundreds of columns, see `data.wide.is_wide`.

    Raises
    ------
    TypeError, ValueError
    """
    check_devices(parameters["device"])
    objective = objectives.resolve(parameters["objective"]).snapshot()
    of_plan = {name: parameters[name] for name in PARAMETERS}
    if isinstance(of_plan["batch_size"], str):
        of_plan["batch_size"] = AUTO_BATCH_SIZE  # which `make_job` reduces for large networks
    plan = Plan(**{**of_plan, "objective": objective, "device": device_of(parameters["device"])})
    posterior = posteriors.resolve(parameters["posterior"]).snapshot()
    prior = priors.resolve(parameters["prior"]).snapshot()
    for part in (objective, posterior, prior):
        part._validate_params()
    patches = _resolve_patches(parameters["patches"], parameters["network"], image_shape)
    network = _resolve_network(parameters["network"], image_shape, patches)
    of_images = network.shape_of_images(image_shape) if patches is None else patches.image_shape
    # Models of patches are like those of a table's rows: only what comes of all squares is of an image.
    of_whole_images = of_images if patches is None else None
    decide = parameters["epochs"] == "auto"
    likelihood = _resolve_likelihood(parameters["likelihood"], network, table, image_shape, patches)
    recipe = resolve_recipe(
        parameters["members"],
        parameters["validation_fraction"],
        parameters["early_stopping"],
        default_members=_default_members(
            network, likelihood, of_whole_images, patches, decide, is_wide and _can_be_whitened(likelihood)
        ),
        decide=decide,
        of_images=of_images is not None,
        n_rows=n_rows,
    )
    _check_scales(recipe.members, likelihood)
    if takes_new_rows:
        if decide:
            plan = replace(plan, epochs=_PASSES_OVER_NEW_ROWS)
        if parameters["early_stopping"] == "auto":
            recipe = recipe._replace(early_stopping=False)
    leaves_rows_out = recipe.validation_fraction > 0
    rule = thresholds.resolve(parameters["threshold"], parameters["contamination"], leaves_rows_out)
    needs_unseen = thresholds.takes_held_out(rule)
    score = scoring.resolve_name(parameters["score"], len(recipe.members), of_whole_images)
    _check_parts(posterior, prior, plan, score)
    if patches is not None and any(member.column_transform for member in recipe.members):
        raise ValueError(
            "a member with column_transform is of a table's columns, and with patches members see squares of "
            "images: leave column_transform out."
        )
    _check_poolings(patches, [member.pooling for member in recipe.members])
    if not _can_be_whitened(likelihood) and any(m.column_transform == "whiten" for m in recipe.members):
        raise ValueError(
            "a member with column_transform='whiten' sees sums of columns, which have a known distribution "
            f"only if all have the likelihood 'gaussian'; received {likelihood!r}."
        )
    calibration = calibration_rows.resolve(
        parameters["calibration"], needs_unseen, n_rows, leaves_rows_out=leaves_rows_out
    )
    thresholds.check(rule, calibration.count_scores(n_rows))
    if parameters["calibrate_intervals"]:
        _check_intervals(patches, leaves_rows_out or calibration.fraction is not None)
    return Decisions(
        network=network,
        likelihood=likelihood,
        posterior=posterior,
        prior=prior,
        image_shape=image_shape,
        of_images=of_images,
        patches=patches,
        plan=plan,
        recipe=recipe,
        score=score,
        rule=rule,
        calibration=calibration,
        parameters=parameters,
        # Patches are so many of any number of images.
        trains_on_all=patches is None and trains_on_all(parameters["max_samples"], parameters["epochs"]),
    )


def n_rows_in_memory(max_samples: int | str | None) -> int:
    """How many rows a fit has in memory at most: those that it draws of more, to train on and to judge."""
    return _ROWS_IN_MEMORY if max_samples is None or isinstance(max_samples, str) else max_samples


def trains_on_all(max_samples: int | str | None, epochs: int | str) -> bool:
    """Whether all rows are trained on, however many there are: "auto" does where passes are counted."""
    return epochs != "auto" if isinstance(max_samples, str) else max_samples is None


def _check_poolings(patches: Patches | None, poolings: Sequence[int]) -> None:
    """Refuse images at a lower resolution where none are seen, or none that hold a square."""
    if patches is not None:
        for pooling in set(poolings):
            patches.pooled(pooling)
    elif max(poolings) > 1:
        raise ValueError(
            "a member with pooling sees patches of images at a lower resolution, and here members see whole "
            "rows or images: set patches to the side of squares within the images, or leave pooling out."
        )


def _check_intervals(patches: Patches | None, holds_rows_out: bool) -> None:
    """Refuse intervals of cells where there are no cells, or no rows that tell of them."""
    if patches is not None:
        raise ValueError(
            "intervals are of the cells of a table, and with patches members see squares of images: set "
            "calibrate_intervals=False."
        )
    if not holds_rows_out:
        raise ValueError(
            "calibrate_intervals=True needs rows that a member is not trained on: set validation_fraction or "
            "calibration, for example to 0.2."
        )


def _check_parts(posterior: Posterior, prior: Prior, plan: Plan, score: str | Score) -> None:
    """Refuse objectives, allowances and scores that this posterior and prior have no numbers for."""
    is_closed = plan.objective.is_elbo and prior.in_training().has_closed_kl(posterior)
    if plan.free_bits and not is_closed:
        raise ValueError(
            "free_bits limits the closed-form KL of each latent dimension, which only objective='elbo' has, "
            f"with a Gaussian or categorical posterior and prior='standard'; set free_bits=0. Received "
            f"free_bits={plan.free_bits}, objective={plan.objective!r}, posterior={posterior!r}, "
            f"prior={prior!r}."
        )
    if posterior.relaxes and not plan.objective.is_elbo:
        raise ValueError(
            f"posterior={posterior!r} draws relaxed z in training, whose density is not that of its z, and "
            f"objective={plan.objective!r} weighs draws by it: set objective='elbo'."
        )
    if posterior.has_density:
        return
    if not plan.objective.is_elbo:
        raise ValueError(
            f"posterior={posterior!r} estimates its density, and objective={plan.objective!r} weighs draws "
            "by it, which makes no bound of an estimate: set objective='elbo'."
        )
    if scoring.density_of(score) == "draws":
        raise ValueError(
            f"posterior={posterior!r} estimates its density, and score={score!r} weighs draws by it, which "
            "makes no bound of an estimate: set score='reconstruction_probability', which does not rest on "
            "it, or score='elbo', which is an estimate then."
        )


def _resolve_patches(
    patches: str | int | None, network: str | Network, image_shape: Shape | None
) -> Patches | None:
    """Which squares of an image the models see; "auto" takes images for whole that are small.

    What fills a small image is an object, such as a digit, and the whole of it is what is unusual. A defect
    of a larger one is a small part of it, in which a score of the whole drowns. Who chooses a network chooses
    what it sees.
    """
    if patches == "auto":
        if image_shape is None or network != "auto" or min(image_shape[:2]) <= _LARGEST_WHOLE:
            return None
        patches = _SIDE_OF_PATCHES
    if patches is None:
        return None
    if image_shape is None:
        raise ValueError(
            f"patches={patches!r} is of images: hand them in as an array of shape (n, height, width) or "
            "(n, height, width, channels), or leave patches out."
        )
    return Patches.of(image_shape, int(patches))


def _resolve_network(network: str | Network, image_shape: Shape | None, patches: Patches | None) -> Network:
    if network == "auto":
        check_unambiguous(image_shape)
        network = _default_network(image_shape, patches)
    network = networks.resolve(network)
    network._validate_params()
    seen = image_shape if patches is None else (patches.side, patches.side, patches.image_shape[2])
    return network.for_images(seen).snapshot()


def _default_network(image_shape: Shape | None, patches: Patches | None) -> str | Network:
    """What ``network="auto"`` means: convolutions for signals, which images of width 1 are, else dense."""
    if image_shape is None or patches is not None:
        return "dense"
    return "conv" if decide_dimensions("auto", image_shape) == 1 else DenseNetwork(_UNITS_OF_IMAGES)


def _default_members(
    network: Network,
    likelihood: Likelihood,
    of_whole_images: Shape | None,
    patches: Patches | None,
    decide: bool,
    whitens: bool,
) -> Sequence[Member]:
    """What ``members="auto"`` means."""
    if patches is not None:
        return patch_members(min(patches.image_shape[:2]), patches.side)
    if of_whole_images is not None:
        return IMAGE_MEMBERS
    if not decide:
        return (Member(),)
    if network.signal_channels() is not None:
        return SIGNAL_MEMBERS
    if isinstance(likelihood, likelihoods.Mixed):
        return MIXED_MEMBERS
    return WIDE_MEMBERS if whitens else DEFAULT_MEMBERS


def _check_scales(members: Sequence[Member], likelihood: Likelihood) -> None:
    if any(member.scale for member in members) and likelihood.per_member() is None:
        raise ValueError(
            "a member with scale='per_row' needs a likelihood whose scale is learned, such as 'gaussian'; "
            f"received {likelihood!r}."
        )


def _can_be_whitened(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, likelihoods.Gaussian) and likelihood.columns_to_scale() is None


def _resolve_likelihood(
    likelihood: str | Likelihood | dict[Any, Any] | list[Any] | tuple[Any, ...],
    network: Network,
    table: Table | None,
    image_shape: Shape | None,
    patches: Patches | None,
) -> Likelihood:
    if table is not None:
        likelihood = table.likelihood
    elif isinstance(likelihood, (dict, list, tuple)) or likelihood == "mixed":
        raise ValueError(
            f"likelihood={likelihood!r} is of a table's columns, and X holds images: give them one "
            "likelihood, such as 'gaussian' or 'bernoulli'."
        )
    elif likelihood == "auto":
        likelihood = "gaussian" if patches is not None else network.default_likelihood(image_shape)
    resolved: Likelihood = likelihoods.resolve(likelihood).snapshot()
    resolved._validate_params()
    return resolved
