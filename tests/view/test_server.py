import http.client
import json
import threading
from urllib.parse import urlencode

import numpy as np
import pytest

from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.view import answers as answers_module
from attnprobe.view.answers import Answers
from attnprobe.view.server import Viewer
from tests.view.arrays import viewed

PNG = b"\x89PNG the picture"


@pytest.fixture
def runs():
    names = [f"val/{i}" for i in range(30)]
    return [viewed("vit", images=30, effective=True, ids=names), viewed("deep", images=2, seed=1)]


@pytest.fixture
def viewer(runs):
    with Viewer(Answers(runs, lambda image_id: PNG if image_id == "val/0" else None)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def get(viewer):
    """(status, headers, body) of a path below the random word, or of any path."""

    def ask(what="", *, path=None, host=None, **query):
        connection = http.client.HTTPConnection("127.0.0.1", viewer.server_port, timeout=10)
        path = f"/{viewer.token}/{what}" + (f"?{urlencode(query)}" if query else "") if path is None else path
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", f"127.0.0.1:{viewer.server_port}" if host is None else host)
        connection.endheaders()
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        return reply.status, reply.headers, body

    return ask


PLACE = {"run": 0, "stage": 0, "site": 0, "image": 4, "layer": 2, "query": 5}


def test_a_row_is_the_stored_one_bit_for_bit(get, runs):
    status, _, body = get("row", **PLACE)
    row = np.frombuffer(body, "<f4").reshape(2, -1)
    np.testing.assert_array_equal(row, runs[0].maps.values["trunk", "weights"][4, 2, :, 5])
    _, _, body = get("row", **{**PLACE, "site": 1})
    row = np.frombuffer(body, "<f4").reshape(2, -1)
    np.testing.assert_array_equal(row, runs[0].maps.values["trunk", "effective"][4, 2, :, 5])
    assert status == 200


@pytest.mark.promise("viewer")
@pytest.mark.parametrize("path", ["/", "/x/", "/wrongword/row", "//", "/%00/", "*"])
def test_without_the_word_nothing_is_answered(get, path):
    status, _, body = get(path=path)
    assert status == 403 and b"<" not in body


@pytest.mark.promise("viewer")
def test_a_part_of_the_word_is_not_enough(get, viewer):
    assert get(path=f"/{viewer.token[:-1]}/")[0] == 403
    assert get(path=f"/{viewer.token}")[0] == 403
    assert len(viewer.token) >= 32


@pytest.mark.promise("viewer")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1", "127.0.0.1.evil.example"])
def test_other_host_names_are_refused(get, host):
    assert get(host=host)[0] == 403


@pytest.mark.promise("viewer")
def test_only_this_machine_is_listened_to(viewer):
    assert viewer.server_address[0] == "127.0.0.1" and viewer.url.startswith("http://127.0.0.1:")


def test_the_page_comes_with_a_policy_and_is_not_kept(get):
    status, headers, body = get()
    assert status == 200 and b'id="explorer"' in body and headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


def test_images_are_listed_searched_and_told(get):
    def images(**query):
        return json.loads(get("images", **query)[2])

    first = images(words="", first=0)
    assert first["total"] == 30 and [image["place"] for image in first["images"]] == list(range(12))
    assert first["images"][1]["told"][0] == {"label": "two", "prediction": "two", "probability": 0.51}
    assert first["images"][5]["told"][1] is None
    assert [image["place"] for image in images(words="", first=24)["images"]] == list(range(24, 30))
    assert [image["place"] for image in images(words="VAL/2", first=0)["images"]] == [2, *range(20, 30)]
    assert images(words="17", first=0)["images"][0]["place"] == 16  # the number, counted from 1, before the id
    assert images(words="nothing", first=0) == {"total": 0, "images": []}


@pytest.mark.promise("viewer")
def test_pictures_come_as_files_or_not_at_all(get):
    status, headers, body = get("pixels", image=0)
    assert (status, headers["Content-Type"], body) == (200, "image/png", PNG)
    assert get("pixels", image=1)[0] == 404


@pytest.mark.parametrize(
    "wrong",
    [{"layer": 4}, {"layer": -1}, {"layer": "x"}, {"query": 99}, {"image": "²"}, {"run": ""}, {"site": 2}],
)
def test_numbers_that_name_nothing_are_refused_in_words(get, wrong):
    status, headers, body = get("row", **{**PLACE, **wrong})
    assert status == 400 and b"is none of 0 to" in body and headers["Content-Type"].startswith("text/plain")


def test_an_image_that_a_run_has_not_seen_is_refused(get):
    assert get("row", **{**PLACE, "run": 1})[0] == 400
    assert get("row", **{**PLACE, "run": 1, "image": 1})[0] == 200


def test_what_is_not_there_is_404_and_damage_is_told(get, runs, monkeypatch):
    assert get("elsewhere")[0] == 404

    def damaged(*_):
        raise MapsFileError("maps.h5 is damaged")

    monkeypatch.setattr(runs[0].maps, "layer", damaged)
    status, _, body = get("row", **PLACE)
    assert status == 400 and body == b"maps.h5 is damaged"


def test_layers_are_kept_within_bounds(runs, monkeypatch):
    one_layer = runs[0].maps.layer("trunk", "weights", 0, 0).nbytes
    monkeypatch.setattr(answers_module, "KEPT_BYTES", 3 * one_layer)
    read = []
    layer = runs[0].maps.layer
    monkeypatch.setattr(runs[0].maps, "layer", lambda *place: read.append(place) or layer(*place))
    answers = Answers(runs, lambda _: None)

    def row(layer, query):
        answers.answer("row", {name: str(n) for name, n in {**PLACE, "layer": layer, "query": query}.items()})

    for number in (0, 1, 2, 0, 1, 2):
        row(number, number)
    assert len(read) == 3
    row(3, 0)
    row(2, 0)
    row(0, 0)
    assert len(read) == 5 and sum(kept.nbytes for kept in answers._layers.values()) <= 3 * one_layer


def test_nothing_to_draw_and_a_taken_port_are_errors(viewer, runs):
    with pytest.raises(InputError, match="nothing to view.*window"):
        Answers([viewed(kind="window")], lambda _: None)
    with pytest.raises(InputError, match="--port"):
        Viewer(Answers(runs, lambda _: None), viewer.server_port)


@pytest.mark.promise("viewer")
def test_at_the_end_idle_connections_are_shut_and_no_request_is_left(runs):
    server = Viewer(Answers(runs, lambda image_id: None))
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    idle = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    idle.request("GET", f"/{server.token}/images")
    assert idle.getresponse().read() and server.busy, "kept for the next question"
    server.shutdown()
    serving.join()
    server.server_close()
    assert not server.busy
    idle.close()


@pytest.mark.promise("viewer")
def test_questions_in_a_queue_are_refused_when_it_ends(runs, monkeypatch):
    asked, go_on, read = threading.Event(), threading.Event(), []

    def slow(self, *place):
        read.append(place)
        asked.set()
        go_on.wait()
        return np.zeros((2, 13, 13), np.float32)

    monkeypatch.setattr(type(runs[0].maps), "layer", slow)
    answers, said = Answers(runs, lambda image_id: None), []

    def ask(layer):
        try:
            answers.answer("row", {name: str(value) for name, value in {**PLACE, "layer": layer}.items()})
        except InputError as error:
            said.append(str(error))

    threads = [threading.Thread(target=ask, args=(layer,)) for layer in (0, 1, 2)]
    threads[0].start()
    asked.wait()
    for thread in threads[1:]:
        thread.start()
    answers.stop()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(read) == 1 and said == ["the viewer has been stopped; start it again."] * 2
