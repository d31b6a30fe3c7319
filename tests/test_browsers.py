"""What the fixture must notice before a page's silence means anything."""

from __future__ import annotations

import pytest

pytest_plugins = ["browsers"]
pytestmark = pytest.mark.browser

POLICY = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'


@pytest.fixture(name="opened")
def opened_page(tmp_path, visit):
    def written(body, **context):
        (tmp_path / "page.html").write_text(f"<html lang=en><title>t</title>{body}", encoding="utf-8")
        return visit((tmp_path / "page.html").as_uri(), **context)

    return written


def test_a_quiet_page_has_done_nothing(opened):
    seen = opened("<main><h1>quiet</h1></main>")
    assert seen.complaints == []
    assert seen.outside() == []
    assert seen.faults_of_access() == []
    assert seen.overflow() == 0


def test_exceptions_and_broken_policies_are_noticed(opened):
    assert any("oh no" in words for words in opened("<script>throw Error('oh no')</script>").complaints)
    blocked = opened(f"{POLICY}<script>document.title = 'ran'</script>")
    assert any("Content Security Policy" in words for words in blocked.complaints)
    assert blocked.page.title() == "t"


def test_requests_elsewhere_are_noticed(opened):
    assert opened("<img alt=x src='http://127.0.0.1:9/x.png'>").outside() == ["http://127.0.0.1:9/x.png"]


def test_faults_of_access_and_overflow_are_noticed(opened):
    seen = opened("<main><h1>h</h1><input><p style='width: 3000px'>wide</p></main>")
    assert [fault.partition(":")[0] for fault in seen.faults_of_access()] == ["label"]
    assert seen.overflow() > 1000
