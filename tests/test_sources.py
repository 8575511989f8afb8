"""Rows outside memory: the same rows are the same fit and the same scores, bit for bit, wherever they are."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import stars, wide, write_many_rows
from scipy import sparse
from sklearn.decomposition import IncrementalPCA
from sklearn.model_selection import KFold
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, QuantileTransformer

from vae_anomaly import ConvNetwork, DenseNetwork, VAEDetector, checkpoints, load
from vae_anomaly.data.sources import memory_source, source_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ds = pytest.importorskip("pyarrow.dataset")

N_ROWS, N_DRAWN = 600, 150


def quick(**settings):
    settings = {"epochs": 2, "random_state": 0, "max_samples": N_DRAWN, **settings}
    return VAEDetector(DenseNetwork((8,)), **settings)


def make_frame(n_rows=N_ROWS, seed=0):
    rng = np.random.RandomState(seed)
    frame = pd.DataFrame(
        {
            "row": np.arange(n_rows),
            "size": rng.normal(5.0, 2.0, n_rows),
            "visits": rng.poisson(3, n_rows),
            "rooms": pd.array(rng.poisson(3, n_rows), dtype="Int64"),
            "city": pd.Categorical(rng.choice(["Bern", "Genf"], n_rows), categories=["Bern", "Genf", "Chur"]),
            "note": rng.choice(["a", "b", "c"], n_rows).astype(object),
            "member": rng.uniform(size=n_rows) > 0.5,
        }
    )
    for name in ("size", "rooms", "city", "note"):
        frame.loc[rng.choice(n_rows, n_rows // 30, replace=False), name] = None
    frame.loc[n_rows - 2, "city"] = "Chur"  # a category of one row
    return frame


def make_numbers(n_rows=N_ROWS, dtype=np.float64):
    X = np.random.RandomState(0).normal(size=(n_rows, 4)).astype(dtype)
    X[7, 2] = np.nan
    return X


def write_files(frame, folder, n_files=5, row_group_size=40, seed=0):
    """Files of any sizes, some of them empty, whose names are in the order of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.sort(np.random.RandomState(seed).randint(0, len(frame) + 1, n_files - 1)).tolist()
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(frame)], strict=True)):
        path = folder / f"part-{number:03}.parquet"
        frame.iloc[start:stop].to_parquet(path, index=False, row_group_size=row_group_size)
    return folder


def one_file(frame, folder):
    write_files(frame, folder, n_files=1)
    return str(folder / "part-000.parquet")


def to_dask(frame, folder, n_partitions=7):
    return pytest.importorskip("dask.dataframe").from_pandas(frame, npartitions=n_partitions)


TABLES = {
    "a file": one_file,
    "a folder of files": write_files,
    "a glob": lambda frame, folder: str(write_files(frame, folder) / "part-*.parquet"),
    "a dataset": lambda frame, folder: ds.dataset(write_files(frame, folder)),
    "a filtered dataset": lambda frame, folder: ds.dataset(write_files(frame, folder)).filter(
        ds.field("row") >= 0
    ),
    "a table of pyarrow": lambda frame, _: pa.Table.from_pandas(frame, preserve_index=False),
    "a table of polars": lambda frame, _: pytest.importorskip("polars").from_pandas(frame),
    "a frame of dask": to_dask,
}


def to_memmap(X, folder):
    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", X)
    return np.load(folder / "rows.npy", mmap_mode="r")


def to_h5(X, folder):
    folder.mkdir(parents=True)
    file = pytest.importorskip("h5py").File(folder / "rows.h5", "w")
    return file.create_dataset("rows", data=X, chunks=(50, *X.shape[1:]))


ARRAYS = {
    "a memmap": to_memmap,
    "a dataset of h5py": to_h5,
    "an array of dask": lambda X, _: pytest.importorskip("dask.array").from_array(X, chunks=(170, 3)),
    "a list": lambda X, _: X.tolist(),
}


def fitted_arrays(detector):
    """Everything that a fit has learned."""
    return [
        detector.draws_,
        detector.member_weights_,
        detector.missing_fraction_,
        np.array([detector.offset_, detector.n_samples_fit_, detector.n_samples_drawn_]),
        np.array(detector.history_["loss"]),
        *(state.trainable for state in detector.members_),
        *(array for state in detector.members_ for array in state.non_trainable),
    ]


