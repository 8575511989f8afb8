r"""Ensembles: several models of one architecture, trained on the same rows in different ways.

The members' scores are averaged, with weights that give each the same say. A weighted mean of ELBOs is itself
a bound: by Jensen's inequality, of the log-density of the members' mixture :math:`\sum_m w_m p_m(x)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Protocol

import joblib
import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils._param_validation import Interval

from vae_anomaly import programs, training
from vae_anomaly.interruption import Interruption
from vae_anomaly.rows import Rows
from vae_anomaly.sparse_rows import representative, subset
from vae_anomaly.states import ModelState, Specification

__all__ = [
    "Keeper",
    "Member",
    "Recipe",
    "Seeds",
    "Trained",
    "averaged",
    "check_continues",
    "confidence",
    "recipe",
    "sample",
    "train_members",
    "weights_by_row",
    "weights_for",
]

_FEWEST_ROWS_TO_SPLIT = 10
_HELD_OUT = 0.2
# A log-likelihood in the place of one that is beyond float32.
_NEVER = -1e30


class Member(BaseEstimator):  # type: ignore[misc]
    r"""How one model of an ensemble is trained, where it differs from the others.

    Parameters
    ----------
    trimmed_share : float, default=0.0
        Share of each training batch, in [0, 1), that has the greatest loss and is left out of the step.
        A model trained so does not learn rows that it finds improbable, such as anomalies among the
        training rows (least trimmed squares, Rousseeuw 1984, for the objective of a VAE). Raise it
        above the share of anomalies that you expect; on clean rows it costs a little.
    beta_factor : float, default=1.0
        Multiplies the detector's ``beta``. Below 1 the latent variables carry more of a row, and its
        reconstruction is sharper.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> from vae_anomaly.ensemble import Member
    >>> robust = VAEDetector(members=[Member(trimmed_share=0.2)] * 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "trimmed_share": [Interval(Real, 0, 1, closed="left")],
        "beta_factor": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, trimmed_share: float = 0.0, beta_factor: float = 1.0) -> None:
        self.trimmed_share = trimmed_share
        self.beta_factor = beta_factor


#: What ``members="auto"`` means for tables. On clean training rows the members with a small beta are better,
#: on contaminated ones the trimmed; their mean is good on both (`benchmarks/results/ablation.md`).
DEFAULT_MEMBERS = (
    Member(beta_factor=0.3),
    Member(trimmed_share=0.1),
    Member(beta_factor=0.1),
    Member(trimmed_share=0.2),
) * 2


class Recipe(NamedTuple):
    """How a detector is to be trained, with every "auto" decided."""

    members: tuple[Member, ...]
    validation_fraction: float
    early_stopping: bool


def recipe(
    members: str | int | Sequence[Member],
    validation_fraction: str | float,
    early_stopping: str | bool,
    *,
    decide: bool,
    n_rows: int,
) -> Recipe:
    """The recipe that the detector's parameters ask for.

    Parameters
    ----------
    members, validation_fraction, early_stopping
        The detector's parameters.
    decide : bool
        Whether "auto" chooses what detects best; otherwise it chooses one model trained on all rows.
    n_rows : int
        Of fewer than 10 rows, "auto" holds out none.

    Raises
    ------
    TypeError, ValueError
        If ``members`` holds anything but `Member` objects, or nothing, or if early stopping has no rows to
        watch.
    """
    if isinstance(members, str):
        members = DEFAULT_MEMBERS if decide else 1
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
        validation_fraction = _HELD_OUT if early_stopping else 0.0
    return Recipe(members, validation_fraction, bool(early_stopping))


class Seeds(NamedTuple):
    """What makes one member's training its own."""

    initial: int
    split: int
    shuffle: int
    noise: int


class Keeper(Protocol):
    """Who keeps where the members' trainings stand, and knows where an earlier process left them."""

    def begin(
        self,
        specification: Specification,
        rows: Rows,
        plan: training.Plan,
        the_recipe: Recipe,
        seeds: Sequence[Seeds],
        noise: Rows,
        earlier: Sequence[ModelState] | None,
    ) -> list[training.Standing | None]:
        """Where each member's training is to go on; None is its beginning."""

    def keep(self, position: int, standing: training.Standing) -> None:
        """Take note of where a member stands; called after each epoch, by any thread."""

    def flush(self) -> None:
        """Lose nothing of what was noted."""


class Trained(NamedTuple):
    """What a training of all members leaves.

    Attributes
    ----------
    states : tuple of ModelState
        After an interruption, of the members that were trained for an epoch: the first ones.
    history : dict of list of float, means over the members that still trained
    interrupted : bool
    """

    states: tuple[ModelState, ...]
    history: dict[str, list[float]]
    interrupted: bool


