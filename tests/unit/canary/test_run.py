import os
import time
from pathlib import Path

import pytest

from edgeproxy.canary import decoys, run
from edgeproxy.canary.markers import Kind, Markers
from edgeproxy.canary.places import Search
from edgeproxy.canary.requests import Models
from edgeproxy.canary.run import Deployment, run_against
from edgeproxy.config import Provider, Secrets, Settings
from edgeproxy.domain.keys import issue_secret
from edgeproxy.errors import OperatorError

KEY = issue_secret("ep-", bytes(range(32)))
MODELS = Models("canary", "canary", "canary")


def test_the_part_of_a_key_that_may_be_shown_is_not_looked_for():
    marker, text = run._key(KEY, 1)
    assert KEY.encode().endswith(text)
    assert len(text) == len(KEY) - len("ep-") - 8
    search = Search(Markers(), [(marker, text)])
    search.text("places", "shown", KEY[: len("ep-") + 8].encode())
    assert search.leaks() == []
    search.text("places", "whole", KEY.encode())
    assert [find.place for find in search.leaks()] == ["whole"]


def test_secrets_of_the_settings_are_looked_for_outside_of_their_files(tmp_path: Path, monkeypatch):
    for name, text in (("pepper", "ab" * 32), ("provider", "sk-0123456789abcdef")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("SHORT_SECRET", "any")
    settings = Settings(
        secrets=Secrets(pepper_file=str(tmp_path / "pepper")),
        provider=(
            Provider(name="a", secret_file=str(tmp_path / "provider")),
            Provider(name="b", secret_env="SHORT_SECRET"),
        ),
    )
    secrets = run._secrets_of(settings)
    assert {marker.name for marker, _ in secrets} == {"pepper", "secret at a"}
    (tmp_path / "log").write_bytes(b"x" + bytes.fromhex("ab" * 32) + b" sk-0123456789abcdef " + b"AB" * 32)
    search = Search(Markers(), secrets)
    search.folder("files", tmp_path)
    assert {(Path(find.place).name, find.marker.name) for find in search.leaks() if find.marker} == {
        ("log", "pepper"),
        ("log", "secret at a"),
    }
    assert {Path(find.place).name for find in search.finds if find.is_at_home} == {"pepper", "provider"}


def test_a_decoy_or_a_secret_that_is_nowhere_is_missed(tmp_path: Path):
    markers = Markers()
    names = decoys.write(tmp_path, markers)
    markers.secret("pepper", ("secrets/",))
    search = Search(markers)
    search.folder(decoys.AREA, tmp_path)
    missed = run._missed(search, names, markers)
    assert "pepper, where it lives" in missed
    assert len(missed) == 5, "four decoys of the stores"
    next(iter(tmp_path.iterdir())).unlink()
    search = Search(markers)
    search.folder(decoys.AREA, tmp_path)
    assert len(run._missed(search, names, markers)) == 6


def test_the_folders_of_the_machine_are_searched_for_what_is_new(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "_SYSTEM_FOLDERS", ())
    monkeypatch.setattr(run, "gettempdir", lambda: str(tmp_path))
    markers = Markers()
    for name in ("new", "old", "skipped/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(markers.content(name))
    os.utime(tmp_path / "old", (0, 0))
    search = Search(markers)
    run._search_system_folders(search, time.time() - 100, tmp_path / "skipped")
    assert [find.marker.name for find in search.leaks() if find.marker] == ["new"]


async def test_nobody_who_answers_is_an_error():
    deployment = Deployment({"api": "http://127.0.0.1:9"}, KEY, MODELS, (), None)
    with pytest.raises(OperatorError, match="nobody answers"):
        await run_against(deployment, float("inf"))


def test_a_report_counts_what_was_planted():
    markers = Markers()
    markers.content("a")
    markers.decoy("b")
    search = Search(markers, [run._key(KEY, 1)])
    told = run._report(search, markers, time.monotonic(), ["x"], run.Sending({}), None, [])
    assert (told.planted, told.decoys, told.secrets) == (1, 1, 1)
    assert markers.count(Kind.SECRET) == 0
