"""Ask the gateway with a client that has an environment of its own: requests come in as JSON, what happened goes out.

It is run by that environment's Python and imports nothing of this project.
"""

import asyncio
import json
import sys
from typing import Any

MESSAGES = [{"role": "user", "content": "one two three"}]
GOOGLES_TRIES = 2  # of six by default, between which it waits for half a minute


def litellm(way: str, url: str, secret: str, model: str) -> dict[str, Any]:
    import litellm

    litellm.suppress_debug_info = True
    request: Any = {"model": model, "messages": MESSAGES, "api_base": url, "api_key": secret}
    if way == "stream":
        chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
        answer: Any = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    elif way == "async":
        answer = asyncio.run(litellm.acompletion(**request))
    else:
        answer = litellm.completion(**request)
    usage = answer.usage
    return {"text": answer.choices[0].message.content, "usage": [usage.prompt_tokens, usage.completion_tokens]}


def google(way: str, url: str, secret: str, model: str) -> dict[str, Any]:
    from langchain_google_genai import ChatGoogleGenerativeAI

    asked: Any = ChatGoogleGenerativeAI(model=model, api_key=secret, base_url=url, max_retries=GOOGLES_TRIES)
    prompt = MESSAGES[0]["content"]
    if way == "stream":
        first, *others = asked.stream(prompt)
        answer = sum(others, start=first)
    elif way == "async":
        answer = asyncio.run(asked.ainvoke(prompt))
    else:
        answer = asked.invoke(prompt)
    usage = answer.usage_metadata
    return {"text": answer.text, "usage": [usage["input_tokens"], usage["output_tokens"]]}


def outcome(client: str, *request: str) -> dict[str, Any]:
    try:
        return {"litellm": litellm, "google": google}[client](*request)
    except Exception as error:  # noqa: BLE001 - which one it is is the outcome
        return {"raised": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}


if __name__ == "__main__":
    outcomes = [outcome(*request) for request in json.load(sys.stdin)]
    sys.stdout.write("\n" + json.dumps(outcomes))
