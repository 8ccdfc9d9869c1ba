"""The page as a browser gets it."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from edgeproxy.config import Logs, Model, Provider, Settings
from edgeproxy.console.privacy import STYLE, PrivacyPages, facts_of
from edgeproxy.console.routes import make_app
from edgeproxy.errors import OperatorError

PROVIDER = Provider("ours", base_url="https://api.example.com/v1", secret_env="A")
SETTINGS = Settings(provider=(PROVIDER,), model=(Model("gpt-*", "ours"),))


@pytest.fixture
async def client(control, aiohttp_client):
    return await aiohttp_client(make_app(control, privacy=PrivacyPages(SETTINGS)))


class Tags(HTMLParser):
    """Which tags there are, whether each is closed, and what they name."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


async def test_it_is_a_page_that_fits_a_phone(client):
    answer = await client.get("/privacy")
    assert (answer.status, answer.content_type, answer.charset) == (200, "text/html", "utf-8")
    text = await answer.text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert 'name="viewport" content="width=device-width,initial-scale=1"' in text
    assert '<html lang="en">' in text
    assert not re.search(r"width:\s*[0-9]+px", text)
    assert "overflow-wrap:anywhere" in STYLE
    assert {"h1", "h2", "ul", "ol", "dl"} <= set(tags.seen)
    ids = re.findall(r' id="([^"]+)"', text)
    assert sorted(ids) == sorted(re.findall(r'aria-labelledby="([^"]+)"', text))


@pytest.mark.claims("OL-2b")
async def test_it_loads_nothing_and_runs_nothing(client):
    answer = await client.get("/privacy")
    text = await answer.text()
    tags = Tags()
    tags.feed(text)
    assert not {"script", "img", "link", "iframe", "form", "a"} & set(tags.seen)
    assert not {"style", "src", "href"} & set(tags.attributes)
    assert not [name for name in tags.attributes if name.startswith("on")]
    policy = answer.headers["Content-Security-Policy"]
    style = re.search("<style>(.*?)</style>", text)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_programs_get_the_same(client):
    answer = await client.get("/privacy.json")
    assert answer.content_type == "application/json"
    told = await answer.json()
    page = await (await client.get("/privacy")).text()
    assert told["updated"] in page
    assert [each["id"] for each in told["sections"]] == re.findall(r'<h2 id="([^"]+)"', page)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (replace(SETTINGS, profile="opuslive"), "Privacy at OpusLive"),
        (replace(SETTINGS, logs=Logs(access=True)), "leaves a line in the log"),
        (replace(SETTINGS, provider=(replace(PROVIDER, name="theirs"),), model=(Model("*", "theirs"),)), "<dt>theirs"),
        (replace(SETTINGS, provider=(replace(PROVIDER, base_url="https://eu.example.net"),)), "eu.example.net"),
        (replace(SETTINGS, provider=(replace(PROVIDER, unmetered=("files=0",)),)), "asked to keep"),
        (replace(SETTINGS, model=()), "No provider is configured"),
    ],
    ids=["profile", "logs.access", "provider name", "provider address", "unmetered", "model"],
)
def test_each_setting_that_matters_changes_what_is_said(changed, words):
    pages = PrivacyPages(SETTINGS)
    assert words not in pages.page.decode()
    before = pages.json
    pages.use(changed)
    assert words in pages.page.decode()
    assert pages.json != before


def test_a_profile_of_the_operators_own_is_escaped(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        """
        name = "opusmax"
        title = "A & <b>"
        contact = "<script>alert(1)</script>"
        [keep]
        keys = "life of key"
        [[history]]
        date = 2026-01-01
        what = '"><img src=x>'
        """
    )
    page = PrivacyPages(replace(SETTINGS, profile=str(path))).page.decode()
    assert "A &amp; &lt;b&gt;" in page
    assert "<script" not in page
    assert "<img" not in page


def test_a_profile_that_cannot_be_used_changes_nothing():
    pages = PrivacyPages(SETTINGS)
    before = pages.page
    with pytest.raises(OperatorError):
        pages.use(replace(SETTINGS, profile="none"))
    assert pages.page == before


def test_a_provider_that_no_model_uses_receives_nothing():
    other = replace(PROVIDER, name="idle", base_url="https://idle.example")
    assert [each.name for each in facts_of(replace(SETTINGS, provider=(PROVIDER, other))).receivers] == ["ours"]
