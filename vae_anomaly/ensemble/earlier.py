"""Going on from an earlier fit: by a warm start, or with new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.model.states import ModelState, Specification

__all__ = ["PARTIAL_FIT", "WARM_START", "Continuation", "Earlier", "check_continues"]


class Continuation(NamedTuple):
    """A way to go on from an earlier fit.

    Attributes
    ----------
    name, otherwise : str
        What errors and warnings call it, and how they tell to start anew instead.
    takes_new_rows : bool
        Whether its rows are other ones than the earlier fit's: others are held out, and what is known of the
        columns grows.
    """

    name: str
    otherwise: str
    takes_new_rows: bool


WARM_START = Continuation("warm_start=True", "set warm_start=False", takes_new_rows=False)
PARTIAL_FIT = Continuation("partial_fit", "call fit", takes_new_rows=True)


@dataclass(frozen=True, eq=False)
class Earlier:
    """What a fit goes on from.

    Attributes
    ----------
    continuation : Continuation
    fitted : Fitted
    cut : float
    false_alarm_rate : float or None
        The fraction of new rows like the earlier ones above the cut, None if it is not known.
    history : dict of list of float
    split_seeds : list of int or None
        Held-out rows of the earlier fit stay held out if the rows are the same. None for new rows.
    calibration_seed : int or None
    n_rows : int
        Rows of the earlier fit.
    n_rows_seen : int
        Rows that were seen before new ones, in all; 0 for the same rows.
    fingerprint : str or None
        That of the earlier fit's rows, None if it is not known.
    warns : bool
        Whether anything is warned of; not where a fold is trained.
    """

    continuation: Continuation
    fitted: Fitted
    cut: float
    false_alarm_rate: float | None
    history: dict[str, list[float]]
    split_seeds: list[int] | None
    calibration_seed: int | None
    n_rows: int
    n_rows_seen: int
    fingerprint: str | None
    warns: bool = True

    @property
    def whitens_columns(self) -> bool:
        """Whether some members whiten the columns."""
        return self.fitted.members[0].specification.whitens_columns


def check_continues(
    earlier: Sequence[ModelState],
    specification: Specification,
    n_members: int,
    n_kept: int,
    n_draws: int,
    continuation: Continuation,
) -> None:
    """Refuse to go on from the ``earlier`` models and their ``n_kept`` draws where that cannot be."""
    name, otherwise, _ = continuation
    if n_draws != n_kept:
        raise ValueError(
            f"{name} keeps the {n_kept} draws of the earlier fit, but n_draws is {n_draws} now; {otherwise} "
            "to start anew."
        )
    if n_members != len(earlier):
        raise ValueError(
            f"{name} goes on with the {len(earlier)} members of the earlier fit, but now there are to be "
            f"{n_members}; {otherwise} to start anew."
        )
    if specification.key != earlier[0].specification.of_columns_as_they_are().key:
        raise ValueError(
            f"{name} goes on with the model of the earlier fit, but network, likelihood, posterior, prior, "
            f"latent_dim or the width of X have changed since; {otherwise} to start anew."
        )
