"""Secrets of our own: made once, private, and refused when they are not."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeproxy.embedded.secrets import own_secret, read_pepper, read_secret
from edgeproxy.errors import OperatorError


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path):
    path = own_secret(tmp_path, "pepper")
    first = path.read_text()
    assert own_secret(tmp_path, "pepper").read_text() == first
    assert path == tmp_path / "secrets" / "pepper"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(read_pepper(path)) == 32
    assert own_secret(tmp_path, "other").read_text() != first


def test_many_first_starts_at_once_end_with_one_secret(tmp_path: Path):
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: read_secret(own_secret(tmp_path, "pepper")), range(64)))
    assert len(found) == 1
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["pepper"], "drafts are removed"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o601])
def test_a_secret_that_others_can_reach_is_refused_with_the_remedy(tmp_path: Path, mode: int):
    path = own_secret(tmp_path, "pepper")
    path.chmod(mode)
    with pytest.raises(OperatorError, match=f"chmod 600 '{path}'"):
        own_secret(tmp_path, "pepper")


def test_a_read_only_secret_is_fine(tmp_path: Path):
    path = own_secret(tmp_path, "pepper")
    path.chmod(0o400)
    assert len(read_secret(path)) == 64


@pytest.mark.parametrize("content", [b"", b"abc", b"g" * 64, b"0" * 63, b"0" * 65, b"0" * 64 + b"\n0", b"\xff" * 64])
def test_what_is_no_secret_is_refused_without_being_quoted(tmp_path: Path, content: bytes):
    path = tmp_path / "pepper"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(OperatorError, match="64 hexadecimal digits") as refused:
        read_pepper(path)
    assert "ggg" not in str(refused.value)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(OperatorError, match="cannot read the secret"):
        read_pepper(tmp_path / "nothing")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "secrets").write_text("in the way")
    with pytest.raises(OperatorError, match="cannot write"):
        own_secret(tmp_path, "pepper")


def test_surrounding_white_space_does_not_matter(tmp_path: Path):
    path = tmp_path / "pepper"
    path.write_text("  " + "0F" * 32 + "\n\n")
    os.chmod(path, 0o600)  # noqa: PTH101
    assert read_pepper(path) == b"\x0f" * 32