def train_members(
    specification: Specification,
    rows: Rows,
    plan: training.Plan,
    the_recipe: Recipe,
    seeds: Sequence[Seeds],
    *,
    noise: Rows,
    earlier: Sequence[ModelState] | None = None,
    callbacks: Sequence[Any] = (),
    verbose: int = 0,
    keeper: Keeper | None = None,
) -> Trained:
    """Train every member on its own split of the rows, one on each processor, and average their histories.

    The result does not depend on how many are trained at once. Ctrl-C ends all trainings with the epochs that
    they are in, and members that have not begun are left out.

    Parameters
    ----------
    specification : Specification, shared by the members
    rows : float32 array of shape (n_rows, n_features)
    plan : Plan
        How to train; each member's own settings are put into it.
    the_recipe : Recipe
    seeds : one `Seeds` for each member
    noise : float32 array of shape (n_draws, latent_dim), for the loss of held-out rows
    earlier : the members' states to go on from, or None
    callbacks, verbose : as in `training.train`
    keeper : Keeper or None

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C comes before an epoch has been finished, or twice.
    """
    n_members = len(the_recipe.members)
    standings: list[training.Standing | None] = [None] * n_members
    if keeper is not None:
        standings = keeper.begin(specification, rows, plan, the_recipe, seeds, noise, earlier)
    interruption = Interruption()

    def train_one(position: int) -> training.TrainingResult | None:
        member, seed = the_recipe.members[position], seeds[position]
        if interruption.asked and standings[position] is None:
            return None
        kept, validation = _split(rows, the_recipe.validation_fraction, seed.split, noise)
        if verbose and n_members > 1:
            print(f"Member {position + 1} of {n_members}")
        with programs.placed(plan.device):
            if earlier is None:
                start = programs.architecture(specification).initial_state(seed.initial, representative(kept))
            else:
                before = earlier[position]
                start = programs.architecture_of(before).on_new_rows(before, representative(kept))
        return training.train(
            start,
            kept,
            replace(
                plan,
                beta=plan.beta * member.beta_factor,
                trimmed_share=member.trimmed_share,
                early_stopping=the_recipe.early_stopping,
            ),
            shuffle_seed=seed.shuffle,
            noise_seed=seed.noise,
            validation=validation,
            callbacks=callbacks,
            verbose=verbose,
            standing=standings[position],
            keep=None if keeper is None else partial(keeper.keep, position),
            interruption=interruption,
        )

    # Programs are pure functions and run outside Python's lock; a terminal and callbacks take one at a time.
    n_threads = 1 if callbacks or verbose else min(n_members, joblib.cpu_count())
    try:
        if n_threads == 1:
            found = _one_by_one(train_one, n_members, interruption)
        else:
            # Built before the threads start: Keras' settings and custom objects are the calling thread's.
            programs.architecture(specification)
            found = _in_threads(train_one, n_members, n_threads, interruption)
    finally:
        if keeper is not None:
            keeper.flush()
    results = []
    for result in found:
        if result is None or not result.history:  # it had not begun, or finished no epoch
            break
        results.append(result)
    if not results:
        raise KeyboardInterrupt
    history = _mean_history([result.history for result in results])
    if interruption.asked:
        of_members = "" if n_members == 1 else f" of {len(results)} of {n_members} members"
        warnings.warn(
            f"Ctrl-C has ended the training{of_members} after {len(history['loss'])} epochs: the detector "
            "works, but was trained for less than its parameters say. Its attribute interrupted_ is True."
            f"{'' if keeper is None or earlier else ' fit(X, resume=True) goes on with the training.'}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return Trained(tuple(result.state for result in results), history, interruption.asked)


def _one_by_one(
    train_one: Callable[[int], training.TrainingResult | None], n_members: int, interruption: Interruption
) -> list[training.TrainingResult | None]:
    results = []
    for position in range(n_members):
        try:
            results.append(train_one(position))
        except KeyboardInterrupt:
            interruption.ask()
            results.append(None)
    return results


def _in_threads(
    train_one: Callable[[int], training.TrainingResult | None],
    n_members: int,
    n_threads: int,
    interruption: Interruption,
) -> list[training.TrainingResult | None]:
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            futures = [pool.submit(train_one, position) for position in range(n_members)]
            try:
                return [_result(future) for future in futures]
            except KeyboardInterrupt:
                interruption.ask()
                return [_result(future) for future in futures]
        except BaseException:
            # The pool waits for its threads.
            interruption.abandon()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future[training.TrainingResult | None]) -> training.TrainingResult | None:
    while not future.done():
        wait([future], timeout=1)  # on Windows, Ctrl-C does not end a wait without end
    return future.result()


