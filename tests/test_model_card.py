"""Model cards: what a fitted detector is, in figures that JSON takes and on a page of Markdown."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.exceptions import NotFittedError

import vae_anomaly
from vae_anomaly import DenseNetwork, VAEDetector, load
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.likelihoods import Categorical
from vae_anomaly.model_card import ModelCard
from vae_anomaly.thresholds import Conformal, MedianDeviation, ParetoTail

QUICK = {"network": DenseNetwork((8,)), "epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def homes():
    """200 rows of every kind of column; 30 areas are missing."""
    rng = np.random.RandomState(0)
    frame = pd.DataFrame({"kind": rng.choice(["flat", "house"], 200), "area": rng.normal(80, 20, 200)})
    frame["rooms"] = rng.poisson(3, 200)
    frame["garden"] = rng.random_sample(200) < 0.5
    frame.loc[:29, "area"] = np.nan
    return frame


@pytest.fixture(scope="module")
def detector(homes):
    """Fitted, and shared: tests don't change it."""
    return VAEDetector(**QUICK).fit(homes)


def test_the_data_are_counted(detector):
    data = detector.model_card()["data"]
    assert (data["rows"], data["features"], data["image_shape"]) == (200, 4, None)
    assert data["likelihoods"] == {"categorical": 1, "gaussian": 1, "count": 1, "bernoulli": 1}
    assert data["missing_fraction"] == pytest.approx(30 / 800)


def test_every_column_has_its_name_kind_and_gaps(detector):
    kind, area, *_ = detector.model_card()["columns"]
    assert (kind["name"], kind["likelihood"], kind["categories"]) == ("kind", "categorical", 2)
    assert (kind["center"], kind["scale"]) == (None, None)
    assert area == {
        "name": "area",
        "dtype": "float64",
        "likelihood": "gaussian",
        "categories": None,
        "center": detector.scaler_.scaler_.mean_[0],
        "scale": detector.scaler_.scaler_.scale_[0],
        "power": None,
        "missing_fraction": 0.15,
    }


@pytest.mark.parametrize("framed", [True, False])
def test_columns_of_numbers_have_their_names_or_positions(framed, table):
    X = pd.DataFrame(table[0]).add_prefix("sensor ") if framed else table[0]
    columns = VAEDetector(**QUICK).fit(X).model_card()["columns"]
    assert [column["name"] for column in columns] == (list(X.columns) if framed else list(range(6)))


def test_images_have_a_shape_and_no_columns():
    images = np.random.RandomState(0).uniform(size=(20, 4, 6))
    card = VAEDetector(epochs=1, random_state=0).fit(images).model_card()
    assert "columns" not in card
    assert (card["data"]["rows"], card["data"]["image_shape"]) == (20, [4, 6])
    assert "- image shape: 4 × 6" in str(card)


@pytest.mark.parametrize("framed", [True, False])
def test_gaps_are_counted_in_sparse_tables_too(framed):
    from scipy import sparse

    X = sparse.random(60, 4, density=0.5, random_state=0, format="csr")
    X.data[:6] = np.nan
    X = X if framed else X.toarray()
    detector = VAEDetector(**QUICK).fit(X)
    assert detector.missing_fraction_.sum() * 60 == pytest.approx(6)


def test_rows_are_those_that_fit_was_given(table):
    X, _ = table
    held_out = VAEDetector(calibration=0.3, **QUICK).fit(X)
    assert (held_out.n_samples_fit_, held_out.model_card()["threshold"]["calibration_rows"]) == (500, 150)
    with pytest.warns(UserWarning, match="goes on with 200 rows"):
        assert held_out.set_params(warm_start=True).fit(X[:200]).n_samples_fit_ == 200


def test_the_model_is_the_fitted_one(table):
    X, _ = table
    members = [Member(), Member(trimmed_fraction=0.1)]
    detector = VAEDetector(members=members, latent_dim=3, n_draws=4, **QUICK).fit(X)
    model = detector.model_card()["model"]
    assert (model["members"], model["latent_dim"], model["draws"]) == (2, 3, 4)
    assert model["weights_of_a_member"] == detector.members_[0].trainable.size
    assert (model["scaler"], model["score"]) == ("StandardScaler()", "beta_elbo")
    assert model["network"].startswith("DenseNetwork(")


def test_parameters_are_those_that_are_not_the_defaults(table):
    detector = VAEDetector(beta=0.5, patience=30, **QUICK).fit(table[0])
    assert set(detector.model_card()["parameters"]) == {"beta", *QUICK}
    plain = VAEDetector(network=DenseNetwork((8,)), epochs=2).fit(table[0])
    assert "- `beta`: `0.5`" in str(detector.model_card())
    assert "random_state is None" in str(plain.model_card())
    assert "random_state is None" not in str(detector.model_card())


