"""HTTP server of the explorer, on this machine, for the person who started it alone.

Every address begins with a random word. Without it, or under a host name that is not ours (a page elsewhere can make
its own name point to 127.0.0.1), there is no answer but 403.

Question: how does it end? A thread that dies inside h5py keeps the lock that the end of the process waits for. Choice:
connections are shut, so that idle ones return; nothing more is read; and requests are waited for, `PATIENCE` at most.
"""

import hmac
import secrets
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from attnprobe.core.errors import AttnprobeError, InputError
from attnprobe.view import page
from attnprobe.view.answers import Answer, Answers

PATIENCE = 1.0
"""Seconds for requests in flight, at the end."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Viewer(ThreadingHTTPServer):
    """Serves answers on 127.0.0.1 while `serve_forever` runs, a thread for each connection.

    Attributes:
        url: where; it holds the random word.
    """

    def __init__(self, answers: Answers, port: int = 0) -> None:
        """`port` 0 takes any that is free.

        Raises:
            InputError: the port is taken, or not ours to take.
        """
        self.answers = answers
        self._connections: dict[threading.Thread, socket.socket] = {}
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} cannot be used: {error}. Choose another with --port.") from None
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    @property
    def busy(self) -> bool:
        """True if a request is being answered, or a connection waits for its next one."""
        return any(thread.is_alive() for thread in self._connections)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, which does not outlive the process."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections = {t: c for t, c in self._connections.items() if t.is_alive()} | {thread: request}
        thread.start()

    def server_close(self) -> None:
        """Listen no more, and wait a moment for requests in flight; `busy` if one does not come back.

        Only when `serve_forever` has ended.
        """
        super().server_close()
        self.answers.stop()
        for connection in self._connections.values():
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + PATIENCE
        for thread in filter(threading.Thread.is_alive, self._connections):
            thread.join(max(0.0, deadline - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away before its answer came is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"  # one connection for many rows
    server_version, sys_version = "attnprobe", ""
    timeout = 60

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        token, slash, what = path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if not known or not slash or self.headers.get("Host", "") not in self.server.hosts:
            return self._reply(403, Answer(b"Open the address that attnprobe view printed.", "text/plain"))
        try:
            found = self.server.answers.answer(what, dict(parse_qsl(query, max_num_fields=10)))
        except (AttnprobeError, ValueError) as error:
            return self._reply(400, Answer(str(error).encode("utf-8", "replace"), "text/plain; charset=utf-8"))
        if found is None:
            return self._reply(404, Answer(b"There is no such thing.", "text/plain"))
        return self._reply(200, found)

    def _reply(self, status: int, answer: Answer) -> None:
        self.send_response(status)
        headers = {
            **HEADERS,
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "Content-Security-Policy": f"default-src 'none'; script-src {page.script_hash()}; "
            "style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a row per key press would bury the address."""
