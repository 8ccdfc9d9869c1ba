"""What outlives a process: lines that are whole, files that nobody else takes while their process lives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.limits import MAX_AMOUNT, Amounts
from edgeproxy.domain.reservations import Outcome
from edgeproxy.gateway.journal import Journal, Settlement, decode, encode, take_over

ONE = Settlement(3, "key", "request-1", Outcome.POST, Amounts(1, 20, 30), b'{"id":"request-1"}')
TWO = Settlement(4, "provider:openai", "request-2", Outcome.CANCEL, Amounts(), b"")

SETTLEMENTS = st.builds(
    Settlement,
    st.integers(0, 63),
    st.text(max_size=40),
    st.text(max_size=40),
    st.sampled_from(Outcome),
    st.builds(Amounts, st.integers(0, 9), st.integers(0, MAX_AMOUNT // 2), st.integers(0, MAX_AMOUNT // 2)),
    st.text(max_size=60).map(str.encode),
)


@given(SETTLEMENTS)
def test_a_line_is_read_as_it_was_written(settlement: Settlement) -> None:
    line = encode(settlement)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == settlement


@given(st.binary(max_size=80))
def test_garbage_is_no_line(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a line"):
        decode(raw)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"partition":3', b'"partition":64'),
        (b'"partition":3', b'"partition":-1'),
        (b'"partition":3', b'"partition":true'),
        (b'"holder":"key"', b'"holder":7'),
        (b'"request_id":"request-1"', b'"request_id":null'),
        (b'"outcome":"post"', b'"outcome":"give"'),
        (b"[1,20,30]", b"[1,20]"),
        (b"[1,20,30]", b"[1,-20,30]"),
        (b"[1,20,30]", b'[1,"20",30]'),
        (b'"event":', b'"events":'),
    ],
)
def test_a_line_with_another_field_is_no_line(old: bytes, new: bytes) -> None:
    line = encode(ONE)
    assert old in line
    with pytest.raises(ValueError, match="not a line"):
        decode(line.replace(old, new))


def test_a_line_that_was_cut_off_takes_none_of_the_others_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encode(ONE) + encode(TWO)
    for end in range(len(encode(ONE)), len(whole)):
        (tmp_path / "gone.journal").write_bytes(whole[:end])
        (left,) = take_over(tmp_path)
        assert left.read() == ([ONE, TWO] if end == len(whole) - 1 else [ONE])  # the last line needs no end
        left.let_go()
    assert "journal_lines_unreadable" in capfd.readouterr().err


def test_no_file_is_made_before_there_is_something_to_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.clear()
    journal.close()
    assert not (tmp_path / "journal").exists()


def test_a_journal_is_for_its_own_user_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.write([ONE])
    (path,) = (tmp_path / "journal").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    journal.close()


def test_what_was_confirmed_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([ONE, TWO])
    journal.clear()
    assert journal.lines == 0
    journal.write([TWO])
    journal.clear()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_confirmed_is_there_for_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([ONE])
    journal.write([TWO])
    journal.close()
    (left,) = take_over(tmp_path)
    assert left.read() == [ONE, TWO]
    assert take_over(tmp_path) == []  # it has somebody
    left.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([ONE])
    assert take_over(tmp_path) == []
    journal.close()


def test_a_process_that_is_killed_leaves_its_lines(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from edgeproxy.gateway.journal import *;"
        " journal = Journal(Path(sys.argv[1])); journal.write([decode(sys.stdin.buffer.read())]);"
        " os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], input=encode(ONE), check=False)
    assert ended.returncode == -9
    (left,) = take_over(tmp_path)
    assert left.read() == [ONE]
    left.let_go()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert not Journal(tmp_path / "journal").write([ONE])
    assert "journal_not_written" in capfd.readouterr().err


def test_a_place_that_is_no_folder_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "journal").write_text("a file")
    assert not Journal(tmp_path / "journal").write([ONE])
    assert "journal_not_written" in capfd.readouterr().err


def test_a_link_is_not_followed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").write_bytes(encode(ONE))
    (tmp_path / "a.journal").symlink_to(tmp_path / "elsewhere")
    assert take_over(tmp_path) == []
    assert "journal_unreadable" in capfd.readouterr().err


def test_a_write_that_fails_in_the_middle_spoils_no_other_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    assert journal.write([ONE])
    write = os.write

    def full(file: int, content: bytes) -> int:
        if len(content) > 20:
            return write(file, content[:20])
        raise OSError(28, "full")

    monkeypatch.setattr(os, "write", full)
    assert not journal.write([TWO])
    monkeypatch.setattr(os, "write", write)
    assert journal.write([TWO])
    journal.close()
    (left,) = take_over(tmp_path)
    assert left.read() == [ONE, TWO]
    left.let_go()


def test_a_file_that_did_not_get_its_name_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        assert not journal.write([ONE])
    assert journal.write([TWO])
    journal.close()
    (left,) = take_over(tmp_path)
    assert left.read() == [TWO]
    left.let_go()
