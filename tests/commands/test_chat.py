"""`u2a chat`: piped messages, typed ones, commands, side by side, the page; always the same words for all."""

import builtins
import io
import json
import sys

import pytest
import yaml
from typer.testing import CliRunner

from cases import save_tiny
from served_page import send, served
from u2a.chat.conversation import Chat
from u2a.chat.page import chat_page
from u2a.cli import app
from u2a.commands import chat as command
from u2a.commands.chat import talk
from u2a.data.render import Renderer
from u2a.evaluation.subject import Sampling, Subject
from u2a.models.policy import load_policy
from u2a.report.wording import visible
from u2a.types import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(save_tiny(folder / name, "qwen", seed=seed)) for seed, name in enumerate(("first", "second"))]


@pytest.fixture(scope="module")
def policies(folders):
    return [load_policy(folder, lora_rank=0) for folder in folders]


def chat_of(policies, temperature=0.0, seed=0):
    sampling = Sampling(6, temperature, 1, seed)
    return Chat([Subject(f"model {i}", p, Renderer(p.tokenizer), sampling) for i, p in enumerate(policies)])


def call(folders, said, *more):
    length = () if "--max-new-tokens" in more else ("--max-new-tokens", "6")
    words = ["chat", folders[1], "--original", folders[0], *length, *more]
    return CliRunner().invoke(app, words, input=said)


# -- the conversation ---------------------------------------------------------------------------------------


def test_each_model_goes_on_with_its_own_answers(policies):
    chat = chat_of(policies)
    first = chat.ask("Tea?")
    assert first["model 0"] != first["model 1"]
    chat.ask("And coffee?")
    for subject in chat.subjects:
        own = chat.turns[0]["answers"][subject.name]
        prompt = [
            {"role": "user", "content": "Tea?"},
            {"role": "assistant", "content": own},
            {"role": "user", "content": "And coffee?"},
        ]
        alone = Subject("alone", subject.policy, subject.renderer, subject.sampling)
        assert chat.turns[1]["answers"][subject.name] == alone.answers("x", [prompt])[0].text


def test_the_same_model_twice_answers_the_same_by_the_same_seed(policies):
    chat = chat_of([policies[0], policies[0]], temperature=1.5, seed=3)
    first = chat.ask("Tea?")
    assert first["model 0"] == first["model 1"]
    assert chat_of([policies[0]], 1.5, seed=3).ask("Tea?")["model 0"] == first["model 0"]
    assert chat_of([policies[0]], 1.5, seed=4).ask("Tea?")["model 0"] != first["model 0"]


def test_a_new_conversation_forgets(policies):
    chat = chat_of(policies)
    first = chat.ask("Tea?")
    second = chat.ask("Tea?")
    chat.reset()
    assert second != first
    assert chat.current == []
    assert chat.ask("Tea?") == first
    assert [turn["conversation"] for turn in chat.turns] == [0, 0, 1]


def test_a_conversation_outgrows_the_positions_of_a_model(tmp_path):
    """GPT-2's table of positions: the oldest tokens go, and an answer has room."""
    folder = str(save_tiny(tmp_path, "gpt2"))
    said = "".join(f"{i}: I think that this is a bad answer. " * 20 + "\n" for i in range(4))
    result = call([folder, folder], said)
    assert result.exit_code == 0, result.output
    assert "--max-length is 512 and not 2048" in result.stderr
    refused = call([folder, folder], said, "--max-length", "1000")
    assert refused.exit_code == 2
    assert "--max-length 1000: the model has 512 positions" in refused.stderr


@pytest.mark.parametrize("text", ["", "  \n", "\ud800"])
def test_what_cannot_be_said(policies, text):
    chat = chat_of(policies)
    with pytest.raises(UserError):
        chat.ask(text)
    assert chat.turns == []


def test_an_answer_that_was_cut_off_says_so(policies):
    assert chat_of(policies).ask("Tea?")["model 0"].endswith("[…cut after 6 tokens]")


# -- the command --------------------------------------------------------------------------------------------


def test_piped_messages(folders):
    said = "Tea?\n\n/nonsense\n/reset\n//slash\n/quit\nnever asked\n"
    result = call(folders, said)
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert "original" in shown
    assert "second" in shown
    assert [line for line in shown.splitlines() if line.startswith("> ")] == ["> Tea?", "> /slash"]
    assert shown.count("/reset begins") == 2  # at the start, and after nonsense
    assert "A new conversation." in shown
    assert "never asked" not in shown


