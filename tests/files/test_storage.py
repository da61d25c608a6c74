"""Files that survive kills and full disks, and folders that one process holds."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from refusals import refused

from mmspec.files import storage


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    storage.atomic_write_json(path, {"ü": 1})
    assert storage.read_json_object(path) == {"ü": 1}
    with pytest.raises(OSError), storage.replacing(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() != "half"
        raise OSError(28, "No space left on device")
    assert storage.read_json_object(path) == {"ü": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with storage.replacing(tmp_path / "a", shared=True) as one:
        one.write_text("1")
        other = threading.Thread(target=storage.atomic_write_text, args=(tmp_path / "a", "2", True))
        other.start()
        other.join()
        assert (tmp_path / "a").read_text() == "2"
    assert (tmp_path / "a").read_text() == "1"


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"\xff\x00", b"[" * 100_000])
def test_what_is_no_whole_object_is_none(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    assert storage.read_json_object(tmp_path / "a") is None


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "log"
    assert storage.whole_lines(path) == []
    for content, lines in ((b"", []), (b"to", []), (b"one\n", [b"one\n"]), (b"one\n\xe2\x80", [b"one\n"])):
        path.write_bytes(content)
        assert storage.whole_lines(path) == lines
        storage.drop_torn_line(path)
        assert path.read_bytes() == b"".join(lines)


def test_a_folder_is_held_by_one(tmp_path):
    lock = storage.hold_folder(tmp_path, "choose another output folder")
    refused(lambda: storage.hold_folder(tmp_path, "choose another output folder"), "is being written by another")
    imports = "from pathlib import Path; from mmspec.files.storage import hold_folder"
    held = f"{imports}; hold_folder(Path({str(tmp_path)!r}), '')"
    assert "is being written" in subprocess.run([sys.executable, "-c", held], capture_output=True, text=True).stderr
    lock.release()
    storage.hold_folder(tmp_path, "").release()
