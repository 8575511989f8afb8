"""Model cards: what a fitted detector is, as figures and as a page of Markdown.

Here is the one address of these figures; a model file's manifest holds them too (see `files.model_file`).
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import estimator_html_repr

from vae_anomaly.calibration import Certificate
from vae_anomaly.calibration.checks import find_held_out_scores
from vae_anomaly.core.spec import state_of
from vae_anomaly.core.types import Detector, Json, Values
from vae_anomaly.core.versions import versions
from vae_anomaly.data.scaling import units_of_columns
from vae_anomaly.data.tables import Table
from vae_anomaly.model.states import ModelState
from vae_anomaly.objectives import Objective
from vae_anomaly.posteriors import Gaussian
from vae_anomaly.priors import Standard
from vae_anomaly.scoring import is_estimate

__all__ = ["ModelCard"]

_LONGEST_TEXT, _MOST_COLUMNS = 200, 50
_FRACTIONS = ("fraction", "rate", "rates")


class ModelCard(Mapping[str, Json]):
    """What a fitted detector is: a read-only dictionary of sections, and a page of Markdown by ``str``.

    `VAEDetector.model_card` makes it. Notebooks show the page. What is not known of a detector, for example
    of one that an older release has saved, is None and does not stand on the page.

    Parameters
    ----------
    sections : dict of str to dict or list
        Numbers, texts, booleans and None, in dictionaries and lists: JSON can hold them.

    Examples
    --------
    >>> from vae_anomaly.model_card import ModelCard
    >>> card = ModelCard({"data": {"rows": 1200, "missing_fraction": 0.05}, "notes": ["Made by hand."]})
    >>> card["data"]["rows"]
    1200
    >>> print(card)
    # VAEDetector
    <BLANKLINE>
    ## Data
    <BLANKLINE>
    - rows: 1,200
    - missing fraction: 5 %
    <BLANKLINE>
    ## Notes
    <BLANKLINE>
    - Made by hand.
    """

    def __init__(self, sections: Mapping[str, Json]) -> None:
        self._sections = copy.deepcopy(dict(sections))

    def __getitem__(self, section: str) -> Json:
        return self._sections[section]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)

    def to_dict(self) -> Values:
        """The sections as a dictionary of one's own, which `json.dump` takes as it is."""
        return copy.deepcopy(self._sections)

    def __str__(self) -> str:
        parts = ["# VAEDetector"]
        for name, content in self._sections.items():
            parts.append(f"## {name.capitalize()}")
            if name == "columns":
                parts.append(_table(content))
            elif isinstance(content, list):
                parts.append("\n".join(f"- {text}" for text in content))
            else:
                known = {key: value for key, value in content.items() if value is not None}
                if name == "parameters":  # of all of them, what Python writes
                    lines = [f"- {_code(key)}: {_code(value)}" for key, value in known.items()]
                else:
                    lines = [f"- {_label(key)}: {_in_words(key, value)}" for key, value in known.items()]
                parts.append("\n".join(lines) or "None.")
        return "\n\n".join(parts)

    __repr__ = __str__
    _repr_markdown_ = __str__


def describe(detector: Detector) -> ModelCard:
    """The card of a fitted detector."""
    figures = summary(detector)
    sections: Values = {"data": figures.pop("data")}
    if detector.image_shape_ is None:
        sections["columns"] = _columns(detector)
    sections["model"] = figures.pop("model")
    given, _, _ = state_of(detector)
    sections["parameters"] = {name: _shorten(value) for name, value in given.items()}
    return ModelCard({**sections, **figures, "notes": _notes(detector), "versions": versions()})


def summary(detector: Detector) -> dict[str, Values]:
    """The sections of a card whose size does not grow with the columns."""
    state, history = detector.members_[0], detector.history_
    network, likelihood, *_, posterior, prior = state.specification
    patches = getattr(detector, "patches_", None)
    missing = getattr(detector, "missing_fraction_", None)
    last_epoch = {name: _number(values[-1]) for name, values in history.items() if values}
    return {
        "data": {
            "rows": getattr(detector, "n_samples_fit_", None),
            "rows_drawn": _rows_drawn(detector),
            "features": int(detector.n_features_in_),
            "image_shape": None if detector.image_shape_ is None else list(map(int, detector.image_shape_)),
            "likelihoods": None if detector.table_ is None else _count_likelihoods(detector.table_),
            "missing_fraction": None if missing is None else float(np.mean(missing)),
        },
        "model": {
            "network": _shorten(network),
            "patches": None if patches is None else f"{patches.side} x {patches.side} pixels",
            "members": len(detector.members_),
            "members_that_pool_pixels": int(detector._fitted.is_pooled.sum()) or None,
            "members_that_transform_columns": sum(map(_transforms, detector.members_)),
            "members_that_whiten_columns": sum(state.is_whitened for state in detector.members_) or None,
            "members_with_a_scale_per_row": sum(state.has_scale_per_row for state in detector.members_)
            or None,
            "weights_of_a_member": int(state.trainable.size),
            "latent_dim": int(detector.latent_dim_),
            "likelihood": _shorten(likelihood) if detector.table_ is None else likelihood.name,
            "posterior": None if posterior == Gaussian() else _shorten(posterior),
            "prior": None if prior == Standard() else _shorten(prior),
            "scaler": _shorten(detector.scaler_),
            "score": detector.score_ if isinstance(detector.score_, str) else _shorten(detector.score_),
            "draws": len(detector.draws_),
        },
        "training": {
            "objective": _objective(detector),
            "epochs": len(history["loss"]),
            "early_stopping": getattr(detector, "do_early_stopping_", None),
            "interrupted": getattr(detector, "interrupted_", None),
            "last_epoch": last_epoch,
        },
        "threshold": _threshold(detector),
    }


