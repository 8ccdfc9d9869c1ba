"""The dialects that there are: one line each."""

from edgeproxy.providers.anthropic import Anthropic
from edgeproxy.providers.base import Dialect
from edgeproxy.providers.gemini import Gemini
from edgeproxy.providers.openai import OpenAI

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (OpenAI(), Anthropic(), Gemini())}
