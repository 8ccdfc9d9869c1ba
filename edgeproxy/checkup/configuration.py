"""What is worth knowing of settings that are valid: told by `check-config` and by `doctor`."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from edgeproxy.addresses import is_loopback, split_address
from edgeproxy.checkup.findings import Finding, ok, warning
from edgeproxy.config import Model, Settings


def configured(settings: Settings) -> Iterator[Finding]:
    """Tell what the settings ask for that is hardly what was meant."""
    found = list(notes(settings))
    yield from found or [ok(f"{len(settings.provider)} providers, {len(settings.model)} rows of models")]


def notes(settings: Settings) -> Iterator[Finding]:
    """Yield warnings only."""
    if not settings.model:
        yield warning("no [[model]] is configured, so every request for a model gets 404", "add one")
    served = {model.provider for model in settings.model}
    for provider in settings.provider:
        if provider.name not in served:
            yield warning(f"no [[model]] uses provider {provider.name!r}", "remove it, or add a [[model]]")
        if provider.first_byte_timeout_ms > provider.total_timeout_ms:
            found = f"provider {provider.name!r}: first_byte_timeout_ms is longer than total_timeout_ms"
            yield warning(found, "raise total_timeout_ms, which holds in any case")
    yield from _unreachable_rows(settings)
    host, _ = split_address(settings.listen.metrics)
    if not is_loopback(host):
        yield warning(f"metrics are open to whoever reaches {host}", "keep them inside: a firewall, or 127.0.0.1")
    if settings.bounds.max_buffered_bytes < settings.bounds.max_body_bytes:
        found = "bounds.max_buffered_bytes is smaller than max_body_bytes, so the largest bodies always get 503"
        yield warning(found, "raise the one, or lower the other")


def _unreachable_rows(settings: Settings) -> Iterator[Finding]:
    """Rows of models that no request can get to, because an earlier one of the same dialect takes them all."""
    dialects = {provider.name: provider.dialect for provider in settings.provider}
    for number, model in enumerate(settings.model):
        for before in settings.model[:number]:
            if dialects[before.provider] == dialects[model.provider] and _covers(before, model):
                found = f"[[model]] {model.match!r} is never reached: {before.match!r} stands before it"
                yield warning(found, "put the narrower pattern first")
                break


def _covers(before: Model, model: Model) -> bool:
    """Whether every name that `model` matches is matched by `before`: sure for the patterns that people write."""
    if before.match == model.match:
        return True
    has_wildcard_only_at_end = not set(before.match[:-1]) & set("*?[") and before.match.endswith("*")
    return has_wildcard_only_at_end and fnmatchcase(model.match, before.match)
