"""The page of a chat in real Chromium."""

import pytest

from served_page import has_ended, served, until
from u2a.chat.conversation import Chat
from u2a.chat.page import chat_page
from u2a.types import UserError

pytest_plugins = ["browsers"]
pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>1</script>\u202e"


class Parrot(Chat):
    """Answers without a model: the words turned round, and something hostile."""

    names = ("original", "<b>aligned</b>")

    def ask(self, text):
        if text == "fail":
            raise UserError("a model could not answer")
        answers = {"original": text[::-1], "<b>aligned</b>": HOSTILE}
        self.turns.append({"conversation": self._conversation, "prompt": text, "answers": answers})
        return answers


@pytest.fixture
def address():
    with served(chat_page(Parrot([]))) as page:
        yield page.address


@pytest.fixture
def seen(address, visit):
    made = visit(address)
    made.page.wait_for_selector("#models p")
    yield made
    assert made.complaints == []
    assert made.outside() == []


def say(seen, text, answers):
    seen.page.fill("#text", text)
    seen.page.keyboard.press("Enter")
    until(seen.page, lambda: seen.page.locator(".answered").count() == answers)


def test_models_answer_side_by_side(seen):
    page = seen.page
    assert page.inner_text("#models") == "Answering: original, <b>aligned</b>"
    say(seen, "Tea?", 2)
    say(seen, "Two\nlines", 4)
    exchanges = page.locator("#models article")
    assert page.locator(".asked").all_inner_texts() == ["Tea?", "Two\nlines"]
    assert exchanges.nth(1).locator("h2").all_inner_texts() == ["original", "<b>aligned</b>"]
    spoken = exchanges.nth(1).locator(".answered").all_inner_texts()
    assert spoken == ["senil\nowT", HOSTILE.replace("\u202e", "\\u202e")]
    left, right = (page.locator("section").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] < right["x"]
    assert page.title() == "u2a chat"
    assert page.locator("#models img").count() == 0
    page.reload()
    until(page, lambda: page.locator(".answered").count() == 4)
    page.click("#reset")
    until(page, lambda: page.locator(".answered").count() == 0)


def test_shift_enter_begins_a_line(seen):
    seen.page.fill("#text", "one")
    seen.page.keyboard.press("Shift+Enter")
    seen.page.keyboard.type("two")
    assert seen.page.input_value("#text") == "one\ntwo"
    assert seen.page.locator(".answered").count() == 0
    seen.page.click("#send")
    seen.page.wait_for_selector(".answered")


def test_a_failure_is_said_and_the_words_stay(seen):
    seen.page.fill("#text", "fail")
    seen.page.click("#send")
    until(seen.page, lambda: seen.page.inner_text("#problem") == "a model could not answer")
    assert seen.page.input_value("#text") == "fail"
    seen.complaints.clear()  # Chromium notes the status


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(address, visit, scheme):
    seen = visit(address, color_scheme=scheme, viewport={"width": 390, "height": 800})
    seen.page.wait_for_selector("#models p")
    say(seen, "Tea?", 2)
    assert seen.faults_of_access() == []
    assert seen.overflow() <= 0
    assert seen.page.evaluate("at('models').scrollWidth <= at('models').clientWidth")
    first, second = (seen.page.locator("section").nth(i).bounding_box() for i in (0, 1))
    assert first["x"] == second["x"]
    assert first["y"] < second["y"]


def test_its_button_ends_the_server(address, visit):
    seen = visit(address)
    seen.page.click("#close")
    until(seen.page, lambda: "has ended" in seen.page.inner_text("#state"))
    until(seen.page, lambda: has_ended(address))
