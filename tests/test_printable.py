"""Nothing that others wrote acts on a terminal."""

import unicodedata

from u2a.printable import printable, printable_lines

ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "8-bit controls": "\x9b31m\x9d0;owned\x9c\x85",
    "writing direction": "\u202e\u2066txt.exe\u2069\u200f",
    "overwriting": "good\rbad\b\b\x7f",
    "lines": "\u2028\u2029\x0b\x0c",
    "nothing": "\0\ufeff\u200b\U000e0041",
    "half a pair": "\ud83d",
}


def test_every_character_is_harmless():
    for text in ATTACKS.values():
        shown = printable(text)
        assert shown.isprintable()
        assert shown.encode()  # no halves of pairs
    everything = "".join(map(chr, range(0x110000)))
    kinds = {unicodedata.category(c) for c in set(printable(everything))}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_what_is_hidden_is_named():
    assert printable("a\x1b[31m\x9b\u202e\n") == "a\\x1b[31m\\x9b\\x202e\\x0a"
    assert printable("naïve 東京 🙂 [bold]") == "naïve 東京 🙂 [bold]"
    assert printable_lines("a\tb\n\x1b\r\n") == "a\tb\n\\x1b\\x0d\n"
