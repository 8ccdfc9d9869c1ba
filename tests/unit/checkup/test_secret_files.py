"""Files that others can read or change are found; what is in them is not told."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgeproxy.checkup.findings import Finding, Level
from edgeproxy.checkup.secret_files import modes, provider_secrets
from edgeproxy.config import Model, Provider, Secrets, Settings, Stores


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything that can hold a secret, and all of it private."""
    own = tmp_path / "data" / "secrets"
    own.mkdir(parents=True)
    own.chmod(0o700)
    paths = [tmp_path / "pepper", tmp_path / "previous", tmp_path / "provider", own / "redis_password"]
    for path in paths:
        path.write_text("Zq7")
        path.chmod(0o600)
    return Settings(
        data_dir=tmp_path / "data",
        secrets=Secrets(str(paths[0]), str(paths[1])),
        provider=(Provider("p", base_url="https://p.example", secret_file=str(paths[2])),),
        model=(Model("*", "p"),),
    )


def found(settings: Settings, configuration: Path | None = None) -> list[Finding]:
    findings = list(modes(settings, configuration))
    assert not [finding for finding in findings if "Zq7" in finding.found + finding.remedy]
    return findings


def test_private_files_are_well(settings: Settings):
    (finding,) = found(settings)
    assert (finding.level, finding.found) == (Level.OK, "5 looked at, none is open to others")


@pytest.mark.parametrize("name", ["pepper", "previous", "provider", "data/secrets/redis_password"])
@pytest.mark.parametrize(("mode", "level"), [(0o604, Level.ERROR), (0o602, Level.ERROR), (0o640, Level.WARNING)])
def test_a_file_that_is_open_to_others_is_told_with_its_remedy(
    settings: Settings, tmp_path: Path, name: str, mode: int, level: Level
):
    (tmp_path / name).chmod(mode)
    (finding,) = found(settings)
    assert finding.level is level
    assert f"(mode {mode:o})" in finding.found
    assert finding.remedy == f"chmod 600 '{tmp_path / name}'"


def test_a_folder_of_secrets_that_is_open_is_told(settings: Settings, tmp_path: Path):
    (tmp_path / "data" / "secrets").chmod(0o755)
    (finding,) = found(settings)
    assert (finding.level, finding.remedy[:9]) == (Level.ERROR, "chmod 700")


def test_a_file_that_is_not_there_is_told(settings: Settings, tmp_path: Path):
    (tmp_path / "pepper").unlink()
    (finding,) = found(settings)
    assert (finding.level, "No such file" in finding.found) == (Level.ERROR, True)


def test_a_configuration_counts_when_it_holds_a_password(settings: Settings, tmp_path: Path):
    path = tmp_path / "edgeproxy.toml"
    path.write_text('redis = "redis://u:Zq7-password@h"')
    path.chmod(0o644)
    assert [finding.level for finding in found(settings, path)] == [Level.OK]
    named = replace(settings, stores=Stores("redis://u:Zq7-password@h", "postgresql://h"))
    (finding,) = found(named, path)
    assert (finding.level, str(path) in finding.found) == (Level.ERROR, True)
    from_environment = replace(settings, stores=Stores(postgres="postgresql://u:another@h"))
    assert [finding.level for finding in found(from_environment, path)] == [Level.OK]


def test_a_file_of_another_user_is_told_except_to_root(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    stranger = os.geteuid() + 4711
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    own_all = [finding.level for finding in found(settings)]
    # What belongs to root is no stranger's; where the tests run as root, all of it does.
    assert own_all == ([Level.OK] if Path(settings.secrets.pepper_file).stat().st_uid == 0 else [Level.WARNING] * 5)
    if os.getuid() == 0:
        os.chown(settings.secrets.pepper_file, stranger + 1, -1)
        assert [finding.level for finding in found(settings)] == [Level.WARNING]
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert [finding.level for finding in found(settings)] == [Level.OK]


def test_a_provider_that_is_used_needs_its_secret(settings: Settings, tmp_path: Path):
    assert [finding.level for finding in provider_secrets(settings, {})] == [Level.OK]
    (tmp_path / "provider").write_text("")
    (finding,) = provider_secrets(settings, {})
    assert (finding.level, finding.remedy) == (Level.ERROR, "set it")
    assert list(provider_secrets(replace(settings, model=()), {})) == []
    by_name = replace(settings, provider=(Provider("p", base_url="https://p.example", secret_env="NAME"),))
    for environ, level in (({}, Level.ERROR), ({"NAME": "Zq7"}, Level.OK)):
        (finding,) = provider_secrets(by_name, environ)
        assert (finding.level, "Zq7" in finding.found) == (level, False)
