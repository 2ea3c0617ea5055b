import json
import multiprocessing
from pathlib import Path

import pytest

from w2sd_video.jobs.folder import JobFolder, differences
from w2sd_video.messages import ConfigError

IDENTITY = {"settings": {"steps": 4, "strength": 1.0}, "files": {"weights": {"a": "12"}}}


def made(path, identity=IDENTITY, name="0.mp4"):
    """Return a folder with one finished file."""
    folder = JobFolder(path, identity)
    with folder.opened():
        (path / name).write_bytes(b"12345")
        folder.write_record(name, {"prompt": "a"})
    return folder


def test_a_file_is_there_when_its_record_is(tmp_path):
    folder = made(tmp_path / "job")
    assert folder.record("0.mp4") == {"prompt": "a", "job": folder.key, "bytes": 5}
    assert folder.record("1.mp4") is None


@pytest.mark.parametrize("damage", ["no file", "short file", "no record", "empty record", "cut record"])
def test_what_is_not_whole_is_not_there(damage, tmp_path):
    folder = made(tmp_path / "job")
    file, record = tmp_path / "job" / "0.mp4", tmp_path / "job" / "0.mp4.json"
    text = record.read_text()
    {
        "no file": file.unlink,
        "short file": lambda: file.write_bytes(b"123"),
        "no record": record.unlink,
        "empty record": lambda: record.write_text(""),
        "cut record": lambda: record.write_text(text[: len(text) // 2]),
    }[damage]()
    with folder.opened():
        assert folder.record("0.mp4") is None


def test_other_settings_are_refused_and_named(tmp_path):
    made(tmp_path / "job")
    other = {"settings": {"steps": 4, "strength": 0.5}, "files": {"weights": {"a": "13", "b": "1"}}}
    with pytest.raises(ConfigError) as error, JobFolder(tmp_path / "job", other).opened():
        pass
    for change in ("settings.strength 1.0, now 0.5", 'files.weights.a "12", now "13"', 'files.weights.b null, now "1"'):
        assert change in str(error.value)
    assert "steps" not in str(error.value)
    assert json.loads((tmp_path / "job" / "job.json").read_text()) == IDENTITY


def test_a_folder_in_which_nothing_was_made_can_have_other_settings(tmp_path):
    with JobFolder(tmp_path / "job", IDENTITY).opened():
        pass
    with JobFolder(tmp_path / "job", {"settings": {}}).opened():
        pass
    assert json.loads((tmp_path / "job" / "job.json").read_text()) == {"settings": {}}


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_identity_is_told_by_the_records(damage, tmp_path):
    made(tmp_path / "job")
    (tmp_path / "job" / "job.json").write_text(damage)
    with pytest.raises(ConfigError, match="damaged"), JobFolder(tmp_path / "job", {"settings": {}}).opened():
        pass
    with JobFolder(tmp_path / "job", IDENTITY).opened():
        pass
    assert json.loads((tmp_path / "job" / "job.json").read_text()) == IDENTITY


def test_a_file_of_another_job_is_not_overwritten(tmp_path):
    folder = made(tmp_path / "job")
    made(tmp_path / "other", {"settings": {}}, "1.mp4")
    for name in ("1.mp4", "1.mp4.json"):
        (tmp_path / "other" / name).rename(tmp_path / "job" / name)
    with pytest.raises(ConfigError, match="otherwise"):
        folder.record("1.mp4")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\)"), JobFolder(tmp_path, {}).opened():
        pass
    with pytest.raises(ConfigError, match="is a file"), JobFolder(tmp_path / "thesis.tex", {}).opened():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("first", "second", "is_refused"),
    [
        ((0, 1), (0, 1), True),
        ((0, 2), (1, 2), False),
        ((0, 2), (0, 2), True),
        ((0, 1), (1, 2), True),
        ((2, 3), (0, 1), True),
    ],
)
def test_two_jobs_do_not_share_a_folder_unless_they_are_shards_of_one(first, second, is_refused, tmp_path):
    with JobFolder(tmp_path / "job", IDENTITY).opened(*first):
        pool = multiprocessing.get_context("spawn").Pool(1)  # a lock is of a process
        with pool:
            assert pool.apply(_is_refused, (tmp_path / "job", second)) == is_refused
    with JobFolder(tmp_path / "job", IDENTITY).opened(*second):
        pass


def _is_refused(path, shard):
    try:
        with JobFolder(Path(path), IDENTITY).opened(*shard):
            return False
    except ConfigError as error:
        assert "at work in it" in str(error)
        return True


def test_a_failure_is_noted_until_the_file_is_there(tmp_path):
    folder = JobFolder(tmp_path / "job", IDENTITY)
    with folder.opened():
        folder.write_failure("0.mp4", "it diverged", {"prompt": "a"})
        folder.write_failure("1.mp4", "it diverged too", {"prompt": "b"})
        assert folder.failures() == {"0.mp4": "it diverged", "1.mp4": "it diverged too"}
        for name in ("0.mp4", "1.mp4"):
            (folder.path / name).write_bytes(b"1")
            folder.write_record(name, {})
        assert folder.failures() == {} and not (folder.path / "failed").exists()


def test_leftovers_of_the_named_files_are_removed_and_no_others(tmp_path):
    folder = made(tmp_path / "job")
    for name in (".1.mp4.part-ab", ".1.mp4.json.part-cd", ".2.mp4.part-ef"):
        (folder.path / name).write_text("")
    (folder.path / ".3 .part [x].mp4.part-gh").mkdir()
    (folder.path / ".3 .part [x].mp4.part-gh" / "frame").write_text("")
    folder.remove_leftovers(["0.mp4", "1.mp4", "3 .part [x].mp4"])
    assert sorted(path.name for path in folder.path.iterdir()) == [
        ".2.mp4.part-ef",
        ".job",
        "0.mp4",
        "0.mp4.json",
        "job.json",
    ]


def test_differences_name_the_values():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == ["a.c 2, now null", "a.d null, now 3"]
    assert (
        differences({"a": "x" * 100}, {"a": 1})[0].startswith('a "xxx')
        and len(differences({"a": "x" * 100}, {})[0]) < 90
    )