@pytest.mark.parametrize("early_stopping", [True, False])
def test_the_training_is_told_by_its_last_epoch(early_stopping, table):
    detector = VAEDetector(validation_fraction=0.2, early_stopping=early_stopping, **QUICK).fit(table[0])
    training = detector.model_card()["training"]
    assert (training["epochs"], training["early_stopping"]) == (2, early_stopping)
    assert training["last_epoch"] == {name: values[-1] for name, values in detector.history_.items()}


def test_a_figure_that_was_not_measured_in_the_last_epoch_is_said_to_be_none(table):
    detector = VAEDetector(validation_fraction=0.2, warm_start=True, **QUICK).fit(table[0])
    detector.set_params(validation_fraction=0.0).fit(table[0])
    card = detector.model_card()
    assert card["training"]["last_epoch"]["val_loss"] == "nan"
    json.dumps(card.to_dict(), allow_nan=False)


def test_an_interruption_is_told_if_the_fit_says_so(table):
    detector = VAEDetector(**QUICK).fit(table[0])
    assert "- interrupted: no" in str(detector.model_card())
    detector.interrupted_ = True
    assert "- interrupted: yes" in str(detector.model_card())
    assert "The training was interrupted" in str(detector.model_card())


# -- what the threshold promises ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rule", "rate"), [(Conformal(0.1), 0.1), (ParetoTail(0.01), 0.01), ("conformal", 0.05), (None, None)]
)
def test_only_rules_for_new_rows_promise_a_rate(rule, rate, table):
    detector = VAEDetector(threshold=rule, calibration=0.4, **QUICK).fit(table[0])
    threshold = detector.model_card()["threshold"]
    assert (threshold["false_alarm_rate"], threshold["offset"]) == (rate, detector.offset_)
    assert threshold["calibration_rows"] == 200
    assert ("promises no false-alarm rate" in str(detector.model_card())) is (rate is None)


@pytest.mark.parametrize(("n_scores", "alpha"), [(99, 0.1), (250, 0.05), (19, 0.05)])
def test_realized_rates_are_what_chance_makes_of_a_calibration(n_scores, alpha):
    rng = np.random.RandomState(0)
    rule = Conformal(alpha)
    low, high = rule.realized_rates(n_scores, 0.9)
    # Of uniform scores, the share above the cut is 1 - the cut.
    realized = np.array([1 - rule.cut(rng.uniform(size=n_scores)) for _ in range(4000)])
    interval = stats.binomtest(200, 4000).proportion_ci(0.999)
    for share in ((realized < low).mean(), (realized > high).mean()):
        assert interval.low < share < interval.high


def test_a_rule_that_is_set_after_the_fit_is_not_taken_for_the_one_that_made_the_offset(table):
    detector = VAEDetector(threshold=Conformal(0.1), calibration=0.4, **QUICK).fit(table[0])
    before = detector.model_card()["threshold"]
    assert before["realized_rates"] == list(Conformal(0.1).realized_rates(200))
    for rule in (Conformal(0.01), "no such rule", None):
        assert detector.set_params(threshold=rule).model_card()["threshold"] == before
    of_contamination = (
        VAEDetector(contamination=0.1, **QUICK).fit(table[0]).set_params(threshold="median_deviation")
    )
    assert of_contamination.model_card()["threshold"]["rule"] == "Quantile()"


def test_a_rule_that_is_changed_after_the_fit_is_not_the_one_that_cut(table):
    rule = Conformal(0.1)
    detector = VAEDetector(threshold=rule, calibration=0.4, **QUICK).fit(table[0])
    rule.false_alarm_rate = 0.01
    assert detector.threshold_.false_alarm_rate == detector.false_alarm_rate_ == 0.1


def test_a_file_holds_the_rule_if_its_class_has_a_name(table, tmp_path):
    class Highest:
        def cut(self, scores):
            return scores.max()

    for rule, kept in (("median_deviation", MedianDeviation), (Highest(), type(None))):
        detector = VAEDetector(threshold=rule, **QUICK).fit(table[0])
        assert "Highest" in repr(detector.threshold_) or kept is MedianDeviation
        detector.set_params(threshold=None).save(tmp_path / "model.vae")
        loaded = load(tmp_path / "model.vae")
        assert (type(loaded.threshold_), loaded.offset_) == (kept, detector.offset_)
        assert loaded.model_card()["threshold"]["offset"] == detector.offset_


