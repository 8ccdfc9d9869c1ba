import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgeproxy.canary.markers import Markers
from edgeproxy.canary.places import Find, Search, descendants


@pytest.fixture
def markers() -> Markers:
    return Markers()


@pytest.fixture
def search(markers: Markers) -> Search:
    return Search(markers)


def test_files_are_searched_below_a_folder_and_told_with_their_place(tmp_path: Path, markers: Markers, search: Search):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_text(f"12345{markers.content('prompt')}")
    (tmp_path / "clean").write_text("nothing")
    search.folder("logs", tmp_path, shown="logs/")
    assert search.finds == [Find("logs", "logs/a/b/log", 5, "text", markers.planted[0])]
    assert search.leaks() == search.finds
    assert (search.areas["logs"].items, search.areas["logs"].bytes) == (2, 5 + 21 + 7)


def test_a_single_file_can_be_named(tmp_path: Path, markers: Markers, search: Search):
    (tmp_path / "log").write_text(markers.content("prompt"))
    search.folder("logs", tmp_path / "log", shown="anything")
    assert [find.place for find in search.finds] == [str(tmp_path / "log")]


def test_the_name_of_a_file_is_searched_too(tmp_path: Path, markers: Markers, search: Search):
    (tmp_path / f"{markers.content('file name')}.mp3").touch()
    search.folder("files", tmp_path)
    assert [(find.area, find.marker) for find in search.finds] == [("names of files", markers.planted[0])]


def test_links_pipes_and_what_is_left_out_are_not_read(tmp_path: Path, markers: Markers, search: Search):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log").write_text(markers.content("prompt"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out" / "log")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    os.mkfifo(tmp_path / "in" / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "in" / "socket"))
    search.folder("files", tmp_path, skip=[tmp_path / "out"])
    assert (search.finds, search.not_read) == ([], [])


def test_only_what_was_written_since_can_be_asked_for(tmp_path: Path, markers: Markers, search: Search):
    for name, age_s in (("old", 1000), ("new", 0)):
        (tmp_path / name).write_text(markers.content(name))
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    search.folder("files", tmp_path, since=time.time() - 500)
    assert [find.place for find in search.finds] == [str(tmp_path / "new")]


def test_what_is_gone_is_passed_over_and_what_cannot_be_read_is_told(tmp_path: Path, search: Search, monkeypatch):
    search.file("files", tmp_path / "gone")
    assert search.not_read == []

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "closed").touch()
    monkeypatch.setattr(os, "open", refuse)
    search.file("files", tmp_path / "closed")
    assert search.not_read == [f"{tmp_path / 'closed'}: Permission denied"]


def test_a_search_ends_when_its_time_is_over(tmp_path: Path, markers: Markers):
    (tmp_path / "log").write_text(markers.content("prompt"))
    search = Search(markers, deadline=time.monotonic() - 1)
    search.folder("files", tmp_path)
    assert search.finds == []
    assert f"{tmp_path / 'log'}: no time was left" in search.not_read


def test_a_secret_is_no_leak_where_it_lives_and_one_elsewhere(tmp_path: Path, markers: Markers, search: Search):
    secret = markers.secret("pepper", ("data/secrets/",))
    for name in ("data/secrets/pepper", "data/log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(secret)
    search.folder("files", tmp_path, shown="")
    assert [find.place for find in search.leaks()] == [str(tmp_path / "data" / "log")]


def test_a_piece_that_tells_nothing_is_a_leak_all_the_same(markers: Markers, search: Search):
    search.text("files", "a place", markers.tag[:12].encode())
    assert [(find.place, find.marker) for find in search.leaks()] == [("a place", None)]


def test_a_file_that_has_no_name_is_found_while_it_is_open(tmp_path: Path, markers: Markers, search: Search):
    with tempfile.TemporaryFile(dir=tmp_path) as unnamed, (tmp_path / "named").open("w") as named:
        for file, name in ((unnamed, "unnamed"), (named, "named")):
            text = markers.content(name)
            file.write(text if file is named else text.encode())
            file.flush()
        search.open_files("open", [os.getpid()], skip=[tmp_path])
        assert [find.marker for find in search.leaks()] == markers.planted[:1]
        search.open_files("open", [os.getpid()])
        assert markers.planted[1] in [find.marker for find in search.leaks()]
    search.open_files("open", [2**22 + 1])


def test_everything_that_a_process_started_is_known(tmp_path: Path):
    shell = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '30'])"]
    with subprocess.Popen(shell) as process:
        try:
            deadline = time.monotonic() + 20
            while not (found := descendants(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert process.pid in descendants(os.getpid())
            assert len(found) == 1
        finally:
            for pid in descendants(process.pid):
                os.kill(pid, 9)
            process.kill()
