"""`VAEDetector`: the scikit-learn contract and the order of steps; no formula."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from vae_anomaly import (
    calibration,
    checkpoints,
    explanations,
    masks,
    model_card,
    monitoring,
)
from vae_anomaly.calibration import Certificate
from vae_anomaly.calibration import groups as grouped
from vae_anomaly.calibration.checks import check_calibrated, check_probability, held_out_scores
from vae_anomaly.calibration.selection import check_selection
from vae_anomaly.checkpoints import Checkpoint
from vae_anomaly.core.conventions import MethodNamedAsParameter, all_or_nothing
from vae_anomaly.core.rows import Rows, with_channels
from vae_anomaly.core.types import (
    Callback,
    Constraints,
    FittedLabelingRule,
    Flags,
    Floats,
    KerasModel,
    LabelingRule,
    Matrix,
    MatrixLike,
    PathOrFile,
    RandomStateLike,
    Shape,
    Splitter,
    ThresholdRule,
    Transformer,
    Values,
)
from vae_anomaly.data.partitions import on_partitions
from vae_anomaly.data.preparation import in_form_of
from vae_anomaly.data.reading import read, read_groups, read_stream
from vae_anomaly.data.streams import Stream
from vae_anomaly.ensemble import attributes, cells, fits
from vae_anomaly.ensemble.earlier import PARTIAL_FIT, WARM_START
from vae_anomaly.ensemble.fitted import Fitted
from vae_anomaly.ensemble.recipe import Member
from vae_anomaly.files import model_file
from vae_anomaly.likelihoods import Likelihood, LikelihoodLike
from vae_anomaly.model.states import ModelState
from vae_anomaly.model_card import ModelCard
from vae_anomaly.monitoring import Drift
from vae_anomaly.monitoring.batch import ASKS as DRIFT_ASKS
from vae_anomaly.networks import Network
from vae_anomaly.objectives import Objective
from vae_anomaly.posteriors import Posterior
from vae_anomaly.priors import Prior
from vae_anomaly.scoring.score import Score
from vae_anomaly.thresholds import Conformal
from vae_anomaly.training.interruption import interruptible, stop
from vae_anomaly.training.plan import SCHEDULES

__all__ = ["VAEDetector"]


class VAEDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Anomaly detector: a variational autoencoder as a scikit-learn estimator.

    Fits p(x) = ∫ p(x|z) p(z) dz with the prior p(z) = N(0, I) and a posterior q(z|x), unless others are
    chosen, by neural networks that maximize the evidence lower bound (Kingma & Welling 2014)

    .. math:: \mathrm{E}_{q(z|x)} \log p(x|z) - \beta\,\mathrm{KL}(q(z|x) \,\|\, p(z))

    and calls those rows anomalies that the model finds improbable.

    Parameters
    ----------
    network : {"auto", "dense", "conv"} or Network, default="auto"
        Encoder and decoder: `DenseNetwork`, `ConvNetwork`, `KerasNetwork` or a subclass of `Network`. "auto"
        is dense, of 128-64 units for whole images and 64-32 for all else; ``ConvNetwork(dimensions=1)`` takes
        signals, of shape (n, length, channels).
    patches : "auto", int or None, default="auto"
        Whether the network sees squares of images instead of whole ones, and the side of the squares in
        pixels. They are trained on at random places, and all of an image are scored, half a side apart: see
        `scoring.patches`. So small defects of large images are found, and memory grows little with their
        size; an unusual object that is made of the usual squares is not found. "auto" is 8 for images more
        than 32 pixels high and wide, and None for smaller ones and for a ``network`` of your choice. Members
        with a ``pooling`` see images at a lower resolution, in squares that cover more.
    latent_dim : "auto" or int, default="auto"
        Latent dimensions. "auto" asks the network: min(n_features, 8), of images 16; of most flows at least
        2. Categories decide it themselves.
    likelihood : "auto", name, Likelihood, dict or list, default="auto"
        p(x|z): "gaussian", "laplace", "student_t" for real values, "bernoulli", "continuous_bernoulli",
        "unit_gaussian" for values in [0, 1], "pixel_gaussian", "count", "categorical", or an instance from
        `vae_anomaly.likelihoods`. A dict ``{column: likelihood}`` or a list of pairs ``(likelihood,
        columns)`` is for tables of mixed columns, "mixed" goes by what the columns hold; see
        `data.tables.table_of`. "auto" is "mixed" for a DataFrame with columns that are not numbers,
        "gaussian" for other tables and for patches, and "pixel_gaussian" for whole images, flat rows behind a
        `ConvNetwork` too. Identifiers in a DataFrame, columns in which nearly every row has a value of its
        own, are left out with a warning, texts that write numbers are read with one; "ignored" leaves a
        column out.
    posterior : name or Posterior, default="gaussian"
        q(z|x). "gaussian" has a mean and a variance for each latent dimension. "planar", "realnvp", "iaf" and
        "spline" send that through a flow, whose draws can have any shape. "categorical" has categories for
        latents, eight of four values each. "implicit" makes z of noise by a network; its density, and with it
        the ELBO, is an estimate and no bound. Or an instance from `vae_anomaly.posteriors`, such as
        ``Flow([Planar()] * 4)`` or ``Categorical(n_variables=3, n_values=10)``.
    prior : name or Prior, default="standard"
        p(z). "standard" is N(0, I), and of categories the uniform distribution. "mixture", "vamp", "flow" and
        "aggregate" are learned: a mixture of Gaussians, one of posteriors of pseudo-inputs, a flow, and,
        after a training with "standard", the mixture of posteriors of a sample of training rows. Or an
        instance from `vae_anomaly.priors`, such as ``Mixture(8)``. All scores and bounds are those of the
        model with this prior, and `sample` draws from it.
    score : "auto", name or Score, default="auto"
        What `score_samples` is the negative of. "elbo": KL(q(z|x) || p(z)) - E_q log p(x|z), whatever
        the beta trained with. "iwae": the negative importance-weighted bound, closer to -log p(x).
        "reconstruction_probability": -E_q log p(x|z) (An & Cho 2015). "beta_elbo": that and a tenth of the
        KL. "reconstruction_error": E_q of the squared error, or of the cross-entropy for data in [0, 1].
        "unexplained_variance": of images, the share of their variance that is not reproduced; see
        `scoring.unexplained_variance`. All but the last two in nats. "auto" is "elbo" for one model and
        "beta_elbo" for an ensemble, whose score is the members' weighted mean, and "unexplained_variance"
        for whole images. A `scoring.Score` of your own works too. With ``patches`` it is the score of a
        square; that of an image is the mean of its six most unusual ones.
    n_draws : int, default=10
        Draws of z that a score averages over. They are made once in `fit` and shared by all rows.
    objective : {"elbo", "iwae"} or Objective, default="elbo"
        The bound that training maximizes, by ``n_training_draws`` draws: the ELBO, the importance-weighted
        bound, or an instance from `vae_anomaly.objectives`: ``Renyi(alpha)``, of which "elbo" is Renyi(1) and
        "iwae" Renyi(0), or ``Chi(n)``, an upper bound. ``loss`` in `history_` is minus this bound;
        ``val_loss`` is made of the ELBO's parts in all cases, and the ``score`` has its own name.
    n_training_draws : int, default=1
        Draws of z for each row in a training step.
    beta : float, default=1.0
        Weight of the KL in training; 1 is the true evidence lower bound.
    kl_warm_up : float, default=0.0
        Share of the training, in [0, 1], over which the weight of the KL rises linearly to ``beta``.
    free_bits : float, default=0.0
        Nats of KL that each latent dimension, or each variable of categories, may use unpenalized. Only for
        ``objective="elbo"`` with a KL in closed form.
    members : "auto", int or list of Member, default="auto"
        The models to train and average: so many that differ by their seeds only, or one for each
        `vae_anomaly.Member`. "auto" is what detects best on tables if ``epochs="auto"`` too: eight small
        models, half of them robust against anomalies among the training rows, and half of each kind with
        skewed columns transformed; six of them whitened if there are 200 to 2,048 columns, at least 100 with
        more than two values, such as an embedding's; for signals, two. Of a table or signals it is otherwise
        one model. Of images it is four, for patches with a small beta (`ensemble.recipe.PATCH_MEMBERS`) and
        two more for each lower resolution at which an image is still two patches wide, a fourth of the one
        before (`ensemble.recipe.patch_members`).
    epochs : "auto" or int, default="auto"
        Passes over the training rows. "auto" makes about 1,000 training steps of them, 2,000 with early
        stopping, and at least 5 passes; in `partial_fit`, 5 passes over the new rows. See ``max_samples`` for
        which rows those are, of more than 500,000.
    batch_size : "auto" or int, default="auto"
        Rows in a training step. Fewer training rows than that are repeated to fill it. "auto" is 128, and of
        large images whose convolutions would need much memory half, a quarter and so on, so that a step takes
        no more than about a gigabyte, or a single image.
    learning_rate : float, default=3e-3
        Step size of Adam.
    learning_rate_schedule : {"cosine", "linear"}, callable or None, default="cosine"
        A factor on the learning rate that falls to 0 over the training (Loshchilov & Hutter 2017,
        "SGDR"), or a function from progress (array in [0, 1]) to such a factor. None keeps it constant:
        for callbacks that steer the rate themselves, or warm starts that go on for an unknown time.
    gradient_clip_norm : float or None, default=None
        Longest gradient (Euclidean norm over all weights) that is not shortened.
    masked_fraction : "auto" or float, default="auto"
        Share of the values, in [0, 1), that a training step hides from the encoder, which infers them from
        the others; the objective keeps them. So an encoder learns what a missing value is; it costs a little
        detection. "auto" is 0.05 if values are missing among the training rows, else 0.
    validation_fraction : "auto" or float, default="auto"
        Share of the rows, in [0, 1), held out of training to follow ``val_loss`` in `history_`; each member
        holds out others. "auto" is 0.2 with early stopping and for 10 images or more, else 0. Of many
        held-out rows, 2,048 are followed, with as many of the draws as make 1,000 rows times draws.
    early_stopping : "auto" or bool, default="auto"
        Stop when ``val_loss`` has not improved for ``patience`` epochs, and restore the best weights.
        "auto" does with at least 10 rows if ``epochs="auto"``: an int trains as long as it says.
    patience : int, default=30
        Epochs to wait: training stops if the last so many have not made ``val_loss`` better by a thousandth
        of a nat.
    contamination : "auto" or float, default="auto"
        Where the threshold lies. A float in (0, 0.5] calls that fraction of the training rows anomalies.
        More of the new normal rows lie beyond: `false_alarm_rate_` tells. "auto" is `thresholds.OutOfBag`,
        by which about 5 % of new normal rows raise an alarm, where members leave rows out of their training
        (the default), else `thresholds.TukeyFence`: rows beyond Q3 + 1.5 (Q3 - Q1) of the training
        scores, and at least 1 % of them. Of more than 2,000 rows, a random 2,000 decide.
    threshold : name, rule or None, default=None
        Takes the place of ``contamination``, which must be "auto" then, unless both mean the same quantile:
        "quantile", "out_of_bag", "tukey_fence", "median_deviation", "conformal", "pareto_tail", an instance
        from `vae_anomaly.thresholds`, any object with ``cut(scores) -> float``, or one of pythresh.
        "conformal" guarantees a false-alarm rate (5 %; ``Conformal(false_alarm_rate)`` sets it),
        "pareto_tail" extrapolates to rare ones; both take scores of rows that were not trained on.
    calibration : {"auto", "out_of_bag", "folds"}, float, splitter or None, default="auto"
        Where scores of rows that were not trained on come from, for such thresholds and for `p_values`. A
        float in (0, 1) holds out that fraction of the rows. "out_of_bag" judges each row by the members
        that left it out of their training, as `thresholds.OutOfBag` does: it costs neither rows nor time, and
        rates may be a little above those promised. "folds" fits five more detectors, each without one fold of
        the rows, and scores the fold by it; a splitter that holds out each row once, such as ``KFold(10)``,
        makes other folds. "auto" does nothing unless the threshold asks; then it is "folds" for fewer than
        500 rows, else a fifth of the rows, at most 10,000.
    calibrate_intervals : bool, default=False
        Whether the intervals of `expected` and `report` hold what they say: `fit` then guesses each cell of
        at most 500 rows that were not trained on (fewer if there are more than 40 columns), which takes about
        a millisecond a cell. They are rows that a fraction as ``calibration`` holds out, for which coverage
        is exact if the threshold is conformal, or else training rows, judged as new ones by what members tell
        of those that they left out, for which it is nearly so.
    scaler : "auto", transformer or None, default="auto"
        Any scikit-learn transformer; a clone is fitted on the training rows. "auto" asks the likelihood:
        `StandardScaler` for real values, with one mean and scale for all steps of a signal's channel, and
        `preprocessing.PixelScaler` for images; nothing for values in [0, 1]. A column whose standard
        deviation is of a few values, 50 times that of its central 95 %, is scaled by those: gross errors do
        not hide what the others hold. Of 200 to 2,048 columns, of which 100 hold three values or more, those
        that hold one value in most rows count less: a standard deviation is multiplied by the square of the
        fraction of rows with another value, 0.01 at least, and a constant counts a tenth. A scaler that clips
        (``MinMaxScaler(clip=True)``, `QuantileTransformer`) hides how far away a far row is.
    invalid : {"score", "raise"}, default="score"
        What becomes of a new row with a value that no row can have: an infinite one, or one outside the
        likelihood's support, such as a count of -1. "score" makes each such value count 1e30 nats, which
        `explain` and `report` show, and takes it for missing elsewhere; "raise" raises a ValueError that
        names the column, the row and the value. Pixels of another range and training rows always raise.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights, scaler, draws and, if it is given the same rows, held-out
        rows of the earlier fit. The optimizer starts anew, and an int as ``random_state`` repeats the earlier
        fit's shuffles and noise. A warning tells if the earlier fit calls far more of the rows anomalies than
        it would of rows like its own: scaler and categories stay.
    max_samples : "auto", int or None, default="auto"
        How many rows are trained on. Of more, an int draws so many by chance, by ``random_state``: training,
        validation, calibration and threshold see no others. None trains on all rows. "auto" is 500,000 if
        ``epochs="auto"``, which costs at most 16,000 steps of 128 rows for each member (five passes), and
        None if ``epochs`` is an int: each epoch is a pass over all rows, then. All of more than 500,000 rows
        are kept in a temporary file of 4 bytes a value; 500,000 are drawn for validation, calibration and
        threshold; and memory does not grow with the rows. They are shuffled in parts: of pieces of 65,536
        values, in an order drawn for each epoch, 64 at a time are read and their rows shuffled. Sparse tables
        stay in memory, and of images that are seen in patches 500,000 are drawn at most. Whichever rows are
        trained on, what a pass can tell is learned of all: the scaler (if it has ``partial_fit``),
        categories, missing values, and which values are wrong. Fractions of rows count those that were drawn.
    callbacks : list of keras.callbacks.Callback or None, default=None
        Called at the beginning and the end of the training and of each epoch, and of each batch if they have
        methods for that (about 5 ms a batch), with a `VAE` that holds the present weights and the learning
        rate of the step. They are called for each member in turn: ``{member}`` in a path of theirs becomes
        the member's number. After the training their ``model`` is None.
    checkpoint : str, path, Checkpoint or None, default=None
        A file in which `fit` keeps where it stands, so that ``fit(X, resume=True)`` goes on after a crash. It
        costs about 2 % of the time; `checkpoints.Checkpoint` says how often to write. The file is removed
        when the fit has been finished. Each fit needs a path of its own: clones that are fitted at the same
        time, as in a parallel search, must not share it.
    jit_compile : "auto" or bool, default="auto"
        Whether XLA compiles the training. "auto" does for networks of up to 20,000 weights without
        convolutions if all members together are expected to take 8,000 steps, such as the default on 650
        rows: the faster steps pay for the compilation, which takes about a second and 130 MB. Its sums are
        rounded otherwise in their last bits.
    device : str, list of str or None, default=None
        Where TensorFlow computes, such as "cpu" or "gpu:1". None is the GPU that TensorFlow sees, else
        the CPU. Members are trained on the devices of a list, such as ``["gpu:0", "gpu:1"]``, in turn; the
        first one scores. `fit` warns of a device that is not there. A fitted detector is tied to no device.
    random_state : int, RandomState instance or None, default=None
        Seeds initial weights, shuffling, training noise and scoring draws. The same int gives the same
        scores, bit for bit, on the same machine. None draws from numpy's global generator.
    verbose : int, default=0
        0 is silent; 1 shows a progress bar with the parts of the loss and the time left, and says beforehand
        how long training takes at most if that is more than a minute.

    Attributes
    ----------
    interrupted_ : bool
        Whether Ctrl-C has ended the training before its time; see `fit`.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    history_ : dict of list of float
        For each epoch, means per row, and over the members that still trained, in nats: "loss",
        "reconstruction", "kl", and with validation rows "val_loss", "val_reconstruction", "val_kl". A KL
        without a closed form is the mean of log q(z|x) - log p(z) over the same draws. For
        ``objective="elbo"`` without trimming, warm-up, free bits or layers that add losses,
        loss = reconstruction + beta * kl; val_loss always is. With ``posterior="implicit"``, the KL and both
        losses are estimates, no bounds. After a warm start, NaN marks epochs in
        which a figure was not measured.
    objective_ : Objective
        The bound that the training has maximized; its ``side`` says on which side of log p(x) it lies.
    calibration_scores_ : float64 array of shape (n_rows,), or None
        Anomaly scores, larger = more anomalous, of rows that were not trained on; see ``calibration``.
    calibration_groups_ : array of shape (n_rows,), or None
        Their groups, if `fit` was given ``groups``.
    interval_scores_ : float64 array of shape (n_rows, n_features_in_), or None
        With ``calibrate_intervals=True``: how far each cell of those rows lies from what is expected there,
        in units of the model's own interval; NaN for missing cells. See `calibration.intervals`.
    false_alarm_rate_ : float or None
        The fraction of new rows of the training rows' kind that the threshold calls anomalies: what the rule
        promises, or else the estimate by rows that members have left out of their training. None if there
        are none.
    score_ : str or Score
        The ``score`` that `offset_` was set for; setting the parameter anew acts at the next `fit`.
    threshold_ : threshold rule or None
        The rule that set `offset_`, with its settings of then. None in a detector that was loaded from a
        file, if the rule's class has no name in `thresholds.THRESHOLDS`.
    scaler_ : transformer or None
        The fitted clone of ``scaler``.
    latent_dim_ : int
        Latent dimensions.
    draws_ : float32 array of shape (n_draws, latent_dim_)
        The standard normal numbers that make the draws which scores average over; of categories and implicit
        posteriors, more for each draw.
    members_ : tuple of ModelState
        The trained models as arrays and configuration.
    member_weights_ : float64 array of shape (n_members,)
        The members' weights in averages of scores, inverse to the interquartile range of their training
        scores.
    model_ : VAE
        The first member as a `keras.Model` over scaled float32 rows; a new copy at each access.
    n_samples_fit_ : int
        Rows that the last `fit` or `partial_fit` was given, those that it held out included.
    n_samples_drawn_ : int
        How many of them were drawn to be held out and judged, and to be trained on unless all were; see
        ``max_samples``.
    n_samples_seen_ : int
        Those of all calls of `partial_fit` since the last `fit`, and of that.
    missing_fraction_ : float64 array of shape (n_features_in_,)
        Fraction of missing values in each column of all training rows.
    do_early_stopping_ : bool
        Whether `fit` could stop early.
    n_features_in_ : int
        Features in a row; for images, pixels times channels.
    feature_names_in_ : array of str
        Column names, if X was a DataFrame.
    image_shape_ : tuple of int or None
        Shape of an image, if X held images.
    pixel_range_ : tuple of two floats or None
        Lowest and highest pixel of the training images, in the units that the model works in: uint8 pixels
        have been divided by 255. None for rows of a table.
    patches_ : data.patches.Patches or None
        Shape of the images and side of the squares, if the members see patches.
    member_poolings_ : tuple of int
        `Member.pooling` of each member: 1 if it sees every pixel.
    table_ : tables.Table or None
        How mixed columns become numbers.
    columns_ignored_ : list
        Names of the columns that the model leaves out, such as identifiers; `describe_columns` says what
        the others were taken for.

    Raises
    ------
    ValueError, TypeError
        In `fit`, for parameters and data that don't fit; an earlier fit stays usable.
    FloatingPointError
        In `fit`, if the training diverges, also at a tenth of the rate; an earlier fit stays usable.

    Notes
    -----
    Members are trained in as many threads as there are processors, or where `joblib.parallel_config` says: in
    other processes or on a cluster, with the same bits. A fit that is a task of joblib or dask itself has as
    many threads as its worker is told to have.

    Scores are computed in float32 over tiles of a fixed number of rows, and are bit-identical whether
    rows are scored alone, together or in another order.

    A row that lies far outside the training rows is flagged whatever the network: the encoder sees each
    feature clipped to `core.rows.usual_range` of the training rows, so it cannot describe such a row to the
    decoder.

    Images of dtype uint8 are divided by 255 wherever they come in, and score as the same images in [0, 1] do;
    what comes out is floats in [0, 1]. Until a block of them is wanted, they stay bytes. Likelihoods of whole
    numbers take them as they are.

    Missing values are left out of the likelihood. If training rows have some, the encoder sees a mark for
    each, and further values are masked in training (``masked_fraction``); otherwise missing inputs are
    inferred again and again from what the model expects there. In a score, a missing cell counts what the
    model expects a value to count, and a row without any value scores as the median training row: see
    `ensemble.fitted.Fitted.member_scores`.

    References
    ----------
    Kingma & Welling 2014, "Auto-encoding variational Bayes".
    An & Cho 2015, "Variational autoencoder based anomaly detection using reconstruction probability".

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> X = np.random.RandomState(0).normal(size=(200, 3))
    >>> detector = VAEDetector(epochs=5, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    members_: tuple[ModelState, ...]
    draws_: Rows
    history_: dict[str, list[float]]
    pixel_range_: tuple[float, float] | None
    offset_: float

    # ``resume`` is for whoever calls `fit`, not for what routes metadata of rows.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"resume": UNUSED}

    _parameter_constraints: ClassVar[Constraints] = {
        # Names are checked where they are looked up, so that ones registered later are known too.
        "network": [str, Network],
        "patches": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), None],
        "latent_dim": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "likelihood": [str, Likelihood, dict, list, tuple],
        "posterior": [str, Posterior],
        "prior": [str, Prior],
        "score": [str, Score],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "objective": [str, Objective],
        "n_training_draws": [Interval(Integral, 1, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "kl_warm_up": [Interval(Real, 0, 1, closed="both")],
        "free_bits": [Interval(Real, 0, None, closed="left")],
        "members": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), list, tuple],
        "epochs": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_schedule": [StrOptions({*SCHEDULES}), callable, None],
        "gradient_clip_norm": [Interval(Real, 0, None, closed="neither"), None],
        "masked_fraction": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left")],
        "validation_fraction": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left")],
        "early_stopping": [StrOptions({"auto"}), "boolean"],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "threshold": [str, HasMethods("cut"), HasMethods("eval"), HasMethods(["fit", "predict"]), None],
        "calibration": [
            StrOptions({"auto", "out_of_bag", "folds"}),
            Interval(RealNotInt, 0, 1, closed="neither"),
            Integral,  # refused with the remedy, by `ensemble.calibration_rows.resolve`
            HasMethods(["split", "get_n_splits"]),
            None,
        ],
        "calibrate_intervals": ["boolean"],
        "scaler": [StrOptions({"auto"}), HasMethods(["fit", "transform"]), None],
        "invalid": [StrOptions({"score", "raise"})],
        "warm_start": ["boolean"],
        "max_samples": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left"), None],
        "callbacks": [list, tuple, None],
        "checkpoint": [str, HasMethods("__fspath__"), Checkpoint, None],
        "jit_compile": [StrOptions({"auto"}), "boolean"],
        "device": [str, list, tuple, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        network: str | Network = "auto",
        *,
        patches: str | int | None = "auto",
        latent_dim: str | int = "auto",
        likelihood: LikelihoodLike = "auto",
        posterior: str | Posterior = "gaussian",
        prior: str | Prior = "standard",
        score: str | Score = "auto",
        n_draws: int = 10,
        objective: str | Objective = "elbo",
        n_training_draws: int = 1,
        beta: float = 1.0,
        kl_warm_up: float = 0.0,
        free_bits: float = 0.0,
        members: str | int | Sequence[Member] = "auto",
        epochs: str | int = "auto",
        batch_size: str | int = "auto",
        learning_rate: float = 3e-3,
        learning_rate_schedule: str | Callable[[Floats], npt.ArrayLike] | None = "cosine",
        gradient_clip_norm: float | None = None,
        masked_fraction: str | float = "auto",
        validation_fraction: str | float = "auto",
        early_stopping: str | bool = "auto",
        patience: int = 30,
        contamination: str | float = "auto",
        threshold: str | ThresholdRule | LabelingRule | FittedLabelingRule | None = None,
        calibration: str | float | Splitter | None = "auto",
        calibrate_intervals: bool = False,
        scaler: str | Transformer | None = "auto",
        invalid: str = "score",
        warm_start: bool = False,
        max_samples: int | str | None = "auto",
        callbacks: Sequence[Callback] | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        jit_compile: str | bool = "auto",
        device: str | Sequence[str] | None = None,
        random_state: RandomStateLike = None,
        verbose: int = 0,
    ) -> None:
        self.network = network
        self.patches = patches
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.posterior = posterior
        self.prior = prior
        self.score = score
        self.n_draws = n_draws
        self.objective = objective
        self.n_training_draws = n_training_draws
        self.beta = beta
        self.kl_warm_up = kl_warm_up
        self.free_bits = free_bits
        self.members = members
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.gradient_clip_norm = gradient_clip_norm
        self.masked_fraction = masked_fraction
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.contamination = contamination
        self.threshold = threshold
        self.calibration = calibration
        self.calibrate_intervals = calibrate_intervals
        self.scaler = scaler
        self.invalid = invalid
        self.warm_start = warm_start
        self.max_samples = max_samples
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.jit_compile = jit_compile
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> Values:
        """Parameters by name, as everywhere in scikit-learn; ``deep`` adds those of nested objects."""
        return {**super().get_params(deep=deep), "score": vars(self)["score"]}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags

    # -- fitting --------------------------------------------------------------------------------------
    def fit(
        self,
        X: MatrixLike,
        y: object = None,
        *,
        groups: npt.ArrayLike | str | None = None,
        resume: bool = False,
    ) -> Self:
        """Fit scaler, VAE and threshold.

        Ctrl-C ends the training with the present epoch. What has been trained then gets its threshold and is
        a detector like any other, but that its `interrupted_` is True and a `ConvergenceWarning` tells of it;
        members that had not begun are left out. A second Ctrl-C, or one before the end of the first epoch,
        during a calibration in folds or while the threshold is set, raises `KeyboardInterrupt` and leaves an
        earlier fit as it was.

        An epoch whose loss is not finite, or 10,000 times larger than ever before, is repeated once at a
        tenth of the learning rate, which then holds for the rest, with a `ConvergenceWarning`.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), images of shape (n, height, width) or
            (n, height, width, channels), or where such rows are
            At least 2 rows. Of numbers, or a DataFrame with booleans and categories too; NaN, None and NA
            are missing values. A sparse table is made dense a block at a time. Images of dtype uint8 are
            divided by 255; all others are taken as they are, of any range unless the likelihood is one of
            values in [0, 1]. A list of images of one size is as good as an array.
            Rows need not be in memory: Parquet files (a path, a glob or a folder), a dataset of pyarrow, a
            DataFrame or array of dask, `numpy.memmap`, and whatever else has a shape and slices of rows, such
            as datasets of h5py. Wherever they are, the same rows give the same bits; see ``max_samples``.
        y : ignored
            For scikit-learn's conventions.
        groups : array of shape (n_rows,), str or None, default=None
            The site, product or sensor of each row, as numbers or text, or the name of a column of X, which
            stays a column of the model too. Training takes no notice of them: those of the calibration rows
            are kept, so that `predict` and `p_values` can keep their promises in each group. Needs
            ``threshold="conformal"`` or ``calibration``.
        resume : bool, default=False
            Whether to go on from the file that ``checkpoint`` names, and to end with the weights, scores and
            threshold of a fit that was never interrupted, bit for bit on the same machine. If there is no
            such file, a fit starts anew; one of other rows, parameters, seeds or library releases is
            refused. Where ``random_state`` is not an int, the file's seeds are used. False starts anew and
            replaces the file.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the checkpoint is that of another fit: says what differs.
        ModelFileError
            If the file is damaged, or not a checkpoint; it is left as it is.
        OSError
            If the checkpoint cannot be written: an earlier one is as it was.
        """
        with all_or_nothing(self), interruptible(self) as interruption:
            self._validate_params()
            checkpoint = checkpoints.open_checkpoint(self.checkpoint, resume, self.callbacks)
            # The checkpoint of an interrupted fit is that of a fit from the beginning.
            from_beginning = resume and getattr(self, "interrupted_", False)
            continues = self.warm_start and hasattr(self, "members_") and not from_beginning
            earlier = attributes.earlier_of(self, WARM_START) if continues else None
            given = fits.read(self, X, groups, earlier, checkpoint)
            del X  # a temporary one needs no memory any more
            fits.fit(self, given, earlier, checkpoint, interruption)
            if checkpoint is not None and not self.interrupted_:
                checkpoint.remove()
        return self

    def partial_fit(
        self, X: MatrixLike, y: object = None, *, groups: npt.ArrayLike | str | None = None
    ) -> Self:
        """Go on with new rows of a stream: train on them from where the models stand, and set the threshold.

        The first call is ``fit(X)``, to the same bits. A later one trains every member on the new rows, from
        its present weights and with an optimizer that starts anew: with an int as ``epochs`` so many passes
        over them, with "auto" five, all of them unless ``early_stopping=True``. Earlier rows are not kept and
        are forgotten by and by, the sooner the more passes are taken.

        Scaler, categories, likelihoods, draws and networks stay those of the first fit. A warning names the
        columns in which the new rows lie outside what all earlier ones held: too many values beyond the range
        for rows of the same kind, by a test that calls them so in at most a thousandth of the calls; a value
        beyond it by more than its width; a category that the first rows did not have, of which nothing can be
        learned; a first missing value. Another tells, as for warm starts, if the earlier fit calls far more
        of the rows anomalies than it would of rows like its own.

        Whatever is set by scores is set anew, by the new rows alone: the members' weights, the threshold,
        `calibration_scores_` and `false_alarm_rate_`. Calibration rows are new rows, too: a fraction of them
        that no member is trained on; for "out_of_bag" all of them, each judged by the members that left it
        out; for "folds" all of them, each scored by models that went on from the earlier ones without its
        fold. So what the threshold promises after `fit` it promises after this call, for rows of the new
        ones' kind: nothing that was learned before has seen a calibration row, as long as each row of the
        stream is handed in once (the rows of the last call are warned of). Rules need as many rows as in
        `fit`, such as 19 calibration rows for ``Conformal(0.05)``: collect some hundreds for a call.

        With an int as ``random_state``, a sequence of calls gives the same bits again, also if the detector
        has been saved and loaded between them; the seeds of each call depend on `n_samples_seen_`.
        ``checkpoint`` is for a first call only. Ctrl-C and `stop_fit` raise `KeyboardInterrupt` and leave the
        detector as it was, so do all errors: rows are learned whole or not at all.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not
            New rows. The first call needs 2, later ones 1; fewer than 19 are warned of. Of many, some are
            drawn; see ``max_samples``.
        y : ignored
            For scikit-learn's conventions.
        groups : array of shape (n_rows,), str or None, default=None
            As in `fit`, of these rows: `calibration_groups_` become those of their calibration rows.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the rows are not like the earlier ones, if network, members, draws or latent dimensions have
            been set to others since, or if there are too few rows for the threshold.
        FloatingPointError
            If the training diverges, also at a tenth of the learning rate.

        See Also
        --------
        vae_anomaly.monitoring.Monitor : Tells when it is time to fit anew.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> rng = np.random.RandomState(0)
        >>> detector = VAEDetector(epochs=5, random_state=0)
        >>> for _ in range(3):
        ...     _ = detector.partial_fit(rng.normal(size=(200, 3)))
        >>> detector.n_samples_seen_, len(detector.history_["loss"])
        (600, 15)
        """
        if not hasattr(self, "members_"):
            return self.fit(X, groups=groups)
        with all_or_nothing(self), interruptible(self) as interruption:
            self._validate_params()
            earlier = attributes.earlier_of(self, PARTIAL_FIT)
            given = fits.read(self, X, groups, earlier)
            del X
            fits.fit(self, given, earlier, None, interruption)
        return self

    def stop_fit(self) -> None:
        """End a `fit` that runs in another thread, as Ctrl-C does: with the epoch that its members are in.

        The fit then returns a detector with `interrupted_` True and warns of it. It finishes at least one
        epoch; where a threshold needs trainings in folds, it raises `KeyboardInterrupt`, and so does a
        `partial_fit` that goes on with a stream. Without a fit that trains, nothing happens. Any thread may
        call it, any number of times. It does not reach members that are trained in other processes.

        Examples
        --------
        A time limit for all members together:

        >>> import threading, warnings
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = VAEDetector(epochs=1_000_000, members=2)
        >>> threading.Timer(0.5, detector.stop_fit).start()
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     detector.fit(X).interrupted_
        True
        """
        stop(self)

    # -- scoring --------------------------------------------------------------------------------------
    @on_partitions(np.float64)
    def score_samples(self, X: MatrixLike) -> Floats:
        """Normality of each row: the negative of the score named by ``score``.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not

        Returns
        -------
        float64 array of shape (n_rows,), or a lazy Series or array of dask if X is of dask
            Higher = more normal; in nats, except for errors and shares. Densities are those of
            the scaled rows.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError, TypeError
            For rows that don't fit the training rows: other width, names, types or image shape, values that
            are infinite or lie outside the likelihood's support, pixels of another range.
        """
        rows = self._stream(X)
        return -self._fitted.scores(rows)

    @on_partitions(np.float64)
    def decision_function(self, X: MatrixLike, groups: npt.ArrayLike | str | None = None) -> Floats:
        """``score_samples(X) - offset_``: negative for anomalies.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not
        groups : array of shape (n_rows,), str or None, default=None
            As in `fit`. The offset of each row is then that of its group: the false-alarm rate of
            ``threshold="conformal"`` holds in every group, and not only on average over them. Groups with
            too few calibration rows for the rate are pooled (`group_rates` says which).

        Returns
        -------
        float64 array of shape (n_rows,), or a lazy Series or array of dask if X is of dask

        Raises
        ------
        ValueError
            With ``groups``, if `fit` had none, if the threshold is not conformal, if a group has no
            calibration rows, or if it is small and all small ones together have too few.
        """
        if groups is None:
            return self.score_samples(X) - self.offset_
        cuts = grouped.cuts_of(self, read_groups(X, groups))
        return self.score_samples(X) + cuts

    @on_partitions(np.int64)
    def predict(self, X: MatrixLike, groups: npt.ArrayLike | str | None = None) -> npt.NDArray[np.int64]:
        """-1 for anomalies, +1 for the others.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not
        groups : array of shape (n_rows,), str or None, default=None
            See `decision_function`.

        Returns
        -------
        int array of shape (n_rows,), or a lazy Series or array of dask if X is of dask

        Raises
        ------
        ValueError
            As by `decision_function`.
        """
        grouped.warn_of_one_cut(self, groups)
        return np.where(self.decision_function(X, groups) < 0, -1, 1)

    @MethodNamedAsParameter
    def score(self, X: MatrixLike, y: object = None) -> float:
        """Mean evidence lower bound of the rows, in nats: what GridSearchCV maximizes by default.

        Always the ELBO (beta = 1) of the scaled rows, whatever ``score`` and ``beta`` are, so that it
        compares networks, likelihoods, betas and training settings; not scalers, which change the
        units of the density, and not ``posterior="implicit"``, of which it is an estimate and no bound.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not
        y : ignored

        Returns
        -------
        float
        """
        rows = self._stream(X)
        return self._fitted.evidence_lower_bound(rows)

    def warm_up(self, n_rows: int | Iterable[int] = 1) -> Self:
        """Compile now what scoring would compile during its first calls, so that none of them waits for it.

        TensorFlow's programs are compiled when they are needed: for many rows at the first call, for few rows
        at the 33rd call, and for the weights of a small model alone after 256 more. After a warm-up,
        `score_samples`, `decision_function`, `predict`, `p_values` and `select_anomalies` compile nothing for
        tables of these sizes, with or without missing values, and use the fastest program from the first call
        on. Scores are the same bits with and without it.

        It is for this object in this process: call it after `load` in each worker of a service, and again
        after `fit` or another ``device``. Threads may score meanwhile.

        Parameters
        ----------
        n_rows : int or iterable of int, default=1
            How many rows a call will have: each number that there will be, such as ``range(1, 65)`` for any
            up to 64. Numbers between the sizes of two tiles (4, 16 and 128 rows) cost nothing more.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If a number is not a positive integer.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = VAEDetector(epochs=5, random_state=0).fit(X)
        >>> detector.warm_up(n_rows=[1, 100]).predict(X[:1])
        array([1])
        """
        check_is_fitted(self)
        self._fitted.warm_up(n_rows, self.n_features_in_)
        return self

    # -- what a row is ------------------------------------------------------------------------------------
    def explain(self, X: MatrixLike) -> Any:
        """Each feature's share of each row's anomaly score, in the columns of X.

        For likelihood scores, the feature's part of -log p(x|z) in nats, averaged as the score averages; for
        "reconstruction_error", its part of the error. What belongs to no feature, such as the KL, is spread
        evenly: shares sum to the score, and it changes no order among them. See
        `vae_anomaly.explanations`, also for detectors behind other transformers.

        Of images whose patches the members see, it is a map of local scores, whose largest pixel (the sum of
        its channels) is the image's score: see `scoring.patches.PatchPasses.shares`.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), or images as in `fit`

        Returns
        -------
        float64 array of the shape of X, or a DataFrame if X is one
            Each row sums to ``-score_samples(X)``, up to float64 rounding; with patches, its largest pixel is
            that.

        Raises
        ------
        ValueError
            If the ``score`` is one of your own without ``per_feature``, or if the ``scaler`` mixes columns.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = VAEDetector(epochs=5, random_state=0).fit(X)
        >>> int(detector.explain([[0.0, 9.0, 0.0]]).argmax())
        1
        """
        given, X = X, self._validate(X)
        shares = self._fitted.column_shares(X)
        return in_form_of(given, shares)

    def anomaly_mask(self, X: MatrixLike, false_alarm_rate: float = 0.001) -> Flags:
        r"""Which pixels of images are anomalous.

        Those whose local scores lie above a cut, which a fraction of ``false_alarm_rate`` of the pixels of
        new normal images lies above: by pixels of up to 50 training images, judged by the members as new ones
        (see `thresholds.OutOfBag`). The local score is the pixel's share of the score as in `explain`, the
        sum of its channels, without what moves all pixels of an image alike.

        Parameters
        ----------
        X : images as in `fit`
        false_alarm_rate : float, default=0.001
            In (0, 1): fraction of normal pixels. They come in regions, so it is not that of normal images
            with such pixels.

        Returns
        -------
        bool array of shape (n, height, width)

        Raises
        ------
        ValueError
            If the detector was not fitted on images, if its ``score`` does not divide among pixels, or for a
            rate that the training images cannot tell.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> images = np.random.RandomState(0).normal(0.5, 0.1, size=(60, 40, 40))
        >>> detector = VAEDetector(epochs=2, random_state=0).fit(images)
        >>> images[0, 10:20, 10:20] += 0.8
        >>> mask = detector.anomaly_mask(images[:1])[0]
        >>> bool(mask[12:18, 12:18].all()), bool(mask[30:, 30:].any())
        (True, False)
        """
        maps, cut = self._pixel_maps_and_cut(X, false_alarm_rate)
        return maps > cut

    def anomaly_regions(self, X: MatrixLike, false_alarm_rate: float = 0.001) -> pd.DataFrame:
        """The connected regions of `anomaly_mask`, with their boxes and scores; see `masks.regions`.

        Parameters
        ----------
        X : images as in `fit`
        false_alarm_rate : float, default=0.001
            As in `anomaly_mask`.

        Returns
        -------
        DataFrame with a line for each region and the columns ``image``, ``top``, ``left``, ``bottom``,
        ``right``, ``n_pixels`` and ``score``, the largest local score of its pixels

        Raises
        ------
        ValueError
            As in `anomaly_mask`.
        """
        maps, cut = self._pixel_maps_and_cut(X, false_alarm_rate)
        return masks.regions(maps > cut, maps)

    def _pixel_maps_and_cut(self, X: MatrixLike, false_alarm_rate: float) -> tuple[Floats, float]:
        X, shape = self._validate(X), self._shape_of_images
        if shape is None:
            raise ValueError(
                "masks are of images, and the detector was fitted on rows of a table: see explain."
            )
        cut = masks.cut_of_pixels(getattr(self, "_pixel_quantiles", None), false_alarm_rate)
        return self._fitted.pixel_maps(X, with_channels(shape)), cut

    def expected(self, X: MatrixLike, coverage: float | None = None) -> Any:
        """What the model expects in each cell given the other cells of its row, in the units of X.

        Each cell is masked in turn. Each member looks for the most probable z given the others, by gradient
        (`model.incomplete.Incomplete.encode`), and its guess weighs the more, the better it explains the row
        (`ensemble.averaging.weights_by_row`). Values far less probable than expected, which may be wrong,
        have less of a say in both. That costs dozens of passes through the decoder for each cell.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features)
        coverage : float or None, default=None
            In (0, 1): adds the ends of intervals. With ``calibrate_intervals=True`` they hold at least this
            share of the cells of new normal rows, column by column, on average over calibrations; where at
            least 50 calibration rows have the same other cells missing, also among such rows. Otherwise they
            hold this share of what the members think possible, each with its weight in the score: of a model
            that is too sure, fewer new cells lie inside.

        Returns
        -------
        expected : float64 array of the shape of X, or a DataFrame if X is one
            Means; medians of counts, and the most probable of booleans and categories. None lies outside of
            what its column has held in the training rows.
        low, high : as ``expected``, if there is a ``coverage``
            NaN for categories, which have no order, and in columns of which so few calibration rows have a
            value that they tell of no interval with this coverage: 9 are needed for 0.9, 19 for 0.95.

        Warns
        -----
        UserWarning
            If there are such columns: names them.

        Raises
        ------
        ValueError
            If the ``scaler`` does not keep the columns, or for a coverage outside (0, 1).
        NotImplementedError
            If there is a ``coverage`` and the likelihood is one of your own without ``quantile``.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> x = np.random.RandomState(0).normal(size=(500, 1))
        >>> detector = VAEDetector(epochs=50, random_state=0).fit(np.hstack([x, x, x]))
        >>> expected, low, high = detector.expected([[1.0, 1.0, -3.0]], coverage=0.9)
        >>> bool(-3.0 < low[0, 2] < expected[0, 2] < high[0, 2])
        True
        """
        given, X = X, self._validate(X)
        fitted = self._fitted
        results = [
            fitted.preparation.in_form_of(given, values) for values in cells.expect_cells(fitted, X, coverage)
        ]
        return results[0] if coverage is None else tuple(results)

    def report(
        self, X: MatrixLike, n_rows: int = 5, n_columns: int = 3, coverage: float = 0.9
    ) -> pd.DataFrame:
        """The most anomalous rows and the cells that make them so: what is there, and what was expected.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features)
        n_rows, n_columns : int, default=5, 3
            How many rows, most anomalous first, and how many columns of each, greatest share first.
        coverage : float, default=0.9
            Of the interval from "low" to "high"; see `expected`.

        Returns
        -------
        DataFrame
            A line for each cell: "row" (its label in X), "score" (larger = more anomalous), "anomaly"
            (whether `predict` says so), "column", "value", "expected", "low", "high", "contribution" (see
            `explain`).

        Raises
        ------
        ValueError
            If a number of rows or columns is not a positive integer, or for images.
        """
        return explanations.report(self, X, n_rows, n_columns, coverage)

    def confidence(self, X: MatrixLike) -> Floats:
        r"""How sure the label of each row is, given what chance decided in the model.

        :math:`\Phi(|d| / \sqrt{e_m^2 + e_d^2})` with the decision function d, the standard error :math:`e_m`
        of the mean over the members (each at its own level and scale) and the standard error :math:`e_d` that
        comes from the draws (jackknife): the probability that other members and other draws would label the
        row alike, if their mean is normally distributed. Near 0.5 the row lies on the border. It says nothing
        of other training rows.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not

        Returns
        -------
        float64 array of shape (n_rows,), in [0.5, 1]

        Raises
        ------
        ValueError
            If there is one draw and one member: nothing to compare.
        """
        rows = self._stream(X)
        return self._fitted.confidence(rows, self.offset_)

    # -- what a score means -------------------------------------------------------------------------------
    @on_partitions(np.float64)
    def p_values(self, X: MatrixLike, groups: npt.ArrayLike | str | None = None) -> Floats:
        r"""Conformal p-values: how often a normal row would look at least as anomalous.

        .. math:: p(x) = \frac{1 + \#\{i : s_i \ge s(x)\}}{n + 1}

        with the n `calibration_scores_`. If x is exchangeable with the calibration rows, p(x) <= alpha has a
        probability of at most alpha, for every alpha and whatever the model (Vovk, Gammerman & Shafer 2005);
        with ``calibration`` out of bag or in folds this holds nearly, because calibration rows are scored by
        some of the members, or by other models. No p-value
        is below 1 / (n + 1). It is not the probability that the row is normal.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not
        groups : array of shape (n_rows,), str or None, default=None
            As in `fit`. Each row is then compared with the calibration rows of its group alone, so that the
            above holds in every group (`calibration.group_p_values`); groups with fewer than 19 are pooled.

        Returns
        -------
        float64 array of shape (n_rows,), or a lazy Series or array of dask if X is of dask

        Raises
        ------
        ValueError
            If the detector was fitted without calibration; with ``groups``, as by `decision_function`.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(X)
        >>> float(detector.p_values([[1000.0, 0.0, 0.0]])[0]) == 1 / 101
        True
        """
        rows = self._stream(X)
        unseen = check_calibrated(self, "p-values need")
        if groups is None:
            return calibration.p_values(self._fitted.scores(rows), unseen)
        return grouped.p_values_of(self, lambda: self._fitted.scores(rows), read_groups(X, groups))

    def group_rates(
        self, X: MatrixLike | None = None, groups: npt.ArrayLike | str | None = None
    ) -> pd.DataFrame:
        """What is promised in each group, and what the one cut of all rows does there.

        Parameters
        ----------
        X : rows as in `fit`, or None, default=None
            Normal rows, to count the alarms among them. None: only what calibration rows tell.
        groups : array of shape (n_rows,), str or None, default=None
            Those of X.

        Returns
        -------
        DataFrame
            A line for each group: "calibration_rows"; "pooled", whether it shares them with other small
            groups; its "cut" and the "promised_rate", NaN if it has too few; "low" and "high", between which
            95 % of the rates lie that chance makes of so many calibration rows; "rate_of_one_cut", the
            fraction of its calibration rows above the cut that all groups have without ``groups``. With X,
            also "rows", "realized_rate" and "realized_rate_of_one_cut": the fractions of its rows of X above
            both.

        Raises
        ------
        ValueError
            As by `decision_function`.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> rng = np.random.RandomState(0)
        >>> site = np.repeat(["a", "b"], 300)
        >>> X = rng.normal(size=(600, 3)) * np.where(site == "a", 1, 2)[:, None]
        >>> detector = VAEDetector(epochs=5, threshold="conformal", calibration=0.5, random_state=0)
        >>> rates = detector.fit(X, groups=site).group_rates()
        >>> (rates["rate_of_one_cut"] > 0.05).tolist(), (rates["promised_rate"] == 0.05).tolist()
        ([False, True], [True, True])
        """
        check_is_fitted(self)
        if X is None:
            return grouped.rates_of(self)
        rows = self._stream(X)
        return grouped.rates_of(self, lambda: self._fitted.scores(rows), read_groups(X, groups))

    def select_anomalies(
        self,
        X: MatrixLike,
        false_discovery_rate: float = 0.1,
        dependence: str = "positive",
        groups: npt.ArrayLike | str | None = None,
    ) -> Flags:
        """Rows to call anomalies so that on average at most a given share of them is normal.

        `predict` limits how many normal rows raise an alarm, this how many alarms are false. It judges the
        rows of X together: `calibration.discoveries` of their `p_values`.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), or images as in `fit`
        false_discovery_rate : float, default=0.1
            The expected share of normal rows among the selected ones, in (0, 1). With m rows of X and
            n calibration rows, either none or at least m / (rate (n + 1)) rows are selected: few calibration
            rows find few anomalies.
        dependence : {"positive", "any"}, default="positive"
            "any" is safe whatever the dependence between rows, and finds less.
        groups : array of shape (n_rows,), str or None, default=None
            As in `p_values`.

        Returns
        -------
        bool array of shape (n_rows,)

        Raises
        ------
        ValueError
            If the detector was fitted without calibration, or for a rate outside (0, 1).
        """
        check_selection(false_discovery_rate, dependence)
        return calibration.discoveries(self.p_values(X, groups), false_discovery_rate, dependence)

    def count_anomalies(
        self, X: MatrixLike, selected: npt.ArrayLike | None = None, confidence: float = 0.95
    ) -> int:
        """How many of the rows, or of a selection of them, are anomalies at least, with a stated confidence.

        `select_anomalies` promises a share on average; this is a bound for the rows at hand, and holds for
        all selections at once, also for those that are made by looking: `calibration.count_anomalies` of the
        `p_values`. `plotting.anomaly_counts` draws it for the most anomalous rows.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), or images as in `fit`
        selected : bool array of shape (n_rows,), int array of positions, or None, default=None
            None is all rows.
        confidence : float, default=0.95
            In (0, 1). Of m rows of X, k anomalies cannot be counted with fewer than about
            m / (k (1 - confidence)) calibration rows.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If the detector was fitted without calibration, or for a confidence outside (0, 1).

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> rng = np.random.RandomState(0)
        >>> detector = VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(rng.normal(size=(600, 3)))
        >>> detector.count_anomalies(np.r_[rng.normal(size=(20, 3)), np.full((10, 3), 30.0)])
        9
        """
        check_probability(confidence, "confidence")
        return calibration.count_anomalies(self.p_values(X), selected, confidence)

    def false_alarm_certificate(self, confidence: float = 0.95, rate: float | None = None) -> Certificate:
        """An upper bound on the false-alarm rate that holds with a stated confidence, to be signed.

        `false_alarm_rate_` is the average over calibrations. This is a bound for the one at hand: with this
        confidence, at most the certificate's ``rate`` of new normal rows is flagged by `predict`, forever,
        whatever the model and the distribution, if calibration rows and new normal rows are independent and
        of one distribution. `calibration.certify` has the formula. With 1,000 calibration rows and 95 %
        confidence, the lowest rate that any cut can have certified is 0.3 %.

        The bound is exact for ``threshold=Conformal(...)``, whose cut is a rank that was fixed beforehand.
        Cuts of other rules may have been decided by the calibration rows too, so the bound is one for all
        cuts at once, and larger. With such rules the weights of several members are computed from all rows,
        calibration rows among them, which the bound does not count.

        Parameters
        ----------
        confidence : float, default=0.95
            In (0, 1).
        rate : float or None, default=None
            None is for the cut that `predict` has. A rate in (0, 1) asks for the smallest cut that certifies
            it; to have `predict` use that cut, fit with
            ``threshold=Conformal(false_alarm_rate=rate, confidence=confidence)``.

        Returns
        -------
        Certificate

        Raises
        ------
        ValueError
            If no rows were held out for calibration (where members or folds score the rows that they left
            out, nothing exact is known), if there are too few for ``rate``, or for values outside (0, 1).

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(600, 3))
        >>> detector = VAEDetector(epochs=5, threshold="conformal", calibration=0.5, random_state=0).fit(X)
        >>> certificate = detector.false_alarm_certificate()
        >>> round(certificate.rate, 3), round(certificate.lowest_rate, 3)
        (0.072, 0.01)
        >>> detector.false_alarm_certificate(rate=0.05).rate <= 0.05
        True
        """
        scores = held_out_scores(self, "a certificate counts")
        if rate is not None:
            return calibration.certify(
                scores, calibration.certified_cut(scores, rate, confidence), confidence
            )
        by_rank = type(getattr(self, "threshold_", None)) is Conformal
        return calibration.certify(scores, -self.offset_, confidence, all_cuts=not by_rank)

    def drift(self, X: MatrixLike, false_alarm_rate: float = 0.01) -> Drift:
        """Whether a batch of rows still looks like the training rows; see `monitoring.drift` for the tests.

        ``drifted`` says that the scores of most rows have moved, up or down: the threshold no longer means
        what it meant. ``more_anomalies`` says that more rows than expected are far out, which may be
        anomalies, and is not a reason to fit anew. Up to 5 % of anomalies are not drift. A change that the
        scores do not show is not found.

        Without drift, a batch is called drifted with a probability of at most ``false_alarm_rate``, whatever
        the model and the data, if its rows are independent of each other. That is one of calibration and
        batch together: batches that are compared with the same calibration rows raise false alarms together.
        For a stream of batches, `monitoring.Monitor` keeps the rate over all of it.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not
        false_alarm_rate : float, default=0.01
            In (0, 1).

        Returns
        -------
        Drift

        Raises
        ------
        ValueError
            If no rows were held out for calibration (out of bag and in folds, none are: their scores are
            those of some members or of other models), or for a rate outside (0, 1).

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> rng = np.random.RandomState(0)
        >>> detector = VAEDetector(epochs=5, calibration=0.5, random_state=0).fit(rng.normal(size=(600, 3)))
        >>> detector.drift(rng.normal(size=(300, 3))).drifted
        False
        >>> detector.drift(2 * rng.normal(size=(300, 3))).reason[:34]
        'Drift: the median row scores above'
        """
        held_out = held_out_scores(self, DRIFT_ASKS)
        check_probability(false_alarm_rate, "false_alarm_rate")
        return monitoring.drift(self._fitted.scores(self._stream(X)), held_out, false_alarm_rate)

    # -- the model ----------------------------------------------------------------------------------------
    def encode(self, X: MatrixLike) -> Floats:
        """Where each row lies among z: the posterior's mean, by the first member.

        Of a flow, the image of its base's mean; of categories, their probabilities; of an implicit posterior,
        the mean of some draws.

        Parameters
        ----------
        X : rows as in `fit`, in memory or not

        Returns
        -------
        float64 array of shape (n_rows, latent_dim_); of images in patches, those of all squares side by side,
        (n_rows, n_patches * latent_dim_)
        """
        rows = self._stream(X)
        return self._fitted.posterior_means(rows)

    def reconstruct(self, X: MatrixLike) -> Any:
        """Expected x given z, averaged over draws and members, in the units of X: gaps are filled.

        A missing value is inferred as by `expected`; the members count as there. Nothing lies outside of what
        its column has held in the training rows.

        Parameters
        ----------
        X : array or DataFrame of shape (n_rows, n_features), or images as in `fit`

        Returns
        -------
        float64 array of the shape of X, or a DataFrame if X is one
            Of uint8 images, pixels in [0, 1].

        Raises
        ------
        TypeError
            If ``scaler_`` has no ``inverse_transform``.
        """
        given, X = X, self._validate(X)
        return self._fitted.preparation.in_form_of(given, self._fitted.reconstructions(X))

    def sample(
        self, n_samples: int = 1, random_state: RandomStateLike = None, *, noise: str | bool = "auto"
    ) -> Any:
        """New rows: a member by chance, z from the prior, x from its p(x|z), in the units of X.

        Parameters
        ----------
        n_samples : int, default=1
            At least 1.
        random_state : int, RandomState instance or None, default=None
        noise : "auto" or bool, default="auto"
            Whether x is drawn from p(x|z), or is what is expected of it. "auto" draws rows of a table, not
            images: the scale of a pixel's likelihood is a weight there, larger than the grain of images.

        Returns
        -------
        float64 array of shape (n_samples, n_features), or (n_samples, *image_shape_), or a DataFrame of a
        mixed table
            A detector of patches makes patches, of shape (n_samples, side, side) or (n_samples, side, side,
            channels). Of uint8 images, pixels in units of 1/255; with noise, some lie outside [0, 1].

        Raises
        ------
        TypeError
            If ``scaler_`` has no ``inverse_transform``.
        """
        check_is_fitted(self)
        return self._fitted.preparation.in_form_of_training(
            self._fitted.sample(n_samples, random_state, noise)
        )

    @property
    def model_(self) -> KerasModel:
        """The first member's `VAE`, a `keras.Model` over scaled float32 rows; a new copy at each access.

        Images are flat rows for it, too. What it returns of a row, also when it was written by its method
        ``export``, is what it expects at one draw of z; `to_onnx` writes what scores.
        """
        check_is_fitted(self)
        return self._fitted.model()

    # -- files --------------------------------------------------------------------------------------------
    @property
    def columns_ignored_(self) -> list[Hashable]:
        """Names of the columns that the model leaves out."""
        check_is_fitted(self)
        return [] if self.table_ is None else self.table_.ignored

    def describe_columns(self) -> pd.DataFrame:
        """What each column of the training rows was taken for.

        Returns
        -------
        DataFrame with a line for each column, named as the column, and with

        - ``dtype`` in the training rows, None for rows without names
        - ``likelihood`` : the name of its likelihood, or "ignored"
        - ``categories`` : how many, of a categorical column, else missing
        - ``center``, ``scale`` : what is subtracted from real values and what they are divided by, before
          the model sees them; missing for other columns, and with a ``scaler`` that is no `StandardScaler`
        - ``power`` : by which members that transform columns do so, see `Member`; missing if none does
        - ``missing_fraction`` : of its cells in the training rows

        Raises
        ------
        ValueError
            If the detector was fitted on images.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from vae_anomaly import VAEDetector
        >>> rng = np.random.RandomState(0)
        >>> X = pd.DataFrame({"city": rng.choice(["Bern", "Genf"], 50), "rooms": rng.poisson(3, 50)})
        >>> VAEDetector(epochs=2).fit(X).describe_columns()["likelihood"].to_dict()
        {'city': 'categorical', 'rooms': 'count'}
        """
        check_is_fitted(self)
        return model_card.describe_columns(self)

    def model_card(self) -> ModelCard:
        """What this detector was fitted on and how, what its threshold promises, and what it does not.

        Returns
        -------
        ModelCard
            A mapping with the sections "data", "columns" (a list, not for images), "model", "parameters"
            (those that are not the defaults; a later set_params shows here), "training" (the last epoch's
            figures, in nats), "threshold", "notes" and "versions" (those of now, not of the fit). Between the
            threshold's ``realized_rates`` lie 95 % of the false-alarm rates that chance makes of so many
            calibration rows (nearly, if they are scored out of bag or by folds); ``certified_rate`` is that
            of `false_alarm_certificate`, with 95 % confidence, None if no rows were held out.
            ``str(card)`` is Markdown, ``card.to_dict()`` is JSON's.

        Raises
        ------
        NotFittedError
            Before `fit`.

        Examples
        --------
        >>> import numpy as np
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> card = VAEDetector(epochs=5, threshold="conformal", random_state=0).fit(X).model_card()
        >>> card["data"]["rows"], card["threshold"]["false_alarm_rate"], card["threshold"]["calibration_rows"]
        (200, 0.05, 200)
        >>> str(card).splitlines()[2]
        '## Data'
        """
        check_is_fitted(self)
        return model_card.describe(self)

    def save(self, path: PathOrFile) -> None:
        """Write the fitted detector to one file of data, which `vae_anomaly.load` reads.

        The file is a zip of JSON and raw arrays with a SHA-256 for each: no pickle, and nothing in it is ever
        run. It holds every parameter and fitted attribute, and none of the rows. What it can hold besides
        numbers, texts and arrays:

        - this library's likelihoods, networks, members and threshold rules, and your own once their classes
          have a name in LIKELIHOODS, NETWORKS or THRESHOLDS, and are defined where the file is loaded;
        - Keras models of layers that are data, without what they were compiled with;
        - as ``scaler``: ColumnTransformer, FunctionTransformer (with exp, log1p and the like),
          KBinsDiscretizer, MaxAbsScaler, MinMaxScaler, MissingIndicator, Normalizer, OneHotEncoder,
          OrdinalEncoder, PCA, Pipeline, PowerTransformer, QuantileTransformer, RobustScaler, SimpleImputer,
          StandardScaler, VarianceThreshold;
        - a `RandomState`, which goes on in the loaded detector where it stands now.

        ``checkpoint`` is left out: where a fit writes is not for a stranger to choose.

        It is written beside its place, flushed to the disk and renamed: whatever happens in between, ``path``
        holds the old file or the new one. Saving the same detector twice makes the same bytes.

        Parameters
        ----------
        path : str, bytes, path or binary file
            Any name; a file of this name is replaced. A leading ``~`` is the home folder. An open file, such
            as `io.BytesIO` or one of fsspec, is given all bytes at once and not closed.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ModelFileError
            If a parameter or an attribute is not data, such as callbacks; names it and says what to do.
            Nothing is written.
        OSError
            If the disk is full or the folder read-only, say; an old file is as it was.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> import vae_anomaly
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = vae_anomaly.VAEDetector(epochs=5, random_state=0).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.save(os.path.join(folder, "model.vae"))
        ...     loaded = vae_anomaly.load(os.path.join(folder, "model.vae"))
        >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
        True
        """
        check_is_fitted(self)
        model_file.write(path, self, VAEDetector, model_card.summary(self))

    def to_onnx(self, path: PathOrFile) -> None:
        r"""Write the fitted detector as one ONNX graph: rows in, scores and labels out.

        The graph holds the scaler, all members with their weights, the draws of z and the threshold. It runs
        under onnxruntime, or anything else that knows ONNX's operators of version 18, without TensorFlow,
        Keras, scikit-learn or this package.

        Inputs: ``X``, float64 of shape (n_rows, n_features), or (n_rows, \*image_shape) if the detector was
        fitted on images, with pixels in the units of ``pixel_range_``: bytes are to be divided by 255. Of a
        mixed table, one input for each column by its name (by its position, if it has none), of shape
        (n_rows,): texts for categories that are texts, float64 for all others. A missing value is NaN, and an
        empty text among texts without such a category. A runtime takes numbers of these types only; no rows
        at all are taken too.

        Outputs, each of shape (n_rows,): ``score_samples`` and ``decision_function``, float64, and ``label``,
        int64, -1 for anomalies and +1 for the others; an underscore follows where a column of a mixed table
        has the name. Scores differ from the detector's own by at most
        :math:`10^{-4} (1 + |s|)`, usually by a hundredth of that: float32 sums are rounded in another order.
        So that a row on the threshold is not an anomaly, as in `predict`, a label is -1 from that far below
        it. The threshold is the one of all rows: a graph knows no ``groups``.

        A value that no row can have counts as in the detector (``invalid``), an unseen category too where the
        detector raises an error for it; other rows that the detector refuses score NaN, with the label -1.
        The rows of one call are scored at once: give many in blocks of some thousands.

        Before the file takes its place, its scores of sampled rows are compared with `score_samples`. It is
        written beside its place and renamed: whatever happens, ``path`` holds the old file or the new one.

        Parameters
        ----------
        path : str, bytes, path or binary file
            As for `save`; any name, usually one that ends in ``.onnx``; a file of this name is replaced.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ImportError
            Without the extra: ``pip install 'vae-anomaly[onnx]'``.
        NotImplementedError
            If a converter does not know a part of the detector, such as a scaler of your own; names it.
            Every scaler that `save` takes can be exported, with numpy's functions without arguments.
        ValueError
            If the weights take more than 2 GB, which an ONNX file cannot hold.
        RuntimeError
            If the graph gives other scores than the detector.
        OSError
            If the file cannot be written; an old file is as it was.

        Notes
        -----
        The file's metadata holds the versions that made it, the threshold ("offset"), the names of the
        features, and of mixed tables the likelihood and the categories of each column, as JSON.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> import onnxruntime
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> detector = VAEDetector(epochs=5, random_state=0).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.to_onnx(os.path.join(folder, "detector.onnx"))
        ...     session = onnxruntime.InferenceSession(os.path.join(folder, "detector.onnx"))
        >>> rows = np.array([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])
        >>> session.run(["label"], {"X": rows})[0].tolist()
        [1, -1]
        """
        check_is_fitted(self)
        from vae_anomaly.export import onnx_model

        onnx_model.write(path, self)

    def onnx_parser(self) -> Callable[..., list[Any]]:
        r"""What skl2onnx asks a step for: with it, whole pipelines that end in a detector become ONNX graphs.

        ``skl2onnx.to_onnx(pipeline, X[:1])`` and ``skl2onnx.convert_sklearn`` call it; nothing has to be
        registered. Outputs are those of skl2onnx's outlier detectors, each of shape (n_rows, 1): ``label``,
        int64, -1 for anomalies and +1 for the others; ``scores``, the `decision_function`; and with
        ``options={id(detector): {"score_samples": True}}`` also ``score_samples``. Scores are float64 if an
        input of the detector is, else float32.

        The detector itself computes what `to_onnx` writes, in the same precision: its inputs become float64,
        its scores differ by at most :math:`10^{-4} (1 + |s|)` from those of the same inputs, and a label is
        -1 from that far below the threshold. The steps before it are skl2onnx's; they compute in the type of
        the pipeline's input. Rows that one of them refuses in Python, such as infinite values, come out of
        the graph as ONNX's operators compute them.

        A detector alone takes one input, or one for each column, which are found by the columns' names or
        else by their order: texts where a column's categories are texts, any numbers for the others. Images
        of uint8 are divided by 255 in the graph. A `ColumnTransformer` passes one table of one type, so that
        a detector of a mixed table with texts cannot follow it: encode the texts there.

        Returns
        -------
        callable
            A function of skl2onnx's ``scope`` and ``inputs`` to a list of its variables.

        Raises
        ------
        NotFittedError
            Before `fit`.

        See Also
        --------
        to_onnx : A detector alone; says which errors a conversion raises, as this one does too.

        Notes
        -----
        ``target_opset`` is 18 to 22, or what skl2onnx's release takes at most; a ValueError refuses less. The
        graph has no metadata of the detector.

        Examples
        --------
        >>> import numpy as np
        >>> import onnxruntime, skl2onnx
        >>> from sklearn.decomposition import PCA
        >>> from sklearn.pipeline import make_pipeline
        >>> from vae_anomaly import VAEDetector
        >>> X = np.random.RandomState(0).normal(size=(200, 3))
        >>> pipeline = make_pipeline(PCA(2), VAEDetector(epochs=5, random_state=0)).fit(X)
        >>> graph = skl2onnx.to_onnx(pipeline, X[:1])
        >>> session = onnxruntime.InferenceSession(graph.SerializeToString())
        >>> rows = np.array([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])
        >>> session.run(["label"], {"X": rows})[0].ravel().tolist()
        [1, -1]
        """
        from vae_anomaly.export import sklearn_onnx

        return sklearn_onnx.parser(self)

    # -- the door -------------------------------------------------------------------------------------
    @property
    def _fitted(self) -> Fitted:
        return attributes.fitted_of(self)

    def _html_repr(self) -> str:
        return model_card.html(self)

    @property
    def _shape_of_images(self) -> Shape | None:
        return self.image_shape_ or self.members_[0].specification.network.shape_of_images(None)

    def _validate(self, X: MatrixLike) -> Matrix:
        check_is_fitted(self)
        rows, _, dtype = read(self, X, reset=False, shape_of_images=self._shape_of_images)
        return self._fitted.preparation.in_units(rows, dtype, self.members_[0].specification.likelihood)

    def _stream(self, X: MatrixLike) -> Matrix | Stream:
        """The same, of rows that need not be in memory."""
        check_is_fitted(self)
        return read_stream(X, self._validate, self.n_features_in_)