def assert_same_fit(found, expected):
    for ours, theirs in zip(fitted_arrays(found), fitted_arrays(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def expected(frame):
    return {n_drawn: quick(max_samples=n_drawn).fit(frame) for n_drawn in (N_DRAWN, None)}


@pytest.mark.filterwarnings("ignore:column 'row'")
@pytest.mark.parametrize("n_drawn", [N_DRAWN, wide(None)])
@pytest.mark.parametrize(
    "make",
    stars(TABLES, ["a folder of files", "a filtered dataset", "a table of pyarrow", "a frame of dask"]),
)
def test_a_table_is_the_same_fit_and_the_same_scores(make, n_drawn, frame, expected, tmp_path):
    X, expected = make(frame, tmp_path / "rows"), expected[n_drawn]
    found = quick(max_samples=n_drawn).fit(X)
    assert_same_fit(found, expected)
    assert found.columns_ignored_ == expected.columns_ignored_ == ["row"]
    np.testing.assert_array_equal(
        found.describe_columns()["categories"], expected.describe_columns()["categories"]
    )
    np.testing.assert_array_equal(np.asarray(found.score_samples(X)), expected.score_samples(frame))


@pytest.mark.filterwarnings("ignore:column 'row'")
def test_every_method_that_says_something_of_each_row_takes_files(frame, expected, tmp_path):
    path = write_files(frame, tmp_path)
    for name in ("decision_function", "predict", "encode", "confidence", "score"):
        found, of_frame = (getattr(expected[N_DRAWN], name)(X) for X in (path, frame))
        np.testing.assert_array_equal(found, of_frame)


@pytest.mark.parametrize("n_drawn", [N_DRAWN, wide(None)])
@pytest.mark.parametrize("dtype", [np.float64, wide(np.float32), wide(np.int16), wide(np.uint8)])
@pytest.mark.parametrize("make", stars(ARRAYS, ["a memmap", "a dataset of h5py", "an array of dask"]))
def test_an_array_is_the_same_fit_and_the_same_scores(make, dtype, n_drawn, tmp_path):
    X = np.nan_to_num(make_numbers() * 50 + 100).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        X[7, 2] = np.nan
    given = make(X, tmp_path / "rows")
    expected, found = quick(max_samples=n_drawn).fit(X), quick(max_samples=n_drawn).fit(given)
    assert_same_fit(found, expected)
    np.testing.assert_array_equal(np.asarray(found.score_samples(given)), expected.score_samples(X))


@pytest.mark.parametrize("kind", ["a memmap", wide("a dataset of h5py")])
@pytest.mark.parametrize("dtype", [wide(np.float64), np.uint8])
def test_images_are_the_same_fit_and_the_same_scores(kind, dtype, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (60, 6, 6)).astype(dtype)
    given = ARRAYS[kind](images, tmp_path / "images")
    settings = {"members": 1, "max_samples": 30}
    expected, found = quick(**settings).fit(images), quick(**settings).fit(given)
    assert_same_fit(found, expected)
    assert found.image_shape_ == (6, 6)
    assert found.pixel_range_ == expected.pixel_range_
    np.testing.assert_array_equal(found.score_samples(given), expected.score_samples(images))


def test_sparse_rows_that_are_drawn_are_the_same_fit_as_their_blocks():
    X = sparse.csr_array(sparse.random(N_ROWS, 5, density=0.4, random_state=0))
    found = quick().fit(X)
    assert (found.n_samples_fit_, found.n_samples_drawn_) == (N_ROWS, N_DRAWN)
    np.testing.assert_allclose(found.scaler_.mean_, X.toarray().mean(axis=0))


# -- blocks and rows by position ------------------------------------------------------------------------
LAYOUTS = [0, 1, *(wide(seed) for seed in range(2, 40))]


@pytest.mark.parametrize("seed", LAYOUTS)
def test_blocks_and_rows_by_position_are_those_of_the_frame_however_it_lies_in_files(seed, tmp_path):
    rng = np.random.RandomState(seed)
    frame = make_frame(rng.randint(50, 200), seed)
    n_files, row_group_size = rng.randint(1, 51), rng.randint(1, 60)
    size, start = rng.randint(1, 120), rng.randint(0, len(frame))
    positions = np.sort(rng.choice(len(frame), rng.randint(1, len(frame)), replace=False))
    sources = [source_of(write_files(frame, tmp_path / "rows", n_files, row_group_size, seed))]
    if dask := pytest.importorskip("dask.dataframe"):
        sources.append(source_of(dask.from_pandas(frame, npartitions=rng.randint(1, 12), sort=False)))
    sources.append(memory_source(frame))
    for source in sources:
        assert source.n_rows == len(frame)
        blocks = list(source.blocks(size, start=start))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        for found, expected in [
            (pd.concat([block.astype(object) for block in blocks]), frame.iloc[start:]),
            (source.take(positions).astype(object), frame.iloc[positions]),
            (pd.concat(source.blocks(size, columns=["note", "size"])), frame[["note", "size"]]),
        ]:
            both = [
                table.astype(object).where(table.notna(), None).to_numpy().tolist()
                for table in (found, expected)
            ]
            assert both[0] == both[1]


@pytest.mark.parametrize("numbers_at_once", [4 * 97, wide(4 * 7), wide(4 * 599)])
def test_scores_do_not_depend_on_how_many_rows_are_read_at_once(numbers_at_once, monkeypatch, tmp_path):
    X = pd.DataFrame(make_numbers(), columns=list("abcd"))
    detector = quick().fit(X)
    expected = detector.score_samples(X)
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", numbers_at_once)
    np.testing.assert_array_equal(detector.score_samples(write_files(X, tmp_path)), expected)


def test_categories_numbers_and_names_survive_where_files_number_them_otherwise(tmp_path):
    frames = [
        pd.DataFrame({"kind": pd.Categorical(kinds), "value": values, "gap": gaps})
        for kinds, values, gaps in (
            (["a", "b", "a"], np.array([1, 2, 3], dtype=np.int32), [None, None, None]),
            (["c", "b", "c"], np.array([1.5, np.nan, 2.0]), ["x", None, "y"]),
        )
    ]
    frames[0].to_parquet(tmp_path / "1.parquet")
    frames[1][["gap", "value", "kind"]].to_parquet(tmp_path / "2.parquet")
    found = source_of(tmp_path).read()
    assert list(found.columns) == ["kind", "value", "gap"]
    assert found["kind"].tolist() == ["a", "b", "a", "c", "b", "c"]
    np.testing.assert_array_equal(found["value"], [1, 2, 3, 1.5, np.nan, 2])
    assert found["gap"].isna().tolist() == [True, True, True, False, True, False]


def test_what_pandas_keeps_of_an_index_is_no_column_and_a_folder_can_be_one(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=pd.Index([7, 9], name="key"))
    for year in (2025, 2026):
        (tmp_path / f"year={year}").mkdir()
        frame.to_parquet(tmp_path / f"year={year}" / "rows.parquet")
    found = source_of(tmp_path).read()
    assert list(found.columns) == ["a", "b", "year"]
    assert found["year"].tolist() == [2025, 2025, 2026, 2026]
    assert next(source_of(tmp_path).blocks(9, columns=["year"]))["year"].tolist() == found["year"].tolist()


# -- which rows are drawn -------------------------------------------------------------------------------
def test_up_to_max_samples_rows_are_all_used_and_are_today_s_fit():
    X = make_numbers()
    expected = quick(max_samples=None).fit(X)
    assert_same_fit(quick(max_samples=N_ROWS).fit(X), expected)
    assert quick(max_samples=N_ROWS - 1).fit(X).n_samples_drawn_ == N_ROWS - 1


def test_the_scaler_gaps_and_categories_are_those_of_all_rows(frame):
    detector = quick().fit(frame[["size", "city"]])
    assert detector.scaler_.scaler_.mean_[0] == pytest.approx(frame["size"].mean())
    np.testing.assert_allclose(detector.missing_fraction_, frame[["size", "city"]].isna().mean())
    assert [*detector.table_.columns[1].categories] == ["Bern", "Chur", "Genf"]
    card = detector.model_card()
    assert (card["data"]["rows"], card["data"]["rows_drawn"]) == (N_ROWS, N_DRAWN)


def test_of_a_scaler_that_learns_in_parts_all_rows_count_and_of_another_one_those_drawn():
    X = np.random.RandomState(0).normal(size=(N_ROWS, 2))
    in_parts = quick(scaler=MinMaxScaler()).fit(X)
    np.testing.assert_array_equal(in_parts.scaler_.data_max_, X.max(axis=0))
    at_once = quick(scaler=QuantileTransformer(n_quantiles=10)).fit(X)
    assert at_once.scaler_.quantiles_.max() <= X.max()


def test_a_scaler_that_wants_many_rows_at_a_time_gets_blocks_of_equal_size(monkeypatch):
    X = np.random.RandomState(0).normal(size=(N_ROWS + 1, 4))
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 4 * 100)  # and a rest of one row
    assert quick(scaler=IncrementalPCA(3)).fit(X).scaler_.n_samples_seen_ == N_ROWS + 1


def test_the_channels_of_signals_are_scaled_as_those_of_all(tmp_path):
    signals = np.random.RandomState(0).normal([1.0, 5.0], [1.0, 3.0], size=(60, 8, 2))
    network = ConvNetwork(filters=(4,), dimensions=1)
    detector = quick(members=1, epochs=1, max_samples=30).set_params(network=network)
    found = detector.fit(to_memmap(signals, tmp_path / "signals")).scaler_
    np.testing.assert_allclose(found.mean_, np.tile(signals.mean(axis=(0, 1)), 8))


def test_folds_are_folds_of_the_rows_drawn(tmp_path):
    X = pd.DataFrame(make_numbers(), columns=list("abcd"))
    folder = write_files(X, tmp_path)
    found = quick(calibration=KFold(2), epochs=1).fit(folder)
    assert found.calibration_scores_.shape == (N_DRAWN,)


def test_other_seeds_draw_other_rows_and_an_equal_one_the_same():
    X = make_numbers()
    first, again, other = (quick(random_state=seed, calibration=0.5).fit(X) for seed in (0, 0, 1))
    assert_same_fit(first, again)
    assert not np.isin(other.calibration_scores_, first.calibration_scores_).all()


def test_calibration_rows_do_not_reach_the_scaler():
    X = np.random.RandomState(0).normal(size=(N_ROWS, 2))
    detector = quick(calibration=0.5).fit(X)
    assert detector.scaler_.n_samples_seen_ == N_ROWS - N_DRAWN // 2


def test_groups_are_those_of_the_rows_drawn(tmp_path):
    frame = pd.DataFrame(make_numbers(), columns=list("abcd"))
    frame["site"] = np.repeat([0, 1], N_ROWS // 2)
    folder = write_files(frame, tmp_path)
    settings = {"threshold": "conformal", "calibration": 0.5, "scaler": None}
    expected = quick(**settings).fit(frame, groups="site")
    found = quick(**settings).fit(folder, groups="site")
    np.testing.assert_array_equal(found.calibration_groups_, expected.calibration_groups_)
    assert len(found.calibration_groups_) == N_DRAWN // 2
    np.testing.assert_array_equal(found.p_values(folder, "site"), expected.p_values(frame, "site"))
    with pytest.raises(ValueError, match="groups='place' names a column"):
        found.predict(folder, groups="place")


def test_a_warm_start_goes_on_with_the_rows_that_were_drawn():
    X = make_numbers()
    settings = {"random_state": None, "calibration": 0.4, "warm_start": True}
    detector = quick(**settings).fit(X)
    before = np.sort(detector.calibration_scores_)
    detector.set_params(learning_rate=1e-12).fit(X)
    np.testing.assert_allclose(np.sort(detector.calibration_scores_), before, rtol=1e-3)


def test_a_resumed_fit_goes_on_with_the_rows_that_were_drawn(tmp_path):
    X, path = make_numbers(), str(tmp_path / "fit.ckpt")
    first = quick(random_state=None, epochs=40, members=2, checkpoint=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.CheckpointFile, "remove", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            first.fit(X)
    resumed = quick(random_state=None, epochs=40, members=2, checkpoint=path).fit(X, resume=True)
    assert resumed.n_samples_drawn_ == N_DRAWN  # of other rows, the checkpoint would be refused


def test_a_line_says_how_many_rows_have_been_read(capsys, tmp_path, monkeypatch):
    folder = write_files(pd.DataFrame(make_numbers(), columns=list("abcd")), tmp_path)
    monkeypatch.setattr("vae_anomaly.core.rows._NUMBERS_AT_ONCE", 4 * 300)
    quick(verbose=1, members=1).fit(folder)
    lines = capsys.readouterr().err.split("\r")
    assert [line.split(" (")[0] for line in lines[1:]] == [f"{n} of 600 rows read" for n in (0, 300, 600)]
    quick(members=1).fit(folder)
    assert capsys.readouterr().err == ""


def test_what_was_drawn_is_kept_in_files(tmp_path):
    detector = quick().fit(make_numbers())
    detector.save(tmp_path / "model.vae")
    loaded = load(tmp_path / "model.vae")
    assert (loaded.n_samples_drawn_, loaded.max_samples) == (N_DRAWN, N_DRAWN)


def test_running_numbers_are_recognized_among_rows_that_were_drawn(frame):
    with pytest.warns(UserWarning, match="column 'row'"):
        assert quick().fit(frame[["row", "size"]]).columns_ignored_ == ["row"]


def test_what_gives_cells_back_asks_for_rows_in_memory(frame, expected, tmp_path):
    folder = write_files(frame, tmp_path)
    for given, remedy in [
        (str(folder), r"pd\.read_parquet\(path\)"),
        (ds.dataset(folder), r"X\.to_table\(\)"),
    ]:
        with pytest.raises(TypeError, match=remedy):
            expected[N_DRAWN].explain(given)


# -- errors ---------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    frame = pd.DataFrame(make_numbers(100), columns=list("abcd"))
    return write_files(frame, tmp_path / "rows", n_files=2)


@pytest.mark.parametrize("max_samples", [2, 129, None], ids=["not drawn", "drawn", "all rows"])
def test_an_infinite_value_is_named_with_its_row_and_file(folder, max_samples):
    frame = pd.DataFrame(make_numbers(30), columns=list("abcd"))
    frame.loc[29, "b"] = np.inf
    frame.to_parquet(folder / "part-002.parquet")
    place = r"row 29 of the file '.*part-002\.parquet'"
    with pytest.raises(ValueError, match=f"infinity: column 'b' holds inf in {place}"):
        quick(max_samples=max_samples).fit(folder)
    detector = quick().fit(frame.iloc[:29]).set_params(invalid="raise")
    with pytest.raises(ValueError, match=r"column 'b' holds inf in row 29 of the file '.*part-002"):
        detector.score_samples(folder)


@pytest.mark.parametrize("kind", ["a folder of files", "a table of pyarrow"])
@pytest.mark.parametrize("n_drawn", [99, None])
def test_a_value_that_is_no_number_is_named_with_its_row(kind, n_drawn, tmp_path):
    frame = pd.DataFrame({"a": [None] * 98 + ["x", "x"], "b": np.arange(100.0)})
    X = TABLES[kind](frame, tmp_path / "rows")
    detector = quick(likelihood={"a": "gaussian", "b": "gaussian"}, max_samples=n_drawn)
    with pytest.raises(ValueError, match="column 'a' holds 'x' in row 98"):
        detector.fit(X)


def test_an_impossible_value_in_rows_that_are_not_drawn_is_named(folder):
    frame = pd.DataFrame({"n": np.r_[np.random.RandomState(0).poisson(3, 99), -1]})
    with pytest.raises(ValueError, match=r"column 'n'.*-1"):
        quick(likelihood="count", max_samples=10).fit(frame)


@pytest.mark.parametrize("max_samples", [80, None], ids=["drawn", "all rows"])
@pytest.mark.parametrize("scaler", [None, FunctionTransformer()], ids=["no scaler", "a scaler"])
def test_an_impossible_value_is_named_with_its_row_and_file(scaler, max_samples, tmp_path):
    n = np.random.RandomState(0).poisson(3, 100)
    n[::5] = -1
    folder = write_files(pd.DataFrame({"n": n}), tmp_path, n_files=4)
    settings = {"scaler": scaler, "max_samples": max_samples, "threshold": "conformal", "calibration": 0.3}
    with pytest.raises(ValueError, match=r"column 'n' holds -1 in row \d+ of the file") as raised:
        quick(likelihood="count", **settings).fit(folder)
    row, path = re.search(r"row (\d+) of the file '(.*)'", str(raised.value)).groups()
    assert pd.read_parquet(path)["n"][int(row)] == -1


def test_an_impossible_value_in_memory_is_named_with_its_row_also_if_others_are_held_out():
    X = np.random.RandomState(0).poisson(3, (100, 2)).astype(float)
    X[::5, 1] = -1
    with pytest.raises(ValueError, match=r"column 1 holds -1 in row \d+") as raised:
        quick(likelihood="count", threshold="conformal", calibration=0.3).fit(X)
    assert X[int(re.search(r"in row (\d+)", str(raised.value)).group(1)), 1] == -1


BROKEN = {
    "without a column": (lambda frame: frame.drop(columns="b"), r"part-002.*without \['b'\]"),
    "with another column": (lambda frame: frame.assign(e=1.0), r"part-002.*with \['e'\]"),
    "of texts": (
        lambda frame: frame.assign(b="x"),
        r"column 'b' is of type .*string in .*part-002.*double in",
    ),
    "of booleans": (lambda frame: frame.assign(b=True), r"column 'b' is of type bool in .*part-002"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_of_other_columns_or_types_is_named(change, message, folder):
    change(pd.DataFrame(make_numbers(8), columns=list("abcd"))).to_parquet(folder / "part-002.parquet")
    with pytest.raises(ValueError, match=message):
        quick().fit(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then no more", b"PAR1" * 100], ids=len)
def test_a_file_that_cannot_be_read_is_named(folder, content):
    (folder / "part-001.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"part-001\.parquet' cannot be read as Parquet"):
        quick().fit(folder)


def test_a_file_that_is_damaged_inside_is_named(folder):
    path = folder / "part-000.parquet"
    content = bytearray(path.read_bytes())
    content[10:400] = bytes(390)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-000\.parquet' cannot be read"):
        quick().fit(folder)


@pytest.mark.parametrize("path", ["none.parquet", "none-*.parquet", "empty"])
def test_where_no_file_is_says_so(path, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=path.replace("*", r"\*")):
        quick().fit(str(tmp_path / path))


@pytest.mark.parametrize("n_rows", [0, 1])
def test_no_row_or_one_is_refused_by_fit_and_one_is_scored(n_rows, tmp_path):
    frame = pd.DataFrame(make_numbers(), columns=list("abcd"))
    path = one_file(frame.iloc[:n_rows], tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)Found array with {n_rows} sample.*of .*the file '.*part-000"):
        quick().fit(path)
    detector = quick().fit(frame)
    if n_rows:
        np.testing.assert_array_equal(detector.score_samples(path), detector.score_samples(frame.iloc[:1]))
    else:
        with pytest.raises(ValueError, match="(?s)Found array with 0 sample.*part-000.*without any row"):
            detector.score_samples(path)


def test_a_row_group_of_gaps_counts_as_gaps(tmp_path):
    frame = pd.DataFrame(make_numbers(), columns=list("abcd"))
    frame.loc[40:79, "c"] = np.nan
    found = quick().fit(one_file(frame, tmp_path))
    assert_same_fit(found, quick().fit(frame))
    assert found.missing_fraction_[2] == pytest.approx(41 / N_ROWS)


def test_without_pyarrow_the_extra_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "pyarrow.dataset", None)
    with pytest.raises(ImportError, match=r"pip install 'vae-anomaly\[parquet\]'"):
        quick().fit(folder)


PEAK = """
import resource, sys
from vae_anomaly import DenseNetwork, VAEDetector, score_dataset
detector = VAEDetector(DenseNetwork((8,)), epochs=1, max_samples=20_000, random_state=0).fit(sys.argv[1])
score_dataset(detector, sys.argv[1], sys.argv[2], rows_per_file=50_000, verbose=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
def test_ten_times_as_many_rows_take_no_more_memory(tmp_path):
    peaks = []
    for n_files in (2, 20):
        folder = write_many_rows(tmp_path / str(n_files), n_files)
        command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / f"scores-{n_files}")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] <= 1.1 * peaks[0]


@pytest.mark.wide
def test_importing_and_fitting_arrays_imports_no_dask():
    code = (
        "import sys, numpy as np; from vae_anomaly import DenseNetwork, VAEDetector\n"
        "from vae_anomaly.data.sources import source_of\n"
        "assert source_of(np.zeros((3, 2))) is None\n"
        "assert not {'dask', 'distributed', 'pyarrow.dataset', 'pyarrow.parquet'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
