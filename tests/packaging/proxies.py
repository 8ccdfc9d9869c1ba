"""What is wrong with the example of a proxy: what has to stand there, and what must not, comments left out."""

import re
from collections.abc import Iterator, Mapping

NGINX_WANTED = {
    r"proxy_buffering off;": "an event of a stream has to leave when it comes",
    r"proxy_request_buffering off;": "an upload has to leave when it comes",
    r"proxy_http_version 1\.1;": "connections to the gateway are kept",
    r'proxy_set_header Connection "";': "connections to the gateway are kept",
    r"keepalive \d+;": "connections to the gateway are kept",
    r"gzip off;": "compression waits for more than there is",
    r"proxy_set_header X-Forwarded-For \$remote_addr;": "set, not appended to what the client claims",
    r"proxy_set_header X-Forwarded-Proto \$scheme;": "set, not appended to what the client claims",
    r"error_log /dev/null emerg;": "every message of nginx on a request quotes its line, the query included",
    r"ssl_protocols TLSv1\.2 TLSv1\.3;": "older ones are broken",
    r"proxy_next_upstream error;": "a request that was sent is never sent again",
}
NGINX_FORBIDDEN = {
    r"\$(request|request_uri|args|query_string|uri|document_uri|arg_\w+)\b": "holds what the client asked for",
    r"\$http_\w+|\$cookie_\w+": "holds a header of the client",
    r"\$proxy_add_x_forwarded_for": "believes the client",
    r"non_idempotent": "sends a request twice",
    r"listen (\S*:)?80\b": "a key goes over the network in clear",
    r"ssl_session_tickets on|TLSv1;|SSLv": "is not safe",
}
NGINX_LOGGED_ADDRESS = re.compile(r"log_format[^;]*\$(remote_addr|binary_remote_addr|remote_user)", re.DOTALL)

HAPROXY_WANTED = {
    r"option http-no-delay": "an event of a stream has to leave when it comes",
    r"http-request set-header X-Forwarded-For %\[src\]": "set, not appended to what the client claims",
    r"http-request set-header X-Forwarded-Proto https": "set, not appended to what the client claims",
    r"option httpchk GET /readyz": "a gateway that drains or cannot admit gets no request",
    r"http-check expect status 200": "a gateway that drains or cannot admit gets no request",
    r"retry-on conn-failure": "a request that was sent is never sent again",
    r"ssl-min-ver TLSv1\.2": "older ones are broken",
    r"log-format ": "the usual one holds the request's line",
    r"error-log-format ": "the usual one names the client",
    r"timeout http-request ": "headers that never end hold a connection",
}
HAPROXY_FORBIDDEN = {
    r"option http-buffer-request": "waits for the whole body",
    r"compression ": "waits for more than there is",
    r"option (httplog|httpslog|tcplog|forwardfor)": "logs what the client asked for, or believes it",
    r"%(\[?r\b|HU|HQ|HP|HPO|ci\b|hr|hs)|%r\b": "logs what the client asked for, or who it is",
    r"capture request|req\.hdr": "logs a header of the client",
    r"stats socket": "shows requests that could not be parsed",
    r"all-retryable-errors|response-timeout|empty-response": "sends a request twice",
    r"bind \S*:80\b": "a key goes over the network in clear",
}


def wrong(text: str, wanted: Mapping[str, str], forbidden: Mapping[str, str]) -> Iterator[str]:
    said = without_comments(text)
    for pattern, why in wanted.items():
        if not re.search(pattern, said):
            yield f"there is no {pattern}: {why}"
    for pattern, why in forbidden.items():
        if match := re.search(pattern, said):
            yield f"{match[0]}: {why}"


def nginx(text: str) -> Iterator[str]:
    yield from wrong(text, NGINX_WANTED, NGINX_FORBIDDEN)
    if match := NGINX_LOGGED_ADDRESS.search(without_comments(text)):
        yield f"{match[1]}: an address is a person"


def haproxy(text: str) -> Iterator[str]:
    yield from wrong(text, HAPROXY_WANTED, HAPROXY_FORBIDDEN)


def without_comments(text: str) -> str:
    return re.sub(r"(^|\s)#.*", "", text)


def number(text: str, pattern: str) -> int:
    """The number that a directive has; `m` is mebibytes, `k` kibibytes, `s` seconds."""
    found = re.search(pattern + r"(\d+)([mks]?)\b", without_comments(text))
    assert found, pattern
    return int(found[1]) * {"m": 2**20, "k": 2**10}.get(found[2], 1)