def _rows_drawn(detector: Detector) -> int | None:
    """How many of more rows were drawn, to be judged and, unless all were, to be trained on; else None."""
    n_drawn = getattr(detector, "n_samples_drawn_", None)
    return None if n_drawn == getattr(detector, "n_samples_fit_", None) else n_drawn


def _objective(detector: Detector) -> str | None:
    """Which bound the training has maximized; None for an exact ELBO, or if it is not known."""
    objective: Objective | None = getattr(detector, "objective_", None)
    if not detector.members_[0].specification.posterior.has_density:
        return "elbo, an estimate and no bound"
    if objective is None or objective.is_elbo:
        return None
    return f"{_shorten(objective)}, {'an' if objective.side == 'upper' else 'a'} {objective.side} bound"


def _transforms(state: ModelState) -> bool:
    numbers = state.column_transform
    return numbers is not None and bool((numbers[0] > 0).any())


def _threshold(detector: Detector) -> Values:
    scores = detector.calibration_scores_
    rule: Any = getattr(detector, "threshold_", None)  # unknown of a detector that an older release has saved
    rates = None
    if scores is not None and hasattr(rule, "realized_rates"):
        rates = rule.realized_rates(len(scores))
    certificate, groups = _certificate(detector), getattr(detector, "calibration_groups_", None)
    return {
        "rule": None if rule is None else _shorten(rule),
        "offset": _number(detector.offset_),
        "false_alarm_rate": getattr(detector, "false_alarm_rate_", None),
        "realized_rates": None if rates is None else list(rates),
        "certified_rate": None if certificate is None else certificate.rate,
        "groups": None if groups is None else len(set(groups.tolist())),
        "calibration_rows": None if scores is None else len(scores),
    }


def _certificate(detector: Detector) -> Certificate | None:
    """With 95 % confidence; None if no rows were held out, or if there is no number to certify."""
    scores = find_held_out_scores(detector)
    if scores is None or np.isnan(scores).any() or np.isnan(detector.offset_):
        return None
    certificate: Certificate = detector.false_alarm_certificate()
    return certificate


def _count_likelihoods(table: Table) -> dict[str, int]:
    return dict(Counter(column.taken_as for column in table.columns))


def describe_columns(detector: Detector) -> pd.DataFrame:
    """See `VAEDetector.describe_columns`."""
    if detector.image_shape_ is not None:
        raise ValueError("the detector was fitted on images, which have pixels and no columns.")
    names = [column.name for column in detector.table_.columns] if detector.table_ is not None else None
    facts = pd.DataFrame(_columns(detector)).astype({"categories": "Int64"})
    labels = pd.Index(facts["name"] if names is None else names, name="column", tupleize_cols=False)
    return facts.drop(columns="name").set_index(labels)


def html(detector: Detector) -> str:
    """scikit-learn's page of an estimator; behind it, to be opened, what a table's columns were taken for."""
    page: str = estimator_html_repr(detector)
    if getattr(detector, "table_", None) is None:
        return page
    left_out = f", {len(detector.table_.ignored)} of them ignored" if detector.table_.ignored else ""
    lines = describe_columns(detector).to_html(max_rows=_MOST_COLUMNS, na_rep="", border=0)
    title = f"{len(detector.table_.columns)} columns{left_out}"
    return f"{page}<details><summary>{title}</summary>{lines}</details>"


