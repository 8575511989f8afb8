"""Archives: written whole or not at all, read within the file's own size, refused in one line."""

import errno
import hashlib
import json
import os
import pickle
import resource
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from vae_anomaly import ModelFileError
from vae_anomaly.files import archive

PARTS = {"detector.json": b'{"a": 1}', "arrays/0": bytes(range(256)), "arrays/1": b""}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.vae"
    archive.write(path, {"versions": {}}, PARTS)
    return path


def contents(path):
    """Everything that can be read from an archive."""
    with archive.open_archive(path) as opened:
        found = {}
        for name in opened.names:
            found[name] = bytearray(opened.size(name))
            opened.read_into(name, memoryview(found[name]))
        return found


def message_of(path):
    """The error of a file that is refused: one line that names the file."""
    with pytest.raises(ModelFileError) as raised:
        contents(path)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(f"model file {str(path)!r} ")
    return text


def zipped(path, parts, manifest=None, compress_type=zipfile.ZIP_STORED):
    """A zip file with a manifest and right checksums, written by anybody's zip library."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in parts}
    manifest = {"format": archive.FORMAT, "format_version": 1, "sha256": sums, **(manifest or {})}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in [("manifest.json", json.dumps(manifest).encode()), *parts]:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = compress_type
            file.writestr(entry, data)
    return path


# -- whole or not at all --------------------------------------------------------------------------------
def test_parts_come_back_as_they_were(path):
    assert contents(path) == PARTS


def test_the_file_is_an_ordinary_zip_of_uncompressed_parts_with_a_checksum_for_each(path):
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.namelist() == ["manifest.json", *PARTS]
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
        manifest = json.loads(file.read("manifest.json"))
    assert manifest["format"] == "vae_anomaly model"
    assert manifest["format_version"] == 1
    assert manifest["sha256"] == {name: hashlib.sha256(data).hexdigest() for name, data in PARTS.items()}


def test_equal_parts_make_equal_files(path, tmp_path):
    archive.write(tmp_path / "again", {"versions": {}}, PARTS)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def _full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


def _read_only(*arguments, **keywords):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize(("failure", "kind"), [(_full, errno.ENOSPC), (_read_only, errno.EACCES)])
def test_a_failure_at_any_step_leaves_the_old_file_and_nothing_else(step, failure, kind, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, step, failure)
    with pytest.raises(
        OSError, match="not saved, and an earlier file is as it was. (Make room|Choose a folder)"
    ) as raised:
        archive.write(path, {}, {"arrays/0": b"new"})
    assert (raised.value.errno, raised.value.filename) == (kind, str(path))
    assert isinstance(raised.value, PermissionError) is (kind == errno.EACCES)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("n_written", [0, 1, 3])
def test_a_disk_that_fills_up_while_a_file_is_written_leaves_the_old_one(n_written, path, monkeypatch):
    before, written = path.read_bytes(), []

    def writestr(self, *arguments):
        if len(written) == n_written:
            _full()
        written.append(arguments)
        return original(self, *arguments)

    original = zipfile.ZipFile.writestr
    monkeypatch.setattr(zipfile.ZipFile, "writestr", writestr)
    with pytest.raises(OSError, match="No space left on device; the model was not saved"):
        archive.write(path, {}, PARTS)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_real_limit_on_the_size_of_files_leaves_the_old_one(path):
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(OSError, match="File too large; the model was not saved"):
            archive.write(path, {}, {"arrays/0": bytes(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_real_read_only_folder_is_told(path):
    before = path.read_bytes()
    path.parent.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="not saved.*Choose a folder that you may write to"):
            archive.write(path, {}, PARTS)
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="not saved.*Make the folder first"):
        archive.write(tmp_path / "nowhere" / "model.vae", {}, PARTS)


def test_an_interrupt_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archive.write(path, {}, PARTS)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_new_file_is_as_readable_as_any_and_an_old_one_keeps_its_mode(path, tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    path.chmod(0o640)
    archive.write(path, {}, PARTS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_one_and_its_target_is_replaced(path, tmp_path):
    link = tmp_path / "current.vae"
    link.symlink_to(path)
    archive.write(link, {}, {"arrays/0": b"new"})
    assert link.is_symlink()
    assert contents(path) == {"arrays/0": b"new"}


def test_too_many_parts_are_refused_before_anything_is_written(path):
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match=r"at most 16384 parts of together 2 GB.*joblib\.dump"):
        archive.write(path, {}, {f"arrays/{i}": b"" for i in range(2**14 + 1)})
    assert path.read_bytes() == before


@pytest.mark.parametrize("tree", ["a" * 2**22, [[]] * 2**17])
def test_json_that_could_not_be_read_again_is_not_written(tree):
    with pytest.raises(ModelFileError, match=r"cannot hold this detector.*joblib\.dump"):
        archive.to_json(tree, "its description")


# -- damaged, truncated, newer, foreign -----------------------------------------------------------------
def test_a_file_that_ends_early_is_refused_wherever_it_ends(path):
    whole = path.read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        message = message_of(path)
        assert "truncated" in message or "empty" in message or "not a model file" in message


def test_a_byte_that_changes_anything_is_noticed(path):
    whole = bytearray(path.read_bytes())
    for position in range(len(whole)):
        damaged = whole.copy()
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = contents(path)
        except ModelFileError:
            continue
        assert found == PARTS  # a date, say: nothing that is read


def test_a_damaged_part_is_named(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(bytes(range(256)), bytes(256), 1))
    assert "is damaged: its part 'arrays/0'" in message_of(path)


def test_a_part_with_the_zips_checksum_but_not_the_manifests_is_refused(tmp_path):
    path = zipped(tmp_path / "a", [("arrays/0", b"data")], {"sha256": {"arrays/0": "0" * 64}})
    assert "'arrays/0' does not have its checksum" in message_of(path)


@pytest.mark.parametrize("tail", [b"x", b"\0" * 100, b"PK\x05\x06" + bytes(18)])
def test_something_behind_the_end_is_refused(tail, path):
    path.write_bytes(path.read_bytes() + tail)
    message_of(path)


FOREIGN = {
    "pickle": (pickle.dumps({}), r"not a model file.*joblib\.load, which runs code"),
    "text": (b"hello", "not a model file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a model file"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize(("data", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_another_kind_of_file_is_told_from_a_damaged_one(data, reason, tmp_path):
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(ModelFileError, match=reason):
        contents(tmp_path / "other")


def test_a_zip_file_of_something_else_is_told_from_a_model_file(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    assert "a zip file, but not a model file" in message_of(tmp_path / "arrays.npz")
    path = zipped(tmp_path / "other", [], {"format": "sheet"})
    assert "another program's" in message_of(path)


def test_a_newer_format_asks_for_an_upgrade_whatever_else_it_holds(tmp_path):
    parts = [("weights/first.bin", b"in a form that is not known yet")]
    path = zipped(tmp_path / "newer", parts, {"format_version": 2, "sha256": "elsewhere"})
    assert "format 2, and formats up to 1 are known here. Upgrade vae-anomaly" in message_of(path)


@pytest.mark.parametrize("version", [0, -1, 1.0, "1", True, None])
def test_a_format_version_is_a_positive_integer(version, tmp_path):
    path = zipped(tmp_path / "a", [("arrays/0", b"")], {"format_version": version})
    assert "is damaged: its format version" in message_of(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        contents(tmp_path / "nowhere")
    with pytest.raises(OSError):
        contents(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in message_of(tmp_path / "pipe")


# -- crafted --------------------------------------------------------------------------------------------
NAMES = ["/etc/passwd", "../arrays/0", "arrays/../../0", "arrays\\0", "C:/arrays/0", "arrays/00", "arrays/x"]


@pytest.mark.parametrize("name", [*NAMES, "arrays/999999", "arrays/", "detector.pkl", "ärrays/0", "a/b.json"])
def test_a_part_by_any_other_name_is_refused(name, tmp_path):
    path = zipped(tmp_path / "a", [(name, b"data")])
    assert "is refused: " in message_of(path)


@pytest.mark.parametrize("name", ["manifest.json", "arrays/0"])
def test_two_parts_of_one_name_are_refused(name, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "a", [("arrays/0", b"data"), (name, b"data")])
    assert "two of its parts have the same name" in message_of(tmp_path / "a")


def peak(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    bomb = [("arrays/0", bytes(2**28))]
    path = zipped(tmp_path / "bomb", bomb, compress_type=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert peak(lambda: message_of(path)) < 2**21
    assert "'manifest.json' is compressed" in message_of(path)


def edited_directory(path, **fields):
    """Overwrite fields of the last part's entry in the zip's list of parts."""
    layout = {"crc": (16, "<L"), "compressed": (20, "<L"), "size": (24, "<L"), "offset": (42, "<L")}
    layout |= {"flags": (8, "<H"), "method": (10, "<H"), "version": (6, "<H")}
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    for field, value in fields.items():
        position, form = layout[field]
        struct.pack_into(form, data, start + position, value)
    path.write_bytes(data)
    return path


LIES = {
    "a size of 4 GB": {"size": 2**32 - 2, "compressed": 2**32 - 2},
    "a size beyond the file": {"size": 6000, "compressed": 6000},
    "a size that it is to grow to": {"size": 2**31},
    "another part's place": {"offset": 0},
    "a place beyond the file": {"offset": 2**31},
    "encryption": {"flags": 1},
    "strong encryption": {"flags": 0x40},
    "patched data": {"flags": 0x20},
    "a size that follows": {"flags": 8},
    "an unknown compression": {"method": 99},
    "bzip2": {"method": 12},
    "a future zip": {"version": 99},
}


@pytest.mark.parametrize("fields", LIES.values(), ids=LIES)
def test_a_list_of_parts_that_lies_is_refused_before_it_takes_memory(fields, tmp_path):
    path = zipped(tmp_path / "a", [("arrays/0", b"data" * 1000)])
    edited_directory(path, **fields)
    assert peak(lambda: message_of(path)) < 2**20


END = {
    "n_parts": (8, "<H"),
    "n_all": (10, "<H"),
    "size": (12, "<L"),
    "offset": (16, "<L"),
    "comment": (20, "<H"),
}
WRONG_ENDS = [("n_parts", 60_000), ("n_all", 60_000), ("size", 2**32 - 1), ("size", 0), ("offset", 2**32 - 1)]


@pytest.mark.parametrize(("field", "value"), [*WRONG_ENDS, ("offset", 0), ("comment", 1), ("comment", 65535)])
def test_an_end_that_lies_is_refused_before_it_takes_memory(field, value, path):
    data = bytearray(path.read_bytes())
    position, form = END[field]
    struct.pack_into(form, data, len(data) - 22 + position, value)
    path.write_bytes(data)
    assert peak(lambda: message_of(path)) < 2**20


def test_the_records_of_large_zips_are_refused(path):
    data = path.read_bytes()
    locator = b"PK\x06\x07" + bytes(16)
    end = bytearray(data[-22:])
    struct.pack_into("<L", end, 12, struct.unpack_from("<L", end, 12)[0] + len(locator))
    path.write_bytes(data[:-22] + locator + end)
    assert "parts of the zip format that none uses" in message_of(path)


def test_bytes_between_the_parts_are_refused(path):
    data = path.read_bytes()
    hidden = b"hidden" * 10
    end = bytearray(data[-22:])
    (start,) = struct.unpack_from("<L", end, 16)
    struct.pack_into("<L", end, 16, start + len(hidden))
    path.write_bytes(data[:start] + hidden + data[start:-22] + end)
    assert "overlap or leave gaps" in message_of(path)


def test_a_part_that_the_manifest_does_not_name_is_refused(tmp_path):
    parts = [("arrays/0", b"data"), ("arrays/1", b"more")]
    path = zipped(tmp_path / "a", parts, {"sha256": {"arrays/0": hashlib.sha256(b"data").hexdigest()}})
    assert "not those that its manifest names" in message_of(path)


@pytest.mark.parametrize("sums", [None, [], "arrays/0", {}, {"arrays/0": 3}, {"arrays/0": None}])
def test_a_manifest_without_checksums_is_refused(sums, tmp_path):
    message_of(zipped(tmp_path / "a", [("arrays/0", b"data")], {"sha256": sums}))


BAD_JSON = {
    "depth": b"[" * 100_000,
    "lists": b"[" + b"[]," * 2**18 + b"[]]",
    "length": b'"' + b"a" * 2**22 + b'"',
    "digits": b"1" * 5000,
    "NaN": b"[NaN]",
    "Infinity": b"[-Infinity]",
    "twins": b'{"a": 1, "a": 2}',
    "bytes": b"\xff\xfe",
    "end": b"[1",
    "nothing": b"",
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON)
def test_json_is_read_to_the_letter_and_within_limits(data):
    def refused():
        with pytest.raises(ModelFileError):
            archive.parse_json(data, "it")

    assert peak(refused) < 2**25


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON)
def test_a_manifest_that_is_no_such_json_is_refused(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        file.writestr(zipfile.ZipInfo("manifest.json"), data)
    message_of(tmp_path / "a")


@pytest.mark.wide
def test_the_costliest_json_within_the_limits_takes_64_megabytes():
    texts = [
        b"[" + b",".join([b"[]"] * (2**17 - 1)) + b"]",
        b"[" + b",".join([b'{"a":0}'] * (2**17 - 1)) + b"]",
        b"[" + b"9e9," * (2**20 - 1) + b"0]",
        b"[" + b"999," * (2**20 - 1) + b"0]",
        b"[" + b'"ab",' * (2**22 // 5 - 1) + b"0]",
    ]
    for text in texts:
        assert peak(lambda text=text: archive.parse_json(text[: 2**22], "it")) < 2**26


def test_an_error_of_the_reader_itself_is_told_in_one_line(path):
    with pytest.raises(ModelFileError) as raised, archive.open_archive(path):
        raise ValueError("gone\naway")
    assert str(raised.value).endswith("is not what it says it is (ValueError: gone away).")


def test_errors_of_the_system_while_reading_stay_what_they_are(path):
    for error in (OSError(errno.EIO, "Input/output error"), MemoryError()):
        with pytest.raises(type(error)), archive.open_archive(path):
            raise error
