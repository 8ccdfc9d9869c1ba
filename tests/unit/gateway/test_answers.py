"""What the beginning of an answer looks like on the wire; what follows it is for `test_server.py`."""

from edgeproxy.gateway.answers import encode_head


def test_a_head_is_one_block_of_lines() -> None:
    head = encode_head(429, [("a", "b"), ("c", "d")], keep_alive=False)
    assert head == b"HTTP/1.1 429 Too Many Requests\r\na: b\r\nc: d\r\nconnection: close\r\n\r\n"
    assert encode_head(599, [], keep_alive=True) == b"HTTP/1.1 599 \r\nconnection: keep-alive\r\n\r\n"
