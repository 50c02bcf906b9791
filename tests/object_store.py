"""A real S3 server on this machine (moto's), and a proxy before it that fails, forgets or counts."""

import http.client
import http.server
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import pytest

NEEDED = ("moto", "flask", "s3fs")
KEYS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running_server():
    """The address of an S3 server without a bucket."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"an S3 server to test against needs {', '.join(missing)}: pip install 'moto[server]' s3fs")
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with suppress(OSError):
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                time.sleep(0.1)
            yield address
        finally:
            server.kill()


class Bucket:
    """A new bucket of a server, which this process and its children reach by the environment.

    Attributes:
        url: s3://NAME.
        address: of the server itself, whatever stands before it.
    """

    def __init__(self, address, monkeypatch):
        self.address, self._monkeypatch = address, monkeypatch
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        self.reach(address)
        name = f"b{secrets.token_hex(6)}"
        self.url = f"s3://{name}"
        self.raw.mkdir(name)

    @property
    def raw(self):
        """s3fs, straight to the server."""
        import s3fs

        return s3fs.S3FileSystem(
            key="somebody",
            secret="secret",
            endpoint_url=self.address,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def reach(self, address):
        """From now on the program finds its server there."""
        import s3fs

        self._monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()

    def names(self, under=""):
        """Names of all objects, relative to the bucket."""
        bucket = self.url.removeprefix("s3://")
        return sorted(name.removeprefix(f"{bucket}/") for name in self.raw.find(f"{bucket}/{under}"))

    def upload(self, folder, under):
        """The files of a folder of this machine."""
        self.raw.put(f"{folder}/", f"{self.url.removeprefix('s3://')}/{under}/", recursive=True)


@contextmanager
def proxy(bucket, *, fail_every=0, forget=(), status=0):
    """A server before the server; `log` of what it yields has (method, path, bytes of the answer) of each request.

    Args:
        fail_every: each n-th request is answered by 503, by an answer cut in its middle, or by silence, in turn.
        forget: names of request headers that are left out.
        status: answer everything with this and nothing else.
    """
    target, log, lock = re.sub("^http://", "", bucket.address), [], threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self._body()
            with lock:
                number = len(log) + 1
                log.append((self.command, self.path, 0))
            if status:
                return self._send(status, b"", {})
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {*forget, "transfer-encoding"}}
            headers["Content-Length"] = str(len(body))
            failure = number // fail_every % 3 if fail_every and number % fail_every == 0 else None
            if failure == 0:
                return self._send(503, b"<Error><Code>ServiceUnavailable</Code></Error>", {})
            if failure == 1:  # the request may have been carried out, and nobody hears of it
                self.close_connection = True
            connection = http.client.HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            log[number - 1] = (self.command, self.path, len(content))
            if failure == 1:
                return self.connection.close()
            self._send(reply.status, content, dict(reply.getheaders()), cut=failure == 2)

        def _body(self):
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _send(self, code, content, headers, cut=False):
            self.send_response_only(code)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.connection.close()
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def handle(self):
            with suppress(OSError, ValueError):  # whoever asked has gone, or the connection was closed on purpose
                super().handle()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.log = True, log
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        bucket.reach(f"http://127.0.0.1:{server.server_port}")
        yield server
    finally:
        server.shutdown()
        server.server_close()
        bucket.reach(bucket.address)


@contextmanager
def strict(bucket):
    """The server asks for credentials that it knows; it knows none."""

    def ask(count):
        request = urllib.request.Request(
            f"{bucket.address}/moto-api/reset-auth", data=count, method="POST", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request, timeout=30).close()

    ask(b"0")
    try:
        yield
    finally:
        ask(b"inf")


def environment():
    """Variables of a child process that reaches the same bucket."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