# -- the page and the dictionary ------------------------------------------------------------------------
def test_the_page_has_every_section_and_what_is_known(detector):
    page = str(detector.model_card())
    assert page == detector.model_card()._repr_markdown_() == repr(detector.model_card())
    for section in ("Data", "Columns", "Model", "Parameters", "Training", "Threshold", "Notes", "Versions"):
        assert f"\n## {section}\n" in page
    center, scale = (f"{detector.model_card()['columns'][1][name]:.6g}" for name in ("center", "scale"))
    assert f"| `area` | `float64` | `gaussian` |  | {center} | {scale} | 15 % |" in page
    assert "- missing fraction: 3.75 %" in page
    assert f"- vae-anomaly: `{vae_anomaly.__version__}`" in page
    assert "None" not in page.replace("None`", "")


def test_the_dictionary_is_json_and_ones_own(detector):
    card = detector.model_card()
    found = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    assert found == dict(card)
    card.to_dict()["data"]["rows"] = 0
    assert card["data"]["rows"] == 200
    assert len(card) == len(found)


def test_a_card_cannot_be_changed(detector):
    with pytest.raises(TypeError):
        detector.model_card()["data"] = {}


def test_names_that_are_markup_stay_text(table):
    X = pd.DataFrame(table[0], columns=["<b>x</b>", "a|b", "c`d", "e\nf", "$g$", " "])
    page = str(VAEDetector(**QUICK).fit(X).model_card())
    for cell in ("| `<b>x</b>` |", "| `a\\|b` |", "| `c'd` |", "| `e f` |", "| `$g$` |"):
        assert cell in page


def test_a_wide_table_has_a_short_page_and_a_whole_dictionary():
    X = np.random.RandomState(0).normal(size=(30, 120))
    card = VAEDetector(**QUICK).fit(X).model_card()
    assert len(card["columns"]) == 120
    assert "and 70 more." in str(card)
    assert len(str(card).splitlines()) < 130


def test_names_that_json_does_not_know_become_texts(homes):
    X = homes.set_axis([("a", 1), ("b", 2), np.int64(3), 2.5], axis=1)
    columns = VAEDetector(likelihood="mixed", **QUICK).fit(X).model_card()["columns"]
    assert [column["name"] for column in columns] == ["('a', 1)", "('b', 2)", "3", "2.5"]


def test_a_card_survives_a_model_file(detector, tmp_path):
    detector.save(tmp_path / "model.vae")
    assert load(tmp_path / "model.vae").model_card() == detector.model_card()


def test_a_detector_of_an_older_release_has_a_card_of_what_is_known(homes):
    detector = VAEDetector(**QUICK).fit(homes)
    for name in (
        "n_samples_fit_",
        "threshold_",
        "missing_fraction_",
        "do_early_stopping_",
        "false_alarm_rate_",
    ):
        delattr(detector, name)
    card = detector.model_card()
    assert card["data"]["rows"] is card["data"]["missing_fraction"] is None
    assert "\n- rows:" not in str(card)
    assert "missing fraction" not in str(card)
    assert "false-alarm rate" not in str(card)


def test_an_unfitted_detector_has_no_card():
    with pytest.raises(NotFittedError):
        VAEDetector().model_card()


def test_addresses_do_not_stand_on_a_card(table):
    detector = VAEDetector(network=DenseNetwork((8,)), epochs=2, random_state=np.random.RandomState(0))
    assert "0x" not in str(detector.fit(table[0]).model_card())


def test_a_note_tells_what_an_unseen_category_does(detector, table):
    assert "A category that the training rows did not have" in str(detector.model_card())
    plain = VAEDetector(**QUICK).fit(table[0])
    assert "A category" not in str(plain.model_card())
    assert "had no gaps" in str(plain.model_card())
    assert "had no gaps" not in str(detector.model_card())
    assert Categorical().unseen == "score"


def test_the_html_repr_stays_scikit_learns(detector):
    html = detector._repr_html_()
    assert "sk-" in html
    assert not hasattr(detector, "_repr_markdown_")
    assert not hasattr(ModelCard, "_repr_html_")


@pytest.mark.parametrize("settings", [{"learning_rate": 2e-3}, {"masked_fraction": 0.2}], ids=str)
def test_parameters_are_written_as_python_writes_them(settings, homes):
    page = str(VAEDetector(**QUICK, **settings).fit(homes).model_card())
    for name, value in settings.items():
        assert f"- `{name}`: `{value!r}`" in page


def test_a_column_that_has_a_number_for_its_name_keeps_it(homes):
    page = str(VAEDetector(**QUICK).fit(homes.set_axis([2023, 2024, 2025, 2026], axis=1)).model_card())
    assert "| `2024` |" in page
