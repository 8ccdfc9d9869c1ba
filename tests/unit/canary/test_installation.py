import asyncio
import resource
import sys
from pathlib import Path

import pytest

from edgeproxy.canary import installation
from edgeproxy.canary.installation import Installation
from edgeproxy.canary.markers import Kind, Markers
from edgeproxy.config import Stores, load, provider_secret
from edgeproxy.embedded.placement import Placement
from edgeproxy.embedded.secrets import PEPPER, read_pepper
from edgeproxy.errors import OperatorError


def test_its_configuration_is_one_and_its_secrets_are_markers():
    markers = Markers()
    with installation._folder() as folder:
        (folder / "data").mkdir()
        secret = installation._write_secrets(folder / "data", markers)
        installation._configure(folder, "http://127.0.0.1:9", secret, "opusmax")
        settings = load(folder / "work" / "edgeproxy.toml", {})
        assert {provider.dialect for provider in settings.provider} == {"openai", "anthropic", "gemini"}
        marker = markers.of(provider_secret(settings.provider[0], {}))
        assert marker is not None
        assert marker.kind is Kind.SECRET
        pepper = read_pepper(folder / "data" / "secrets" / PEPPER)
        assert markers.of(pepper.decode("latin-1")) is not None
        assert markers.count(Kind.SECRET) == 4
    assert not folder.exists()


def test_its_processes_get_none_of_our_settings_and_a_temporary_folder_of_their_own(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("EDGEPROXY_WORKERS", "9")
    environ = installation._environment(tmp_path)
    assert "EDGEPROXY_WORKERS" not in environ
    assert environ["TMPDIR"] == str(tmp_path / "temporary")


def test_core_files_are_wanted_only_for_what_is_started():
    before = resource.getrlimit(resource.RLIMIT_CORE)
    with installation._dumps_wanted():
        assert resource.getrlimit(resource.RLIMIT_CORE) == (before[1], before[1])
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


async def test_one_that_ends_at_its_start_is_told_of(tmp_path: Path, placement: Placement):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "stdout").touch()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    there = Installation(tmp_path, placement, Stores(), process)
    with pytest.raises(OperatorError, match="does not serve"):
        await asyncio.wait_for(there.until_announced(), 30)
    there.kill(0)
    there.kill(process.pid)
    assert await there.stop() == 0
