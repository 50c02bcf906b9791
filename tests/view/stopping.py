"""A viewer as a process, browsers that ask it without a pause, and a signal in the middle of that."""

import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

COMMAND = """
import sys
from attnprobe.cli import app as cli
from attnprobe.view import answers
answers.KEPT_BYTES = 1  # so that every question reads the file
cli.main(["view", sys.argv[1], "--no-browser"])
"""


@dataclass(frozen=True)
class Ended:
    """How a viewer ended: `answered` before the signal, `waiting` for an answer when it came."""

    code: int
    err: str
    seconds: float
    answered: int
    waiting: int


def started(maps_file, command=COMMAND, **options):
    """The process, and the address it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(maps_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"}, **options,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


class Browser(threading.Thread):
    """Asks for rows, pictures and lists over one connection until that breaks."""

    def __init__(self, url, seed, shape, pictures):
        super().__init__(daemon=True)
        self.url, self.chance, self.shape, self.pictures = urlsplit(url), random.Random(seed), shape, pictures
        self.answered, self.waiting = 0, False

    def run(self):
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=30)
        try:
            while True:
                self.waiting = True
                connection.request("GET", self.url.path + self.question())
                assert connection.getresponse().read()
                self.waiting, self.answered = False, self.answered + 1
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()

    def question(self):
        images, layers, queries = self.shape
        image, layer, query = (self.chance.randrange(n) for n in (images, layers, queries))
        kind = self.chance.random()
        if kind < 0.1 and self.pictures:
            return f"pixels?image={image}"
        return "images" if kind < 0.2 else f"row?run=0&stage=0&site=0&image={image}&layer={layer}&query={query}"


def stop_in_flight(maps_file, shape, signals, seed, *, browsers=6, pictures=False, within=60.0):
    """Start a viewer, ask it much, and send it `signals` at a random moment.

    Raises:
        subprocess.TimeoutExpired: it does not end `within` so many seconds.
    """
    chance = random.Random(seed)
    process, url = started(maps_file)
    asking = [Browser(url, 100 * seed + k, shape, pictures and k % 2 == 1) for k in range(browsers)]
    try:
        for browser in asking:
            browser.start()
        while not any(browser.answered for browser in asking):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        answered, waiting = (sum(getattr(b, name) for b in asking) for name in ("answered", "waiting"))
        sent = time.monotonic()
        for number in signals:
            process.send_signal(number)
        _, err = process.communicate(timeout=within)
        return Ended(process.returncode, err, time.monotonic() - sent, answered, waiting)
    finally:
        process.kill()
        process.communicate()
        for browser in asking:
            browser.join()


CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
