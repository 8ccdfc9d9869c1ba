"""How a finding is printed, and when embedded stores are taken to be there; the rest is shown where it is run."""

from pathlib import Path

import pytest

from edgeproxy.checkup.findings import error, ok
from edgeproxy.commands.doctor import _is_made, _line
from edgeproxy.config import Settings


def test_a_finding_is_one_line():
    assert _line("redis", ok("it\nanswers")) == "ok       redis                  it answers"
    assert _line("redis", error("it is away", "start it")) == "error    redis                  it is away; start it"


def test_stores_are_there_once_their_secrets_are(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")
    assert not _is_made(settings)
    settings.data_dir.write_text("a file")
    assert not _is_made(settings)
    settings.data_dir.unlink()
    (settings.data_dir / "secrets").mkdir(parents=True)
    assert _is_made(settings)


def test_what_cannot_be_looked_at_belongs_to_somebody(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "lstat", refuse)
    assert _is_made(Settings())
