"""Carries one answer from the provider's connection to the client's, each piece in the turn in which it came.

Nothing is collected: a piece is read by the meter, framed and written. When the client is slow, its connection says so
and the provider's is paused. When the provider breaks off, the client's connection is reset, never closed as if all had
come. When the client leaves, the answer is read to its end within bounds, or stopped: as the provider's setting says.
"""

import asyncio
import time

from edgeproxy import tasks
from edgeproxy.errors import UPSTREAM_CREDENTIALS, GatewayError
from edgeproxy.gateway.answers import encode_head
from edgeproxy.gateway.connections import Connection
from edgeproxy.gateway.metering import Meter
from edgeproxy.gateway.receiving import Body, ClientGoneError, Upload
from edgeproxy.gateway.requests import Request
from edgeproxy.gateway.settlement import CLIENT_GONE, Reservation
from edgeproxy.providers.base import Headers
from edgeproxy.providers.encoding import decoded, encoding_of

_CREDENTIAL_STATUSES = (401, 402, 403)  # these are about the operator's account at the provider, not about the client
_DOUBTFUL_STATUS = 400  # some providers answer so to a wrong secret; the body tells
_MAX_DOUBTFUL_BYTES = 64 * 1024  # errors are short
_BODILESS_STATUSES = (204, 304)


async def forward(
    connection: Connection, outgoing: bytes, relay: "Relay", request: Request, upload: Upload | None = None
) -> None:
    """Send a request and carry its answer to the client; returns when that is over, well or not.

    `upload` is what follows `outgoing`, as it comes. Raises GatewayError as long as nothing has been written to the
    client (later, the client's connection is reset), and ClientGoneError when the client left before all was sent.
    """
    client = request.protocol
    if client.transport is None:
        connection.abort()
        raise ClientGoneError
    client.relaying = relay
    try:
        connection.send(outgoing, relay, is_whole=upload is None)
        del outgoing  # a long answer need not keep its question in memory
        if client.writing_paused:  # it has not taken the answer before this one yet
            relay.client_slow()
        if upload is not None:
            await _send_rest(connection, upload, relay)
        await relay.over
    except asyncio.CancelledError:  # the gateway stops, and the time to finish is over
        relay.stop()
        client.abort()
        raise
    finally:
        client.relaying = None


