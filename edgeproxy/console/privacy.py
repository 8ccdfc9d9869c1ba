"""The privacy page, and the same for programs: made once, when settings come into force, and served to anybody.

It is text and one style sheet of its own: no script, nothing from elsewhere; its policy lets a browser load nothing.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from html import escape

import orjson

from edgeproxy.addresses import url_parts
from edgeproxy.config import Settings, allowed_features
from edgeproxy.policy.notice import Facts, Notice, Receiver, Section, make_notice
from edgeproxy.policy.profiles import load_profile

STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:1rem/1.6 system-ui,sans-serif;max-width:42rem;margin:0 auto;padding:1.5rem 1rem 4rem;"
    "overflow-wrap:anywhere}"
    "h1{line-height:1.2;margin:0}"
    "h2{font-size:1.15rem;margin:2.2rem 0 .5rem}"
    "p,ul,ol,dl{margin:.5rem 0}"
    "ul,ol{padding-left:1.3rem}"
    "li{margin:.35rem 0}"
    "dt{font-weight:600;margin-top:.8rem}"
    "dd{margin:0}"
    "time,.small{opacity:.75}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_IN_ORDER = {"flow"}  # sections whose points are steps


class PrivacyPages:
    """The page and its JSON, as the settings in force make them."""

    def __init__(self, settings: Settings) -> None:
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Make both anew. Raises OperatorError, and changes nothing then."""
        notice = make_notice(load_profile(settings.profile), facts_of(settings))
        self.page, self.json = render(notice).encode(), orjson.dumps(asdict(notice))


def facts_of(settings: Settings) -> Facts:
    """Return what of the configuration the notice has to tell."""
    used = {model.provider for model in settings.model}
    receivers = []
    for provider in settings.provider:
        if provider.name in used:
            url = url_parts(provider.base_url)
            host = url.hostname if url is not None and url.hostname else provider.base_url
            receivers.append(Receiver(provider.name, host, tuple(str(each) for each in allowed_features(provider))))
    return Facts(tuple(receivers), settings.logs.access)


def render(notice: Notice) -> str:
    """Return a notice as one page of HTML."""
    title, updated = f"Privacy at {notice.title}", escape(notice.updated)
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="small">Latest change: <time datetime="{updated}">{updated}</time></p>',
            *(part for section in notice.sections for part in _section(section)),
            "</main></body></html>\n",
        )
    )


def _section(section: Section) -> Iterator[str]:
    yield f'<section aria-labelledby="{section.id}"><h2 id="{section.id}">{escape(section.title)}</h2>'
    yield from (f"<p>{escape(text)}</p>" for text in section.text)
    if section.points:
        kind = "ol" if section.id in _IN_ORDER else "ul"
        yield f"<{kind}>{''.join(f'<li>{escape(point)}</li>' for point in section.points)}</{kind}>"
    if section.rows:
        rows = (f"<dt>{escape(row.name)}</dt><dd>{escape(row.text)}</dd>" for row in section.rows)
        yield f"<dl>{''.join(rows)}</dl>"
    yield "</section>"
