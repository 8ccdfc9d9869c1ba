"""Which models there are, told from the configuration: the one question that is answered here and not by a provider.

A key sees what it may use. Nothing is reserved or recorded, since nothing is used.
"""

from edgeproxy.domain.keys import KeyRecord
from edgeproxy.errors import MODEL_NOT_FOUND, GatewayError
from edgeproxy.gateway.routes import Query, Route
from edgeproxy.gateway.upstream import Upstreams


def answer(route: Route, record: KeyRecord, upstreams: Upstreams, query: Query) -> bytes:
    """Return the list of models, or the card of the one that the path names. Raises GatewayError (404)."""
    models = [model for model in upstreams.listed(route.dialect) if record.allows(model.name)]
    if not route.model:
        return route.dialect.model_list(models, query.parameters())
    for model in models:
        if model.name == route.model:
            return route.dialect.model_card(model)
    raise GatewayError(MODEL_NOT_FOUND)