async def _send_rest(connection: Connection, upload: Upload, relay: "Relay") -> None:
    """Hand on the rest of a request until all has left or the answer is over. Raises as `forward` does."""
    sending = tasks.spawn("upload", _pump(connection, upload, relay.meter), is_awaited=True)
    try:
        await asyncio.wait((sending, relay.over), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    except (GatewayError, ClientGoneError) as error:  # what there is of the request is of no use to the provider
        relay.upload_failed(error)
    finally:
        sending.cancel()


async def _pump(connection: Connection, upload: Upload, meter: Meter) -> None:
    while piece := await upload.next_piece():  # ends: the length of a body is bounded
        meter.received = None if meter.received is None else upload.body.received
        await connection.send_more(piece)
    connection.send_end(b"0\r\n\r\n" if upload.is_chunked else b"")


class Drains:
    """Counts the answers that are read on for clients that left, and keeps them few: reading on is work for nobody."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    def begin(self) -> bool:
        """Take one more, if there is room."""
        if self._open >= self._most:
            return False
        self._open += 1
        return True

    def end(self) -> None:
        """Give one back."""
        self._open -= 1


class Relay:
    """One answer on its way. It hears of both connections, and owns neither."""

    def __init__(
        self,
        request: Request,
        connection: Connection,
        reservation: Reservation,
        headers: Headers,
        held: Body,
        drains: Drains,
    ) -> None:
        self._request = request
        self._client = request.protocol
        self._held = held
        self._drains = drains
        self._connection = connection
        self._reservation = reservation
        self.meter = reservation.ticket.meter
        self._provider = reservation.ticket.target.provider
        self._headers = headers  # of ours, for the answer
        self._request_id = reservation.ticket.admission.request_id
        self._outbox: list[bytes] = []
        self._encoding = ""
        self._doubtful: list[bytes] | None = None  # the body of a 400, until it is known to be the client's
        self._is_chunked = False
        self._client_left = False
        self._drain_timer: asyncio.TimerHandle | None = None  # set while the answer is read on for a client that left
        self._drained_bytes = 0
        self.over: asyncio.Future[None] = connection.loop.create_future()
        self.keep_alive = request.keep_alive
        self.status = 0  # 0 until the head is on its way
        self.first_byte_at = 0.0

    # --- the provider's side

    def request_left(self) -> None:
        """The body is no longer in memory."""
        self._held.release()

    def answer_began(self, status: int, headers: Headers) -> None:
        """Write the head, with what of the provider's headers a client may see."""
        self.first_byte_at = time.monotonic()
        self.meter.begin(status, headers)
        if status in _CREDENTIAL_STATUSES:
            self._refuse_credentials()
            return
        if status == _DOUBTFUL_STATUS:
            self._doubtful = []
            self._encoding = encoding_of(dict(headers).get("content-encoding", ""))
        if not self._request.content.is_eof():  # what of the request was not read cannot be told from the next one
            self.keep_alive = False
        self.status = status
        passed = self.meter.dialect.incoming_headers(status, headers, self._request_id)
        passed += self._headers
        passed += self._framing(status, headers)
        self._outbox.append(encode_head(status, passed, keep_alive=self.keep_alive))

    def answer_continued(self, chunk: bytes) -> None:
        """Meter a piece, and put it in line."""
        if self._doubtful is not None:
            self._doubtful.append(chunk)
        piece = self.meter.feed(chunk)
        if piece:
            self._outbox.append(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)
        if self._drain_timer is not None:
            self._drained_bytes += len(chunk)

    def answer_paused(self) -> None:
        """Write what is in line, unless it may turn out not to be for the client."""
        if self._doubtful is not None:
            if sum(map(len, self._doubtful)) <= _MAX_DOUBTFUL_BYTES:
                return
            self._doubtful = None
        reader = self.meter.reader
        if reader is not None and reader.is_finished:  # the client may take this for the end: it is counted before
            self._reservation.resolve(self.status)
        elif self._reservation.is_bounded and self._reservation.is_overdrawn and not self._client_left:
            self._abort_client()  # the provider does not keep to its maximum
            self.stop()
            return
        outbox, transport = self._outbox, self._client.transport
        if len(outbox) == 1 and transport is not None:  # one piece came: mostly
            transport.write(outbox.pop())
        else:
            self._write()
        if self._drained_bytes > self._provider.drain_bytes:
            self.stop()

    def answer_ended(self) -> None:
        """Settle, then write the last bytes."""
        if self._doubtful is not None and self._is_about_credentials(b"".join(self._doubtful)):
            self._take_back()
            self._refuse_credentials()
            return
        piece = self.meter.end()
        if self._is_chunked:
            self._outbox.append(b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece) if piece else b"0\r\n\r\n")
        elif piece:
            self._outbox.append(piece)
        self._reservation.resolve(CLIENT_GONE if self._client_left and not self.status else self.status)
        self._write()
        self._end(None)

    def answer_failed(self, error: GatewayError) -> None:
        """Say so while that is possible; afterwards a reset connection is the only honest end."""
        if (not self.status or self._doubtful is not None) and not self._client_left:
            self._take_back()
            self._end(error)
            return
        if not self._client_left:
            self._abort_client()
        self._end(None)
        self._reservation.resolve(self.status or CLIENT_GONE)

    # --- the client's side

    def client_slow(self) -> None:
        """Let the provider wait too."""
        self._connection.pause()

    def client_ready(self) -> None:
        """Let the provider go on."""
        self._connection.resume()

    def client_lost(self) -> None:
        """Nobody listens any more: find out what it costs, or stop it."""
        if self._client_left or self.over.done():
            return
        self._client_left = True
        self._connection.resume()
        if self._provider.on_hang_up == "close" or self._reservation.charge is not None or not self._drains.begin():
            self.stop()
        else:
            self._drain_timer = asyncio.get_running_loop().call_later(self._provider.drain_ms / 1000, self.stop)

    def upload_failed(self, error: GatewayError | ClientGoneError) -> None:
        """The rest of the request will not come, or may not be sent: the provider has only a part of it."""
        self._connection.abort()
        if isinstance(error, ClientGoneError):
            self._end(None)
            self._reservation.resolve(self.status or CLIENT_GONE)
        else:
            self.answer_failed(error)

    def stop(self) -> None:
        """End the answer here, and settle what has passed."""
        self._connection.abort()
        self._end(None)
        self._reservation.resolve(self.status or CLIENT_GONE)

    # --- inside

    def _is_about_credentials(self, body: bytes) -> bool:
        return self.meter.dialect.is_credentials_error(decoded(body, self._encoding, _MAX_DOUBTFUL_BYTES))

    def _take_back(self) -> None:
        """Nothing has been written yet: what was in line is dropped."""
        self.status = 0
        self._outbox.clear()

    def _refuse_credentials(self) -> None:
        """The provider did not accept our secret: what it says of that is not for the client."""
        self._connection.abort()
        self._end(GatewayError(UPSTREAM_CREDENTIALS))

    def _framing(self, status: int, headers: Headers) -> Headers:
        """Return the headers that tell the client where the body ends; never the provider's own framing."""
        if status in _BODILESS_STATUSES:
            return []
        if not self.meter.may_change_length:
            for header in headers:
                if header[0] == "content-length":
                    return [header]
        if self._request.version >= (1, 1):
            self._is_chunked = True
            return [("transfer-encoding", "chunked")]
        self.keep_alive = False  # HTTP/1.0: the end of the connection is the end of the body
        return []

    def _write(self) -> None:
        outbox, transport = self._outbox, self._client.transport
        if outbox and transport is not None:
            transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))
        outbox.clear()

    def _abort_client(self) -> None:
        self.keep_alive = False
        self._client.abort()

    def _end(self, error: GatewayError | None) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
            self._drains.end()
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)