def _columns(detector: Detector) -> list[Values]:
    table, names = detector.table_, getattr(detector, "feature_names_in_", None)
    powers = _powers(detector.members_, detector.n_features_in_)
    centers, scales = units_of_columns(detector.scaler_, detector.n_features_in_)
    missing = getattr(detector, "missing_fraction_", None)
    lines = []
    for position in range(detector.n_features_in_):
        column = None if table is None else table.columns[position]
        name = position if names is None else names[position]
        name = name if column is None else column.name
        likelihood = detector.members_[0].specification.likelihood.name if column is None else column.taken_as
        categories = None if column is None else column.categories
        lines.append(
            {
                "name": name if type(name) in (str, int) else str(name),
                "dtype": None if column is None else str(column.dtype),
                "likelihood": str(likelihood),
                "categories": None if categories is None else len(categories),
                "center": _unless_nan(centers[position]),
                "scale": _unless_nan(scales[position]),
                "power": powers[position],
                "missing_fraction": None if missing is None else float(missing[position]),
            }
        )
    return lines


def _unless_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _powers(members: Sequence[ModelState], n_columns: int) -> list[float | None]:
    """By which each column is transformed inside of members that do so; None for one that stays as it is."""
    for state in members:
        numbers = state.column_transform
        if numbers is not None and numbers.shape[1] == n_columns and (numbers[0] > 0).any():
            return [
                round(float(power), 3) if flag else None for flag, power in zip(*numbers[:2], strict=True)
            ]
    return [None] * n_columns


def _notes(detector: Detector) -> list[str]:
    """What a reader should know before trusting the figures."""
    notes = [
        "Normal is what is common among the training rows, whatever it means; the detector does not follow "
        "rows that change.",
    ]
    n_rows = getattr(detector, "n_samples_fit_", 0)
    if n_before := getattr(detector, "n_samples_seen_", n_rows) - n_rows:
        notes.append(
            f"The model went on with new rows by partial_fit, after {n_before:,} others. The threshold and "
            f"what it promises are of the last {n_rows:,} rows alone; the scaler is of the first."
        )
    promised = getattr(detector, "false_alarm_rate_", False)
    if promised is None:
        notes.append(
            "The threshold lies among the scores of training rows, which are lower than those of new rows: "
            "it promises no false-alarm rate for them. threshold='conformal' does."
        )
    elif promised:
        notes.append(
            "The false-alarm rate is that of new rows of the training rows' kind. It says nothing of how "
            "many anomalies are found, or how many alarms are false."
        )
    if (certificate := _certificate(detector)) is not None:
        notes.append(f"{certificate} This takes new rows that are independent and as the calibration rows.")
    posterior = detector.members_[0].specification.posterior
    if not posterior.has_density:
        also = " So are the score and the threshold." if is_estimate(detector.score_, posterior) else ""
        notes.append(
            "The density of the posterior is estimated: the KL, and with it loss, val_loss and the ELBO, are "
            f"estimates, no bounds, and do not compare with those of other posteriors.{also}"
        )
    if getattr(detector, "interrupted_", False):
        notes.append("The training was interrupted: the model was trained for less than its parameters say.")
    missing = getattr(detector, "missing_fraction_", None)
    if missing is not None and not np.any(missing):
        notes.append("The training rows had no gaps. Gaps in new rows are inferred from the other columns.")
    if detector.table_ is not None and any(c.categories is not None for c in detector.table_.columns):
        notes.append("A category that the training rows did not have counts as improbable, or as an error.")
    if detector.random_state is None:
        notes.append("random_state is None: another fit on the same rows gives other scores.")
    return notes


# -- words --------------------------------------------------------------------------------------------------
def _number(value: float) -> float | str:
    """A float, or its name if JSON has no such number."""
    return float(value) if math.isfinite(value) else str(float(value))


def _shorten(value: object) -> str:
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def _in_words(name: str, value: Json) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(key, part)}" for key, part in value.items()) or "none"
    if name.split("_")[-1] in _FRACTIONS:
        return " to ".join(
            f"{100 * share:.3g} %" for share in (value if isinstance(value, list) else [value])
        )
    if isinstance(value, list):
        return " × ".join(map(str, value))
    if isinstance(value, str) or name == "name":
        return _code(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _label(name: str) -> str:
    return name.replace("_", " ")


def _code(text: str) -> str:
    # A name may come from a stranger's file: as code, notebooks show it and never render it.
    text = " ".join(text.split()).replace("`", "'")
    return f"`{text or ' '}`"


def _table(columns: list[Values]) -> str:
    known = [key for key in columns[0] if any(column[key] is not None for column in columns)]
    lines = [
        "| " + " | ".join(map(_label, known)) + " |",
        "|" + "---|" * len(known),
    ]
    for column in columns[:_MOST_COLUMNS]:
        cells = ["" if column[key] is None else _in_words(key, column[key]) for key in known]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if len(columns) > _MOST_COLUMNS:
        lines.append(f"\nand {len(columns) - _MOST_COLUMNS:,} more.")
    return "\n".join(lines)