def test_json_and_quiet(folders, policies):
    result = call(folders, "Tea?\n/reset\nTea?\nMilk?\n", "--json", "--quiet")
    found = json.loads(result.stdout)
    assert found["models"] == {"original": folders[0], "second": folders[1]}
    assert [turn["conversation"] for turn in found["turns"]] == [0, 1, 1]
    assert found["turns"][0]["answers"] == found["turns"][1]["answers"]
    assert set(found["turns"][2]["answers"]) == {"original", "second"}
    assert "> Tea?" in result.stderr
    assert "Loading" not in result.stderr
    expected = chat_of(policies)
    expected.ask("Tea?")
    assert list(found["turns"][0]["answers"].values()) == list(expected.turns[0]["answers"].values())


@pytest.mark.parametrize(
    "more", [("--temperature", "2"), ("--max-new-tokens", "3"), ("--template", "none"), ("--max-length", "4")]
)
def test_options_change_the_answers(folders, more):
    turns = [
        json.loads(call(folders, "What about some tea?\n", "--json", *words).stdout)["turns"]
        for words in ((), more)
    ]
    assert turns[0] != turns[1]


def test_the_seed_changes_sampled_answers(folders):
    given = [("--temperature", "2", "--seed", seed) for seed in ("0", "0", "1")]
    first, again, other = (
        json.loads(call(folders, "Tea?\n", "--json", *words).stdout)["turns"] for words in given
    )
    assert first == again
    assert first != other


def test_input_that_is_no_text(policies, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Tea?\n\xff\xfe\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="UTF-8"):
        talk(chat_of(policies))


class Terminal:
    """Standard input of a person who types."""

    def isatty(self):
        return True


def test_a_person_who_types(policies, monkeypatch, capsys):
    lines = iter(["Tea?", "\udc80", "stop", "/reset", "Milk?"])

    def typed(_prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    chat = chat_of(policies)
    ask = chat.ask
    monkeypatch.setattr(chat, "ask", lambda text: _interrupted() if text == "stop" else ask(text))
    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(sys, "stdin", Terminal())
    talk(chat)
    assert [turn["prompt"] for turn in chat.turns] == ["Tea?", "Milk?"]
    shown = capsys.readouterr().out
    assert "Not said: the message is not UTF-8 text" in shown
    assert "Not said: stopped" in shown
    assert "> " not in shown  # it stands there already


def _interrupted():
    raise KeyboardInterrupt


def test_hostile_answers_do_not_act_on_the_terminal(policies, monkeypatch, capsys):
    chat = chat_of(policies)
    monkeypatch.setattr(chat, "ask", lambda _: {"model 0": "\x1b]0;owned\x07[bold]x[/]", "model 1": "\u202e"})
    monkeypatch.setattr(sys, "stdin", io.StringIO("Tea?\n"))
    talk(chat)
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "[bold]x[/]" in shown


def test_errors_come_before_any_model(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_subject", lambda *_: pytest.fail("a model was loaded"))
    result = CliRunner().invoke(app, ["chat", folders[0]])
    assert result.exit_code == 2
    assert "--original" in result.stderr
    result = CliRunner().invoke(app, ["chat", str(tmp_path / "nothing"), "--original", folders[0]])
    assert result.exit_code == 2
    assert "nothing" in result.stderr


def test_a_run_folder_stands_for_what_it_made(folders, tmp_path):
    """Full fine-tuning leaves a model, not an adapter."""
    save_tiny(tmp_path / "run" / "model", "qwen", seed=5)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"model": folders[0]}))
    result = CliRunner().invoke(
        app, ["chat", str(tmp_path / "run"), "--json", "--max-new-tokens", "2"], input="Tea?\n"
    )
    found = json.loads(result.stdout)
    assert found["models"] == {"original": folders[0], "run": str(tmp_path / "run" / "model")}


# -- the page -----------------------------------------------------------------------------------------------


def test_the_page_has_the_same_conversation(policies):
    expected = chat_of(policies).ask("Tea?")
    with served(chat_page(chat_of(policies))) as page:
        assert send(page, "about").json == {"models": ["model 0", "model 1"], "turns": []}
        turn = send(page, "ask", {"text": "Tea?"}).json
        assert turn == {"prompt": "Tea?", "answers": [visible(text) for text in expected.values()]}
        assert [each["prompt"] for each in send(page, "about").json["turns"]] == ["Tea?"]
        assert send(page, "ask", {"text": " "}).status == 409
        assert send(page, "ask", {"text": "a" * 100_001}).status == 422
        assert send(page, "reset", {}).status == 200
        assert send(page, "about").json["turns"] == []


def test_serve_takes_the_place_of_the_terminal(folders, monkeypatch):
    found = []

    def serve(page):
        with served(page):
            found.append(send(page, "ask", {"text": "Tea?"}).json)

    monkeypatch.setattr(command, "serve", serve)
    result = call(folders, "never read\n", "--serve", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["turns"]) == len(found) == 1
    monkeypatch.setattr("u2a.commands.review.find_spec", lambda _: None)
    assert "u2a[serve]" in call(folders, "", "--serve").stderr
