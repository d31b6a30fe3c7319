"""Turns the formulas of the site's pages into MathML while it is built: no script, no font, nothing fetched.

A hook of MkDocs (mkdocs.yml). The pages hold LaTeX as GitHub draws it, `$...$` and blocks fenced as `math`; a
formula that cannot be read stops the build.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The page with each formula drawn; its LaTeX stays as the title, to be copied."""

    def drawn(match: re.Match[str]) -> str:
        tag, bracket, latex = match.groups()
        latex = html.unescape(latex).strip()
        try:
            formula = convert(latex, display="block" if bracket == "[" else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: not a formula: {latex} ({error!r})") from error
        return f'<{tag} class="formula" title="{html.escape(latex)}">{formula}</{tag}>'

    return FORMULA.sub(drawn, content)
