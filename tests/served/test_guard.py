"""Who is let through to a served page: the token, the host, the origin; and what browsers are told."""

import socket

import pytest

from served_page import send, served
from u2a.served.guard import HEADERS, LARGEST_BODY
from u2a.served.page import LocalPage
from u2a.types import UserError

SECRET = "walrus"


@pytest.fixture(scope="module")
def page():
    made = LocalPage("u2a.review")
    made.app.get("/data")(lambda: {"secret": SECRET})

    def change(body: dict) -> dict:
        return body

    def fail() -> None:
        raise RuntimeError(SECRET)

    made.app.post("/change", response_model=None)(change)
    made.app.get("/fail")(fail)
    with served(made):
        yield made


def test_the_page_itself_is_let_through(page):
    assert send(page, "data").json == {"secret": SECRET}
    assert send(page, "change", {"a": 1}).json == {"a": 1}
    assert "<title>u2a" in send(page, "").body
    types = {
        path: send(page, path).headers["content-type"] for path in ("", "page.js", "request.js", "page.css")
    }
    assert types == {
        "": "text/html; charset=utf-8",
        "page.js": "text/javascript; charset=utf-8",
        "request.js": "text/javascript; charset=utf-8",
        "page.css": "text/css; charset=utf-8",
    }


@pytest.mark.parametrize("root", ["/", "//", "/x/", "/%00/", "/%ff/", "", "/data/../"])
def test_a_wrong_or_missing_token_is_refused(page, root):
    for body in (None, {"a": 1}):
        reply = send(page, "data" if body is None else "change", body, root=root or "/")
        assert reply.status == 403
        assert SECRET not in reply.body
    token = page.address.split("/")[3]
    assert len(token) > 40
    for wrong in (token[:-1], token.swapcase(), f"{token}x"):
        assert send(page, "data", root=f"/{wrong}/").status == 403


def test_another_page_has_another_token(page):
    other = LocalPage("u2a.review")
    with served(other):
        assert other.address.split("/")[3] != page.address.split("/")[3]
        assert send(other, "data", root=f"/{page.address.split('/')[3]}/").status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}"]
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(page, host):
    """A browser sends the name that the page of somebody else was loaded from."""
    port = page.address.split(":")[2].split("/")[0]
    for body in (None, {"a": 1}):
        named = {"Host": host.format(port=port), "Origin": f"http://{host.format(port=port)}"}
        reply = send(page, "data" if body is None else "change", body, headers=named)
        assert reply.status == 403
        assert SECRET not in reply.body
    assert send(page, "data", headers={"Host": f"localhost:{port}"}).status == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": str(LARGEST_BODY + 1)}, 413),
    ],
)
def test_another_site_changes_nothing_even_with_the_token(page, headers, status):
    assert send(page, "change", {"a": 1}, headers=headers).status == status


def test_another_site_loads_nothing_but_a_link_leads_here(page):
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert send(page, "data", headers=image).status == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert send(page, "", headers=link).status == 200


@pytest.mark.parametrize("path", ["", "data", "nowhere", "fail", "docs", "openapi.json"])
def test_every_answer_forbids_framing_caching_and_loading(page, path):
    for root in (None, "/x/"):
        reply = send(page, path, root=root)
        assert {name: reply.headers.get(name) for name in HEADERS} == HEADERS
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "unsafe" not in policy


def test_there_is_no_description_of_the_interface(page):
    for path in ("docs", "redoc", "openapi.json"):
        assert send(page, path).status == 404


def test_a_fault_says_nothing_of_the_rows(page, logged, capfd):
    reply = send(page, "fail")
    assert reply.status == 500
    send(page, "data")  # by then it is logged
    said = logged.text + capfd.readouterr().err
    assert "RuntimeError" in said
    assert SECRET not in reply.body + said


def test_it_listens_on_loopback_alone(page):
    assert page.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken(page):
    port = int(page.address.split(":")[2].split("/")[0])
    with pytest.raises(UserError, match="--port"):
        LocalPage("u2a.review", port)


def test_a_port_of_ones_own_choice():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = LocalPage("u2a.review", port)
    assert made.address.startswith(f"http://127.0.0.1:{port}/")
    made.socket.close()


def test_its_own_button_ends_it():
    made = LocalPage("u2a.review")
    with served(made):
        assert send(made, "close").status == 405  # no link or picture can
        assert send(made, "close", {}).status == 200
    with pytest.raises(ConnectionRefusedError):
        send(made, "")
