"""Pictures show what detectors, scores and explanations say, on the axes given or on new ones."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import sparse, stats
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from vae_anomaly import ConvNetwork, DenseNetwork, KerasNetwork, VAEDetector, plotting
from vae_anomaly.core.backend import keras
from vae_anomaly.explanations import explain
from vae_anomaly.networks import Network
from vae_anomaly.plotting.canvas import (
    as_images,
    find_limits,
    find_open_ends,
    find_usual_limits,
    show,
    tile_images,
    unit_of,
)
from vae_anomaly.posteriors import Gaussian, Implicit
from vae_anomaly.scoring import IMAGE_SCORES, SCORES

# One architecture for most tests: a program is compiled once for each.
SMALL = ConvNetwork((8, 8, 1), filters=(4,), dense_units=(8,))
LINEAR = DenseNetwork(hidden_units=())


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    plt.close("all")  # of tests of other files
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def frame(table):
    return pd.DataFrame(table[0], columns=["a", "b", "c", "d", "e", "f"]).set_index(np.arange(500) + 1000)


@pytest.fixture(scope="module")
def detector(frame):
    network = DenseNetwork(hidden_units=(16,))
    return VAEDetector(network, latent_dim=3, epochs=5, validation_fraction=0.2, random_state=0).fit(frame)


@pytest.fixture(scope="module")
def images():
    return load_digits().images[:60] / 16


@pytest.fixture(scope="module")
def image_detector(images):
    return VAEDetector(SMALL, latent_dim=2, epochs=2, members=1, random_state=0).fit(images)


@pytest.fixture
def every_picture(detector, image_detector, frame, table, images):
    """Each function with its arguments but the axes, and the number of panels."""
    y, scores = table[1], -detector.score_samples(frame)
    return {
        plotting.training_curves: ((detector,), 1),
        plotting.score_histogram: ((detector, frame, y), 1),
        plotting.anomaly_counts: (([0.001, 0.002, 0.01, 0.6, 0.9],), 1),
        plotting.roc_curve: ((y, scores), 1),
        plotting.precision_recall_curve: ((y, scores), 1),
        plotting.latent_scatter: ((detector, frame, y), 1),
        plotting.latent_manifold: ((image_detector, 3), 1),
        plotting.reconstructions: ((image_detector, images[:4]), 12),
        plotting.samples: ((image_detector, 5), 1),
        plotting.top_anomalies: ((image_detector, images, 3), 3),
        plotting.contributions: ((detector, frame.iloc[0]), 1),
        plotting.network_summary: ((detector,), 1),
    }


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# -- all of them ----------------------------------------------------------------------------------------
def test_every_public_function_is_tested_here(every_picture):
    assert {function.__name__ for function in every_picture} == set(plotting.__all__)


def test_a_picture_is_drawn_on_the_axes_given_or_on_new_ones(every_picture):
    for function, (arguments, n_panels) in every_picture.items():
        name = "axes" if "axes" in inspect.signature(function).parameters else "ax"
        given = Figure().subplots(1, n_panels, squeeze=False)[0]
        drawn = function(*arguments, **{name: given if n_panels > 1 else given[0]})
        assert set(np.ravel(drawn)) == set(given)
        assert plt.get_fignums() == []
        drawn = np.ravel(function(*arguments))
        assert len(drawn) == n_panels
        assert len(plt.get_fignums()) == 1
        assert drawn[0].figure.number in plt.get_fignums()
        plt.close("all")


def test_nothing_of_matplotlibs_is_changed_or_shown(every_picture, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    settings = dict(matplotlib.rcParams)
    current = plt.figure().subplots()
    for function, (arguments, n_panels) in every_picture.items():
        name = "axes" if "axes" in inspect.signature(function).parameters else "ax"
        given = Figure().subplots(1, n_panels, squeeze=False)[0]
        function(*arguments, **{name: given if n_panels > 1 else given[0]})
        assert plt.gca() is current
        function(*arguments)
        plt.sca(current)
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.wide
def test_pictures_are_saved_with_all_their_labels_inside(every_picture, tmp_path):
    for function, (arguments, _) in every_picture.items():
        figure = np.ravel(function(*arguments))[0].figure
        figure.savefig(tmp_path / "picture.png")
        inside = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert inside.x0 > -0.05, function
        assert inside.y0 > -0.05, function
        assert inside.x1 < width + 0.05, function
        assert inside.y1 < height + 0.05, function


def test_legends_stand_beside_curves_and_points(every_picture):
    beside = [plotting.training_curves, plotting.roc_curve, plotting.precision_recall_curve]
    for function in [*beside, plotting.latent_scatter]:
        ax = function(*every_picture[function][0])
        ax.figure.draw_without_rendering()
        assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1


def test_a_detector_behind_transformers_is_drawn_as_it_stands(frame, table):
    detector = VAEDetector(DenseNetwork((16,)), latent_dim=3, epochs=2, random_state=0)
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), detector).fit(frame)
    alone, rows = pipeline[-1], pipeline[:-1].transform(frame)
    behind, expected = (
        [plotting.latent_scatter(fitted, X), plotting.score_histogram(fitted, X)]
        for fitted, X in ((pipeline, frame), (alone, rows))
    )
    np.testing.assert_array_equal(
        behind[0].collections[0].get_offsets(), expected[0].collections[0].get_offsets()
    )
    assert [bar.get_height() for bar in behind[1].patches] == [
        bar.get_height() for bar in expected[1].patches
    ]
    assert plotting.network_summary(pipeline).get_title() == plotting.network_summary(alone).get_title()
    assert legend(plotting.training_curves(pipeline)) == ["loss", "reconstruction", "KL"]


@pytest.mark.wide
def test_matplotlib_is_loaded_by_the_first_picture_and_tensorflow_not_at_all():
    code = (
        "import sys\n"
        "from vae_anomaly import plotting\n"
        "assert not {'matplotlib', 'tensorflow', 'keras'} & set(sys.modules)\n"
        "plotting.roc_curve([0, 1], [0.0, 1.0])\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_missing_matplotlib_is_named_with_its_extra(every_picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for function, (arguments, _) in every_picture.items():
        with pytest.raises(ImportError, match=r"pip install 'vae-anomaly\[plot\]'"):
            function(*arguments)


# -- training -------------------------------------------------------------------------------------------
def test_training_curves_are_the_history(detector):
    ax = plotting.training_curves(detector)
    drawn = {line.get_label(): line for line in ax.get_lines()}
    for key, label in {"loss": "loss", "val_kl": "validation KL", "kl": "KL"}.items():
        np.testing.assert_array_equal(drawn[label].get_ydata(), detector.history_[key])
        np.testing.assert_array_equal(drawn[label].get_xdata(), [1, 2, 3, 4, 5])
    assert len(drawn) == 6
    assert drawn["validation loss"].get_linestyle() != drawn["loss"].get_linestyle()
    assert drawn["validation loss"].get_color() == drawn["loss"].get_color()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats per row")


def test_epochs_without_a_figure_leave_gaps_and_a_lone_one_is_a_dot():
    history = {"loss": [5.0, 4.0, 3.0, 2.5], "val_loss": [np.nan, 4.5, np.nan, np.nan]}
    lines = plotting.training_curves(history).get_lines()
    np.testing.assert_array_equal(lines[1].get_ydata(), history["val_loss"])
    assert lines[1].get_markevery() == [1]
    assert lines[0].get_marker() == "None"


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([40.0, 30.0, 20.0, 15.0], "linear"),
        ([-10.0, -40.0, -90.0, -95.0], "linear"),
        ([1e6, 40.0, 30.0, 20.0], "log"),
        ([1e6, 40.0, 3.0, -20.0], "asinh"),
        ([np.nan, np.nan], "linear"),
    ],
)
def test_the_scale_of_losses_follows_their_range(losses, scale):
    assert plotting.training_curves({"loss": losses}).get_yscale() == scale


def test_a_history_without_a_loss_is_refused():
    with pytest.raises(ValueError, match=r"'loss'.*received the keys \['accuracy'\]"):
        plotting.training_curves({"accuracy": [1.0]})
    assert plt.get_fignums() == []


# -- scores ---------------------------------------------------------------------------------------------
def test_the_histogram_counts_every_row_and_marks_the_detectors_threshold(detector, frame):
    ax = plotting.score_histogram(detector, frame, bins=30)
    assert len(ax.patches) == 30
    assert sum(bar.get_height() for bar in ax.patches) == 500
    assert ax.get_lines()[0].get_xdata() == [-detector.offset_] * 2
    flagged = (detector.predict(frame) == -1).sum()
    assert legend(ax) == ["all (500 rows)", f"threshold {-detector.offset_:.4g} ({flagged} rows above)"]
    assert ax.get_xlabel() == "anomaly score (nats)"


def test_only_log_probabilities_are_in_nats():
    def made_with(score, posterior):
        member = SimpleNamespace(specification=SimpleNamespace(posterior=posterior))
        return SimpleNamespace(score_=score, members_=(member,))

    unit = {name: unit_of(made_with(name, Gaussian())) for name in [*SCORES, *IMAGE_SCORES]}
    assert {name for name in unit if unit[name]} == set(SCORES) - {"reconstruction_error"}
    assert {*unit.values()} == {" (nats)", ""}
    assert unit_of(made_with(SCORES["elbo"], Gaussian())) == ""  # one of your own, for all that is known
    estimated = {name for name in SCORES if unit_of(made_with(name, Implicit())) == " (nats, an estimate)"}
    assert estimated == {"elbo", "beta_elbo", "iwae"}


def test_bars_stand_where_the_scores_are():
    scores = [0.0, 0.1, 2.5, 2.6, 2.7, 4.0]
    ax = plotting.score_histogram(scores, bins=4)
    assert [bar.get_height() for bar in ax.patches] == [2, 0, 3, 1]
    assert [bar.get_x() for bar in ax.patches] == [0, 1, 2, 3]
    assert ax.get_lines() == []


def test_scores_far_off_share_the_outermost_bars_and_are_counted_in_words():
    scores = np.r_[np.linspace(0, 10, 1000), 1e12, 2e12, -3e9]
    ax = plotting.score_histogram(scores, threshold=12.0)
    assert ax.get_xlim()[0] > -50
    assert ax.get_xlim()[1] < 50
    assert sum(bar.get_height() for bar in ax.patches) == 1003
    assert "the last bar also holds 2 rows as far as 2e+12" in ax.get_xlabel()
    assert "the first bar also holds 1 row as far as -3e+09" in ax.get_xlabel()


def test_the_threshold_is_inside_however_far_it_lies():
    ax = plotting.score_histogram(np.linspace(0, 10, 100), threshold=500.0)
    assert ax.get_xlim()[1] > 500


def test_equal_scores_have_a_histogram():
    ax = plotting.score_histogram(np.full(9, 3.0))
    assert max(bar.get_height() for bar in ax.patches) == 9


@pytest.mark.parametrize(
    "relabel", [lambda y: y, lambda y: 1 - 2 * y, lambda y: y == 1, lambda y: np.where(y == 1, "bad", "good")]
)
def test_labels_in_any_convention_color_the_two_groups(table, relabel):
    y, scores = table[1], np.arange(500.0)
    anomaly_label = "bad" if relabel(y).dtype.kind == "U" else "auto"
    ax = plotting.score_histogram(scores, y=relabel(y), anomaly_label=anomaly_label, bins=10)
    normal, anomalies = ([bar.get_height() for bar in ax.patches[i : i + 10]] for i in (0, 10))
    np.testing.assert_array_equal(normal, np.histogram(scores[y == 0], 10, (0, 499))[0])
    np.testing.assert_array_equal(anomalies, np.histogram(scores[y == 1], 10, (0, 499))[0])
    assert ax.patches[0].get_facecolor() != ax.patches[10].get_facecolor()
    assert legend(ax) == ["normal (475 rows)", "anomaly (25 rows)"]


def test_a_group_too_small_to_be_seen_gets_a_logarithmic_scale():
    y = np.r_[np.zeros(1000), 1]
    assert plotting.score_histogram(np.zeros(1001), y=y).get_yscale() == "log"
    assert plotting.score_histogram(np.zeros(40), y=y[-40:]).get_yscale() == "linear"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, np.nan],), "one finite number for each row"),
        (([[1.0], [2.0]],), "one finite number for each row"),
        (([],), "one finite number for each row"),
        (([1.0, 2.0], [0, 1]), "pass labels as y="),
        (([1.0, 2.0], None, [0, 1, 1]), r"each of the 2 rows; received \(3,\)"),
        (([1.0, 2.0], None, ["a", "b"]), "cannot tell which"),
    ],
)
def test_scores_and_labels_that_do_not_fit_are_refused_without_a_figure(arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.score_histogram(*arguments)
    assert plt.get_fignums() == []


CURVES = {
    "roc": (plotting.roc_curve, roc_auc_score, "AUROC"),
    "precision and recall": (plotting.precision_recall_curve, average_precision_score, "AP"),
}


@pytest.mark.parametrize(("draw", "metric", "name"), CURVES.values(), ids=CURVES)
def test_curves_say_the_area_of_the_anomalies_by_score(draw, metric, name, detector, frame, table):
    y, scores = table[1], -detector.score_samples(frame)
    chance = 0.5 if name == "AUROC" else y.mean()
    expected = [f"{name} = {metric(y, scores):.3f}", f"chance: {name} = {chance:.3f}"]
    assert metric(y, scores) > chance
    for labels in (y, 1 - 2 * y, y == 1):
        assert legend(draw(labels, scores)) == expected
    words = np.where(y == 1, "fraud", "honest")
    assert legend(draw(words, scores, anomaly_label="fraud")) == expected


@pytest.mark.parametrize(("draw", "metric", "name"), CURVES.values(), ids=CURVES)
def test_several_scores_are_compared_by_name_and_color(draw, metric, name, table):
    y = table[1]
    scores = {"perfect": y + 0.0, "inverse": -y + 0.0}
    ax = draw(y, scores)
    assert [entry.split(":")[0] for entry in legend(ax)] == ["perfect", "inverse", "chance"]
    assert legend(ax)[0] == f"perfect: {name} = 1.000"
    colors = [line.get_color() for line in ax.get_lines()]
    assert len(set(colors)) == 3
    assert [handle.get_color() for handle in ax.get_legend().legend_handles] == colors


def test_the_roc_curve_starts_at_no_alarms_and_ends_at_all(table):
    across, up = plotting.roc_curve(table[1], np.arange(500)).get_lines()[0].get_data()
    assert (across[0], up[0], across[-1], up[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("draw", [plotting.roc_curve, plotting.precision_recall_curve])
def test_curves_of_unreadable_labels_are_refused_without_a_figure(draw):
    for y, scores, message in (
        ([0, 0], [1.0, 2.0], "two classes"),
        ([0, 1, 1], [1.0, 2.0], "each of the 2 rows"),
        ([0, 1], [1.0, np.inf], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(y, scores)
    with pytest.raises(ValueError, match="empty dict"):
        draw([0, 1], {})
    assert plt.get_fignums() == []


# -- latent space ---------------------------------------------------------------------------------------
def points(ax):
    return np.concatenate([collection.get_offsets() for collection in ax.collections])


def test_two_latent_dimensions_are_drawn_as_they_are(image_detector, images):
    ax = plotting.latent_scatter(image_detector, images)
    z_mean, scores = image_detector.encode(images), -image_detector.score_samples(images)
    order = np.argsort(scores)
    np.testing.assert_array_equal(points(ax), z_mean[order])
    np.testing.assert_array_equal(ax.collections[0].get_array(), scores[order])
    assert ax.get_xlabel() == "z_mean, dimension 1"
    assert ax.figure.axes[1].get_ylabel() == "anomaly score"


def test_more_dimensions_are_drawn_in_the_directions_of_most_variance(detector, frame, table):
    ax = plotting.latent_scatter(detector, frame, np.zeros(500, dtype=int))
    z_mean = detector.encode(frame)
    centered = z_mean - z_mean.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(points(ax)), np.abs(centered @ directions[:2].T), atol=1e-9)
    shares = lengths**2 / (lengths**2).sum()
    assert ax.get_xlabel() == f"1st principal direction of z_mean ({shares[0]:.0%} of variance)"
    assert ax.get_ylabel() == f"2nd principal direction of z_mean ({shares[1]:.0%} of variance)"


def test_one_dimension_is_drawn_against_the_score(frame):
    fitted = VAEDetector(LINEAR, latent_dim=1, epochs=1, random_state=0).fit(frame)
    ax = plotting.latent_scatter(fitted, frame, np.zeros(500))
    np.testing.assert_array_equal(points(ax), np.c_[fitted.encode(frame), -fitted.score_samples(frame)])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z_mean", "anomaly score (nats)")


def test_labels_have_colors_markers_and_a_legend_and_the_rarest_lies_on_top(image_detector, images):
    y = pd.Series(["many"] * 40 + ["few"] * 15 + ["rare"] * 5, name="kind")
    ax = plotting.latent_scatter(image_detector, images, y)
    assert legend(ax) == ["few", "many", "rare"]
    assert ax.get_legend().get_title().get_text() == "kind"
    by_label = dict(zip(legend(ax), ax.collections, strict=True))
    for label, drawn in by_label.items():
        np.testing.assert_array_equal(drawn.get_offsets(), image_detector.encode(images)[y == label])
    assert by_label["rare"].zorder > by_label["few"].zorder > by_label["many"].zorder
    assert len({tuple(drawn.get_facecolor()[0]) for drawn in ax.collections}) == 3


def test_no_two_labels_look_alike(image_detector, images):
    ax = plotting.latent_scatter(image_detector, images, np.arange(60) % 16)
    looks = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections}
    assert len(looks) == 16


def test_numbers_are_measured_on_a_color_bar(image_detector, images):
    for measured in (np.linspace(0, 1, 60), np.arange(60)):
        ax = plotting.latent_scatter(image_detector, images, measured)
        assert ax.get_legend() is None
        np.testing.assert_array_equal(ax.collections[0].get_array(), measured)


def test_colors_of_scores_are_not_squeezed_by_one_outlier(image_detector, images):
    measured = np.r_[np.linspace(0, 1, 59), 1e9]
    ax = plotting.latent_scatter(image_detector, images, measured)
    assert ax.collections[0].get_clim() == (0, 1)
    assert ax.collections[0].colorbar.extend == "max"


def test_labels_of_another_number_or_too_many_are_refused(image_detector, images):
    with pytest.raises(ValueError, match=r"each of the 60 rows; received \(59,\)"):
        plotting.latent_scatter(image_detector, images, np.zeros(59))
    with pytest.raises(ValueError, match="16 different labels; received 60"):
        plotting.latent_scatter(image_detector, images, [f"label {i}" for i in range(60)])
    for missing in (np.full(60, np.nan), [None] * 30 + ["known"] * 30):
        with pytest.raises(ValueError, match="missing"):
            plotting.latent_scatter(image_detector, images, missing)
    assert plt.get_fignums() == []


def test_the_manifold_is_decoded_from_the_priors_quantiles(image_detector):
    ax = plotting.latent_manifold(image_detector, n=5)
    canvas = ax.images[0].get_array().filled(np.nan)
    model = image_detector.model_
    quantiles = stats.norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9])
    for column, across in enumerate(quantiles):
        for row, up in enumerate(quantiles[::-1]):
            z = np.array([[across, up]], dtype="f4")
            scaled = np.asarray(model.likelihood.mean(model.decode(z)))
            expected = np.clip(image_detector.scaler_.inverse_transform(scaled).reshape(8, 8), 0, 1)
            tile = canvas[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
            np.testing.assert_allclose(tile, expected, atol=1e-6)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["-1.3", "-0.5", "0.0", "0.5", "1.3"]
    np.testing.assert_allclose(ax.get_xticks(), [3.5, 12.5, 21.5, 30.5, 39.5])
    np.testing.assert_allclose(ax.get_yticks(), [39.5, 30.5, 21.5, 12.5, 3.5])


def test_flat_rows_are_images_by_their_networks_word_or_by_yours(images):
    flat = images.reshape(60, 64)
    by_network = VAEDetector(SMALL, latent_dim=2, epochs=1, members=1, random_state=0).fit(flat)
    assert plotting.latent_manifold(by_network, n=2).images[0].get_array().shape == (17, 17)
    assert len(plotting.top_anomalies(by_network, flat, 4)) == 4
    dense = VAEDetector(LINEAR, latent_dim=2, epochs=1, random_state=0).fit(flat)
    assert plotting.samples(dense, 1, image_shape=(8, 8)).images[0].get_array().shape == (8, 8)
    assert plotting.samples(dense, 1, image_shape=(16, 4, 1)).images[0].get_array().shape == (16, 4)
    panels = plotting.reconstructions(dense, flat[:2], image_shape=(8, 8))
    np.testing.assert_array_equal(panels[0, 1].images[0].get_array(), images[1])
    for draw in (plotting.samples, plotting.latent_manifold):
        with pytest.raises(ValueError, match=r"the 64 numbers of a row; received \(8, 9\)"):
            draw(dense, image_shape=(8, 9))


@pytest.mark.wide
def test_the_expected_images_are_in_the_units_of_the_data(images):
    fitted = VAEDetector(LINEAR, latent_dim=2, likelihood="gaussian", epochs=1, random_state=0)
    fitted.fit(images * 255 + 1000)
    canvas = plotting.latent_manifold(fitted, n=2).images[0].get_array()
    assert canvas.mean() == pytest.approx(1000 + 255 * images.mean(), rel=0.1)


def test_tables_have_no_pictures_of_images(detector, frame, image_detector):
    for draw in (plotting.latent_manifold, plotting.samples, lambda d: plotting.reconstructions(d, frame)):
        with pytest.raises(ValueError, match=r"rows of a table.*image_shape=\(height, width\)"):
            draw(detector)
    three = VAEDetector(LINEAR, latent_dim=3, epochs=1, random_state=0).fit(np.zeros((5, 2, 3)))
    with pytest.raises(ValueError, match="two latent dimensions; the detector has 3.*latent_dim=2"):
        plotting.latent_manifold(three)
    with pytest.raises(ValueError, match="n must be a positive integer; received 0"):
        plotting.latent_manifold(image_detector, 0)
    assert plt.get_fignums() == []


# -- images ---------------------------------------------------------------------------------------------
def test_reconstructions_stand_below_the_images_and_maps_below_them(image_detector, images):
    panels = plotting.reconstructions(image_detector, images[:3])
    assert panels.shape == (3, 3)
    rows = images[:3], image_detector.reconstruct(images[:3]), image_detector.explain(images[:3])
    for drawn, expected in zip(panels, rows, strict=True):
        for panel, image in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(panel.images[0].get_array(), image)
    scores = -image_detector.score_samples(images[:3])
    assert [panel.get_title() for panel in panels[0]] == [f"score {score:.4g}" for score in scores]
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["image", "expected", "anomaly"]


@pytest.fixture(scope="module")
def signals():
    return np.random.RandomState(0).normal(size=(30, 16, 2)) * [1.0, 100.0] + [0.0, 5000.0]


@pytest.fixture(scope="module")
def signal_detector(signals):
    network = ConvNetwork(dimensions=1, filters=(3,), dense_units=())
    return VAEDetector(network, latent_dim=2, epochs=1, random_state=0).fit(signals)


def test_signals_are_drawn_as_scaled_lines_over_what_is_expected(signal_detector, signals):
    panels = plotting.reconstructions(signal_detector, signals[:3])
    assert panels.shape == (2, 3)
    scaler = signal_detector.scaler_
    drawn = {"signal": signals[:3], "expected": signal_detector.reconstruct(signals[:3])}
    scaled = {name: scaler.transform(x.reshape(3, -1)).reshape(3, 16, 2) for name, x in drawn.items()}
    shares = signal_detector.explain(signals[:3])
    for column, (top, bottom) in enumerate(panels.T):
        lines = [line.get_ydata() for line in top.lines]
        expected = [*scaled["signal"][column].T, *scaled["expected"][column].T]
        np.testing.assert_allclose(lines, expected, rtol=1e-4, atol=1e-4)
        assert [line.get_linestyle() for line in top.lines] == ["-", "-", "--", "--"]
        np.testing.assert_allclose([line.get_ydata() for line in bottom.lines], shares[column].T)
    scores = -signal_detector.score_samples(signals[:3])
    assert [panel.get_title() for panel in panels[0]] == [f"score {score:.4g}" for score in scores]
    assert panels[1, 0].get_ylabel() == "share of the score (nats)"


def test_the_most_anomalous_signals_are_lines_with_a_color_for_each_channel(signal_detector, signals):
    panels = plotting.top_anomalies(signal_detector, signals, k=2)
    scores = -signal_detector.score_samples(signals)
    worst = np.argsort(-scores)[:2]
    assert [panel.get_title() for panel in panels] == [f"row {i}\nscore {scores[i]:.4g}" for i in worst]
    for panel in panels:
        first, second = panel.lines
        assert first.get_color() != second.get_color()
        assert len(first.get_ydata()) == 16


def test_images_of_bytes_are_drawn_in_the_units_of_what_is_expected(image_detector, images):
    of_bytes = (images[:2] * 255).round().astype(np.uint8)
    top, middle, _ = plotting.reconstructions(image_detector, of_bytes)
    for drawn, image in zip(top, of_bytes, strict=True):
        np.testing.assert_array_equal(drawn.images[0].get_array(), image / 255)
    assert top[0].images[0].get_clim() == middle[0].images[0].get_clim() == (0, 1)


def test_all_maps_share_one_scale_and_one_color_bar(image_detector, images):
    panels = plotting.reconstructions(image_detector, images[:3])
    low, high = np.quantile(image_detector.explain(images[:3]), [0.005, 0.995])
    assert {panel.images[0].get_clim() for panel in panels[2]} == {(low, high)}
    assert {panel.images[0].get_clim() for panel in panels[:2].flat} == {(0.0, 1.0)}
    beside = [ax for ax in panels[0, 0].figure.axes if ax not in set(panels.flat)]
    assert [ax.get_ylabel() for ax in beside] == ["share of the score"]
    assert panels[2, -1].images[0].colorbar.extend == "both"


@pytest.mark.wide
def test_maps_of_colors_sum_the_channels():
    colored = np.random.RandomState(0).uniform(size=(20, 4, 5, 3))
    fitted = VAEDetector(LINEAR, latent_dim=2, epochs=1, random_state=0).fit(colored)
    panels = plotting.reconstructions(fitted, colored[:2])
    np.testing.assert_array_equal(panels[0, 1].images[0].get_array(), colored[1])
    np.testing.assert_allclose(panels[2, 1].images[0].get_array(), fitted.explain(colored)[1].sum(axis=-1))


def test_another_number_of_axes_is_refused(image_detector, images):
    axes = Figure().subplots(2, 3)
    with pytest.raises(ValueError, match="9 panels; received 6 axes"):
        plotting.reconstructions(image_detector, images[:3], axes=axes)
    with pytest.raises(ValueError, match="3 panels; received 6 axes"):
        plotting.top_anomalies(image_detector, images, 3, axes=axes)


def test_samples_are_the_detectors_by_the_same_seed(image_detector):
    canvas = plotting.samples(image_detector, 5, random_state=3).images[0].get_array().filled(np.nan)
    assert canvas.shape == (17, 26)  # two rows of three, a pixel between them
    expected = image_detector.sample(5, random_state=3, noise=False)
    for position, image in enumerate(expected):
        top, left = 9 * (position // 3), 9 * (position % 3)
        np.testing.assert_array_equal(canvas[top : top + 8, left : left + 8], image)
    assert np.isnan(canvas[9:, 18:]).all()


def test_gray_colors_and_other_channels_become_pictures():
    assert as_images(np.zeros((7, 12)), (3, 4)).shape == (7, 3, 4)
    assert as_images(np.zeros((7, 12)), (2, 2, 3)).shape == (7, 2, 2, 3)
    layers = np.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(as_images(layers, (2, 2, 2))[0], [[0.5, 2.5], [4.5, 6.5]])
    assert tile_images(np.zeros((3, 2, 2, 3)), 2).shape == (5, 5, 3)


def test_colors_of_any_range_are_brought_into_that_of_a_screen():
    drawn = show(Figure().subplots(), np.full((2, 2, 3), 510.0), (0.0, 1020.0))
    np.testing.assert_array_equal(drawn.get_array(), np.full((2, 2, 3), 0.5))
    canvas = tile_images(np.zeros((2, 1, 1, 3)), 2)
    np.testing.assert_array_equal(
        show(Figure().subplots(), canvas, (0.0, 1.0)).get_array()[0, :, 0], [0, 1, 0]
    )


def test_black_and_white_are_0_and_1_unless_values_lie_beyond():
    assert find_limits(np.array([0.2, 0.4])) == (0, 1)
    assert find_limits(np.array([0.0, 255.0, np.nan])) == (0, 255)
    assert find_limits(np.array([-3.0, -3.0])) == (-3, -2)


def test_a_color_bar_points_to_what_it_leaves_out():
    values = np.r_[np.zeros(50), np.ones(50), 99.0]
    assert find_usual_limits(values) == (0, 1)
    assert [find_open_ends(v, -1, 1) for v in (values, -values, np.r_[values, -values], np.zeros(5))] == [
        "max",
        "min",
        "both",
        "neither",
    ]
    mostly_the_same = np.r_[np.zeros(90), np.full(10, 5.0)]
    assert find_usual_limits(mostly_the_same) == (0, 5)


# -- rows -----------------------------------------------------------------------------------------------
def test_the_most_anomalous_images_come_first_with_their_scores(image_detector, images):
    panels = plotting.top_anomalies(image_detector, images, 7)
    scores = -image_detector.score_samples(images)
    worst = np.argsort(-scores)[:7]
    assert len(panels) == 7
    for panel, row in zip(panels, worst, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), images[row])
        assert panel.get_title() == f"row {row}\nscore {scores[row]:.4g}"
    assert not any(ax.axison for ax in panels[0].figure.axes[7:])


def test_the_most_anomalous_rows_of_a_table_come_with_what_makes_up_their_scores(detector, frame):
    ax = plotting.top_anomalies(detector, frame, 4)
    scores = pd.Series(-detector.score_samples(frame), frame.index).nlargest(4)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == [f"row {index}: {score:.4g}" for index, score in scores.items()]
    shares = detector.explain(frame.loc[scores.index])
    order = shares.mean().sort_values(ascending=False).index
    assert [label.get_text() for label in ax.get_xticklabels()] == list(order)
    expected = shares[order].to_numpy()
    np.testing.assert_allclose(ax.images[0].get_array(), expected / expected.max(axis=1, keepdims=True))
    np.testing.assert_allclose([float(text) for text in texts(ax)], expected.ravel(), rtol=0.006, atol=1e-9)


def test_columns_without_room_are_summed_and_not_colored(detector, frame):
    ax = plotting.top_anomalies(detector, frame, 4, n_features=2)
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns[2:] == ["4 others"]
    colors = ax.images[0].get_array()
    assert colors.shape == (4, 3)
    assert np.isnan(colors.filled(np.nan)[:, 2]).all()
    assert colors[:, :2].max() == 1
    shares = detector.explain(frame.loc[[int(t.get_text()[4:8]) for t in ax.get_yticklabels()]])
    others = shares.drop(columns=columns[:2]).sum(axis=1)
    np.testing.assert_allclose([float(text) for text in texts(ax)[2::3]], others, rtol=0.006)


def test_rows_without_a_positive_share_have_no_color(detector, frame, monkeypatch):
    monkeypatch.setattr(VAEDetector, "explain", lambda self, X: pd.DataFrame(-np.ones(X.shape), X.index))
    colors = plotting.top_anomalies(detector, frame, 2).images[0].get_array()
    np.testing.assert_array_equal(colors, np.zeros((2, 6)))


def test_k_beyond_the_rows_shows_all_and_below_one_is_refused(detector, frame):
    assert len(plotting.top_anomalies(detector, frame[:3], 10).get_yticks()) == 3
    for k in (0, 2.5):
        with pytest.raises(ValueError, match=f"k must be a positive integer; received {k}"):
            plotting.top_anomalies(detector, frame, k)
    with pytest.raises(ValueError, match="n_features must be a positive integer; received 0"):
        plotting.contributions(detector, frame[:1], n_features=0)


def bars(ax):
    names = [label.get_text() for label in ax.get_yticklabels()]
    return pd.Series([bar.get_width() for bar in ax.patches], names)


def test_bars_are_the_explanation_largest_first_and_sum_to_the_score(detector, frame):
    row = frame.iloc[[17]]
    ax = plotting.contributions(detector, row)
    shares = detector.explain(row).iloc[0].sort_values(ascending=False)
    np.testing.assert_array_equal(bars(ax).to_numpy(), shares)
    assert [name.split(" = ")[0] for name in bars(ax).index] == list(shares.index)
    assert bars(ax).sum() == pytest.approx(-detector.score_samples(row)[0])
    assert ax.get_title() == f"anomaly score {-detector.score_samples(row)[0]:.4g} (nats)"
    assert ax.yaxis_inverted()


def test_values_stand_beside_the_names(detector, frame):
    names = list(bars(plotting.contributions(detector, frame.iloc[17])).index)
    assert set(names) == {f"{name} = {value:.4g}" for name, value in frame.iloc[17].items()}


@pytest.mark.parametrize("n_features", [1, 3, 4])
def test_columns_beyond_the_number_share_one_bar(detector, frame, n_features):
    drawn = bars(plotting.contributions(detector, frame.iloc[17], n_features=n_features))
    shares = detector.explain(frame.iloc[[17]]).iloc[0].sort_values(ascending=False)
    assert len(drawn) == n_features + 1
    assert drawn.index[-1] == f"{6 - n_features} others"
    np.testing.assert_array_equal(drawn.iloc[:-1], shares.iloc[:n_features])
    assert drawn.iloc[-1] == pytest.approx(shares.iloc[n_features:].sum())


def test_a_single_other_column_keeps_its_name(detector, frame):
    drawn = bars(plotting.contributions(detector, frame.iloc[17], n_features=5))
    assert not any("other" in name for name in drawn.index)
    assert len(drawn) == 6


def test_a_row_may_come_in_any_form(detector, frame, table):
    expected = bars(plotting.contributions(detector, frame.iloc[[17]]))
    for row in (frame.iloc[17], frame.iloc[17].to_numpy(), frame.iloc[[17]].to_numpy(), list(frame.iloc[17])):
        pd.testing.assert_series_equal(bars(plotting.contributions(detector, row)), expected)
    unnamed = VAEDetector(DenseNetwork((16,)), latent_dim=3, epochs=1, random_state=0).fit(table[0])
    assert {name[:2] for name in bars(plotting.contributions(unnamed, table[0][0])).index} == {
        f"x{i}" for i in range(6)
    }
    named = bars(plotting.contributions(unnamed, table[0][0], names="uvwxyz"))
    assert {name[0] for name in named.index} == set("uvwxyz")


def test_whole_numbers_and_words_are_written_out():
    X = pd.DataFrame({"year": [2021, 2022, 2023] * 9, "kind": ["old", "new", "new"] * 9, "size": 1 / 3})
    transformer = make_column_transformer((OneHotEncoder(), ["kind"]), ("passthrough", ["year", "size"]))
    pipeline = make_pipeline(transformer, VAEDetector(LINEAR, epochs=1, random_state=0)).fit(X)
    for row in (X.iloc[[2]], X.iloc[2]):
        names = set(bars(plotting.contributions(pipeline, row)).index)
        assert names == {"year = 2023", "kind = new", "size = 0.3333"}


def test_columns_of_one_name_have_bars_of_their_own():
    drawn = bars(plotting.contributions(np.array([1.0, 3.0, 2.0]), names=["a", "a", "b"]))
    assert list(drawn.items()) == [("a", 3.0), ("b", 2.0), ("a", 1.0)]


def test_explanations_are_drawn_as_they_are():
    drawn = bars(plotting.contributions(np.array([1.0, -2.0, 5.0]), names=["a", "b", "c"]))
    assert list(drawn.items()) == [("c", 5.0), ("a", 1.0), ("b", -2.0)]
    ax = plotting.contributions(pd.Series([1.0, -2.0], ["left", "right"]))
    assert list(bars(ax).index) == ["left", "right"]
    assert ax.get_title() == "anomaly score -1"
    assert texts(ax) == ["1", "-2"]
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()


def test_a_pipelines_bars_are_those_of_the_columns_it_receives(table):
    X = pd.DataFrame({"size": table[0][:, 0], "color": np.where(table[0][:, 1] > 0, "red", "blue")})
    transformer = make_column_transformer((StandardScaler(), ["size"]), (OneHotEncoder(), ["color"]))
    pipeline = make_pipeline(transformer, VAEDetector(LINEAR, epochs=1, random_state=0)).fit(X)
    drawn = bars(plotting.contributions(pipeline, X.iloc[3]))
    shares = explain(pipeline, X.iloc[[3]]).iloc[0]
    assert drawn[f"color = {X['color'].iloc[3]}"] == shares["color"]
    assert drawn[f"size = {X['size'].iloc[3]:.4g}"] == shares["size"]
    ax = plotting.top_anomalies(pipeline, X, 3)
    assert {label.get_text() for label in ax.get_xticklabels()} == {"size", "color"}


def test_images_behind_a_transformer_are_drawn_as_the_detector_receives_them(images):
    halved = FunctionTransformer(lambda X: X / 2)
    pipeline = make_pipeline(
        halved, VAEDetector(SMALL, latent_dim=2, epochs=1, members=1, random_state=0)
    ).fit(images.reshape(60, 64))
    worst = pipeline.score_samples(images.reshape(60, 64)).argmin()
    panel = plotting.top_anomalies(pipeline, images.reshape(60, 64), 1)[0]
    np.testing.assert_array_equal(panel.images[0].get_array(), images[worst] / 2)


def test_rows_that_cannot_be_explained_are_refused(detector, image_detector, frame, images):
    with pytest.raises(ValueError, match="one row; received 2"):
        plotting.contributions(detector, frame[:2])
    with pytest.raises(ValueError, match="pass the row to explain"):
        plotting.contributions(detector)
    with pytest.raises(ValueError, match="names must hold 6 names; received 2"):
        plotting.contributions(detector, frame[:1], names=["a", "b"])
    with pytest.raises(ValueError, match="reconstructions draws"):
        plotting.contributions(image_detector, images[:1])
    assert plt.get_fignums() == []


# -- networks -------------------------------------------------------------------------------------------
def test_the_summary_names_every_layer_with_shape_and_weights(image_detector):
    ax = plotting.network_summary(image_detector)
    model = image_detector.model_
    drawn = texts(ax)
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        if type(layer).__name__ == "InputLayer":
            continue
        description = drawn[drawn.index(layer.name) + 1]
        assert type(layer).__name__ in description
        assert "×".join(map(str, layer.output.shape[1:])) in description
        assert (f"({layer.count_params():,} weights)" in description) == (layer.count_params() > 0)
    n_weights = model.encoder.count_params() + model.decoder.count_params()
    assert ax.get_title() == f"64 features → 2 latent dimensions → 64 features: {n_weights:,} weights"


def test_the_encoder_is_read_downwards_and_the_decoder_upwards(detector):
    ax = plotting.network_summary(detector)
    height = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert height["x"] > height["encoder_0"] > height["z_mean"] > height["z"]
    assert height["z"] < height["decoder_0"] < height["parameters"] < height["p(x|z)"]


def test_the_likelihoods_own_weights_and_the_members_are_counted(frame):
    fitted = VAEDetector(LINEAR, latent_dim=1, members=3, epochs=1, random_state=0).fit(frame)
    ax = plotting.network_summary(fitted)
    # Twice 6 weights and a bias for z; 6 weights and 6 biases to decode; 6 scales of the Gaussian.
    assert "gaussian → 6 features (6 weights)" in texts(ax)
    assert ax.get_title() == (
        "6 features → 1 latent dimension → 6 features: 32 weights, in each of 3 members"
    )


def test_text_shrinks_with_the_axes(detector):
    sizes = []
    for width in (3, 8):
        ax = plotting.network_summary(detector, ax=Figure(figsize=(width, 6)).subplots())
        sizes.append(ax.texts[0].get_fontsize())
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(boxes[i].overlaps(boxes[i + 1]) for i in range(0, len(boxes) - 4, 2))
    assert sizes[0] < sizes[1]


def test_a_users_own_layers_are_described_too(frame):
    encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "tanh", name="bent")])
    decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(6, name="only")])
    fitted = VAEDetector(KerasNetwork(encoder, decoder), latent_dim=2, epochs=1, random_state=0).fit(frame)
    drawn = texts(plotting.network_summary(fitted))
    assert drawn[drawn.index("bent") + 1] == "Dense tanh → 4 (28 weights)"
    assert drawn[drawn.index("only") + 1] == "Dense → 6 (18 weights)"


@keras.saving.register_keras_serializable(package="test_plotting")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.layers.Dense(4, name="inner")

    def call(self, x):
        return self.inner(x)


class Knowing(Network):
    def build(self, n_features, latent_dim, n_params):
        encoder, z = Subclassed(), keras.Input((latent_dim,))
        encoder(np.zeros((1, n_features), "f4"))
        return encoder, keras.Model(z, keras.layers.Dense(n_features * n_params)(z))


def test_layers_that_know_no_shape_are_drawn_without(frame):
    fitted = VAEDetector(Knowing(), latent_dim=2, epochs=1, random_state=0).fit(frame)
    drawn = texts(plotting.network_summary(fitted))
    assert drawn[drawn.index("inner") + 1] == "Dense (28 weights)"


@pytest.mark.parametrize("form", [lambda X: X.tolist(), sparse.csr_matrix, sparse.coo_matrix])
def test_rows_in_other_forms_are_drawn_too(form):
    X = np.random.RandomState(0).normal(size=(30, 3))
    detector = VAEDetector(epochs=1, random_state=0).fit(X)
    ax = plotting.top_anomalies(detector, form(X), k=4)
    expected = plotting.top_anomalies(detector, X, k=4)
    np.testing.assert_array_equal(ax.images[0].get_array(), expected.images[0].get_array())
    bars = plotting.contributions(detector, sparse.csr_matrix(X[:1])).patches
    expected = plotting.contributions(detector, X[0]).patches
    assert [bar.get_width() for bar in bars] == [bar.get_width() for bar in expected]


@pytest.mark.wide
def test_images_in_a_list_are_drawn():
    images = load_digits().data[:40].reshape(-1, 8, 8) / 16
    detector = VAEDetector(ConvNetwork(filters=(2,)), epochs=1, members=1, random_state=0).fit(images)
    assert len(plotting.top_anomalies(detector, list(images), k=4)) == 4