def weights_for(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights that sum to 1 and make the members' scores spread alike: shape (n_members,).

    They are inverse to the interquartile range of each member's training scores, an array of shape
    (n_members, n_rows): a member with small scales, whose scores are large, does not drown the others.
    Equal weights if some range is 0.
    """
    spread = np.subtract(*np.percentile(scores, [75, 25], axis=1))
    weights = 1 / spread if (spread > 0).all() else np.ones(len(scores))
    return np.asarray(weights / weights.sum())


def weights_by_row(
    weights: npt.NDArray[np.float64], log_likelihood: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    r"""Weights of what the members expect in each row, which sum to 1 over them: shape (n_members, n_rows).

    Of d features, by how well each member m explains the row:

    .. math:: w_m(x) \propto w_m \, \exp\Bigl(\tfrac2d \, \mathrm E_q \log p_m(x|z)\Bigr)

    The geometric mean of the cells' densities is inverse to the size of the errors; squared, it weighs the
    members as independent guesses are weighed, by the inverse of their variance. So a member that has learnt
    little of such rows, which a detector needs to be robust, has little to say of their cells.

    Parameters
    ----------
    weights : array of shape (n_members,)
    log_likelihood : array of shape (n_members, n_rows)
        Mean over the features, in nats; see `scoring.reconstruct`.
    """
    explained = np.nan_to_num(log_likelihood, nan=_NEVER, neginf=_NEVER)
    by_row = weights[:, None] * np.exp(2 * (explained - explained.max(axis=0)))
    return np.asarray(by_row / by_row.sum(axis=0))


def averaged(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted mean over the members, the first axis: bit by bit the same whatever the number of rows.

    ``weights`` are of shape (n_members,), or (n_members, n_rows) if each row has its own.
    """
    weighted = values * weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
    return np.asarray(weighted.sum(axis=0))


def confidence(
    decision: npt.NDArray[np.float64],
    by_member: npt.NDArray[np.float64],
    draw_errors: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """The probability that other members and other draws leave the sign of the decision: shape (n_rows,).

    Parameters
    ----------
    decision : array of shape (n_rows,)
        How far the score lies above the cut.
    by_member : array of shape (n_members, n_rows)
        The members' scores, each above its own usual level.
    draw_errors : array of shape (n_members, n_rows)
        Standard errors that come from the draws. The members share them: their errors add up.
    weights : array of shape (n_members,)
    """
    n_members = len(weights)
    of_members = np.zeros(len(decision))
    if n_members > 1:
        of_members = (n_members * weights[:, None] * by_member).std(axis=0, ddof=1) / math.sqrt(n_members)
    error = np.hypot(of_members, averaged(draw_errors, weights))
    with np.errstate(over="ignore"):  # nothing left to chance: certain
        return np.asarray(stats.norm.cdf(np.abs(decision) / np.maximum(error, np.finfo(float).tiny)))


def sample(
    states: Sequence[ModelState],
    weights: npt.NDArray[np.float64],
    n_samples: int,
    rng: np.random.RandomState,
    noise: bool = True,
) -> npt.NDArray[np.float64]:
    """New rows, each by a member that its weight chooses, see `VAE.sample`: shape (n_samples, n_features)."""
    seeds = rng.randint(np.iinfo(np.int32).max, size=len(states))
    members = rng.choice(len(states), size=n_samples, p=weights)
    rows = np.empty((n_samples, states[0].specification.n_features))
    for position, (state, seed) in enumerate(zip(states, seeds, strict=True)):
        if chosen := (members == position).sum():
            rows[members == position] = programs.model_of(state).sample(int(chosen), int(seed), noise)
    return rows


def check_continues(
    earlier: Sequence[ModelState], specification: Specification, n_members: int, n_kept: int, n_draws: int
) -> None:
    """Refuse a warm start that cannot go on from the ``earlier`` models and their ``n_kept`` draws."""
    if n_draws != n_kept:
        raise ValueError(
            f"warm_start=True keeps the {n_kept} draws of the earlier fit, but n_draws is {n_draws} now; set "
            "warm_start=False to start anew."
        )
    if n_members != len(earlier):
        raise ValueError(
            f"warm_start=True goes on with the {len(earlier)} members of the earlier fit, but now there are "
            f"to be {n_members}; set warm_start=False to start anew."
        )
    if specification.key != earlier[0].specification.key:
        raise ValueError(
            "warm_start=True goes on with the network of the earlier fit, but network, likelihood, "
            "latent_dim or the width of X have changed since; set warm_start=False to start anew."
        )


def _split(rows: Rows, fraction: float, seed: int, noise: Rows) -> tuple[Rows, training.Validation | None]:
    if not fraction:
        return rows, None
    n_held_out = math.ceil(fraction * len(rows))
    if n_held_out >= len(rows):
        raise ValueError(
            f"validation_fraction={fraction:g} leaves none of the {len(rows)} rows to train on; lower it, or "
            "fit on more rows."
        )
    kept, held_out = train_test_split(np.arange(len(rows)), test_size=n_held_out, random_state=seed)
    return subset(rows, kept), training.Validation(subset(rows, held_out), noise)


def _mean_history(histories: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Mean over the members that still trained, epoch by epoch."""
    lengths = np.array([len(history["loss"]) for history in histories])
    trained = np.arange(lengths.max()) < lengths[:, None]

    def mean(name: str) -> npt.NDArray[np.float64]:
        values = np.zeros(trained.shape)
        values[trained] = np.concatenate([history[name] for history in histories])
        return np.asarray(values.mean(axis=0, where=trained))

    return {name: mean(name).tolist() for name in histories[0]}
