"""What is wrong with alerts and a dashboard: metrics, labels or codes that are not there, and what is left unsaid."""

import re
from collections.abc import Iterator
from typing import Any

from edgeproxy.errors import KINDS
from edgeproxy.metrics import Metrics

SCRAPED = {"job", "instance", "role"}  # labels that Prometheus adds; `up` is its own
SELECTOR = re.compile(r"\b(edgeproxy_[a-z_]+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
ANNOTATIONS = {"summary", "remedy"}


def series() -> dict[str, set[str]]:
    """Every series that edgeproxy has, with its labels."""
    found: dict[str, set[str]] = {"up": set()}
    metrics = Metrics()
    for collector in vars(metrics).values():
        for family in collector.describe() if hasattr(collector, "describe") else ():
            labels = {*collector._labelnames}
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def wrong_expression(expression: str, known: dict[str, set[str]]) -> Iterator[str]:
    labels: set[str] = set()
    for name, selector in SELECTOR.findall(expression):
        if name not in known:
            yield f"there is no metric {name}"
            continue
        labels |= known[name]
        for label, _, value in MATCHER.findall(selector):
            if label not in known[name] | SCRAPED:
                yield f"{name} has no label {label}"
            codes = {kind.code for kind in KINDS}
            if label == "reason" and name == "edgeproxy_refusals_total" and not {*value.split("|")} <= codes:
                yield f"{value}: there is no such code"
    if not SELECTOR.search(expression):
        yield f"{expression}: looks at nothing"
    for group in GROUPING.findall(expression):
        if unknown := {word.strip() for word in group.split(",")} - labels - SCRAPED:
            yield f"{expression}: nothing there has the labels {sorted(unknown)}"


def wrong_rules(document: dict[str, Any]) -> Iterator[str]:
    known = series()
    names = []
    for group in document["groups"]:
        for rule in group["rules"]:
            names.append(name := rule["alert"])
            for message in wrong_expression(rule["expr"], known):
                yield f"{name}: {message}"
            if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
                yield f"{name}: how bad is it?"
            if {*rule.get("annotations", {})} != ANNOTATIONS or not all(rule["annotations"].values()):
                yield f"{name}: say what is the matter, and what to do"
    for name in {name for name in names if names.count(name) > 1 or not name.startswith("Edgeproxy")}:
        yield f"{name}: wants a name of its own that begins with Edgeproxy"


def wrong_dashboard(document: dict[str, Any]) -> Iterator[str]:
    known = series()
    (source,) = (each for each in document["templating"]["list"] if each["type"] == "datasource")
    ids = [panel["id"] for panel in document["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels have one id"
    for panel in document["panels"]:
        if not panel.get("title"):
            yield f"panel {panel['id']}: it has no title"
        if panel["type"] != "row":
            for message in _wrong_panel(panel, f"${{{source['name']}}}", known):
                yield f"{panel['title']}: {message}"
    if outside := re.search(r"https?://\S+", str(document)):
        yield f"{outside[0]}: a dashboard sends nobody anywhere"


def _wrong_panel(panel: dict[str, Any], source: str, known: dict[str, set[str]]) -> Iterator[str]:
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield "in which unit?"
    if panel.get("datasource", {}).get("uid") != source:
        yield "its data source is not the one that is chosen"
    if not panel.get("targets"):
        yield "it draws nothing"
    for target in panel.get("targets", ()):
        yield from wrong_expression(target["expr"], known)


def drawn(document: dict[str, Any]) -> set[str]:
    """The metrics that a dashboard looks at, whichever of their series it uses."""
    expressions = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    return {name for expression in expressions for name, _ in SELECTOR.findall(expression)}
