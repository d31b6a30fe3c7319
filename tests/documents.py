"""The pages that readers see, and what in them can be checked: code blocks, commands, code in sentences."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCHED = r"(?:accelerate launch|torchrun) .*-m u2a\.cli"
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def named(page: Path) -> str:
    """A page's name in messages and test ids."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's fenced code blocks of these languages; `""` is one without a language."""
    found = re.findall(r"^```([a-z]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Words of every `u2a …` that a code block shows, variables before it and comments left out."""
    found = []
    for block in blocks(page, "", "console", "bash", "sh"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            command = re.match(rf"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:{LAUNCHED}|u2a) (.*)", line)
            if command:
                found.append(shlex.split(command[1], comments=True))
    return found


def inline(page: Path) -> list[str]:
    """Code within sentences, code blocks left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
