"""HTML pages that stand alone: all text escaped, all styles, scripts, data and pictures within."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vfx_engines.versions import vfx_version

_EMPTY = frozenset({"meta", "img", "rect", "line", "path"})
_HERE = Path(__file__).parent


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put in."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: markup, or anything else, which is shown as text; None is left out.
        attributes: ``class_`` is class and ``data_kind`` data-kind; one that is None is left out, True
            stands without a value.
    """
    said = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        said.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    opening = f"<{name}{''.join(said)}"
    return Markup(f"{opening}/>" if name in _EMPTY else f"{opening}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Parts one after the other; what is no markup is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in parts))


def _text(value: object) -> str:
    if value is None:
        return ""
    # Lone surrogates stand for bytes of file names that are no UTF-8; a file cannot hold them.
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def data_island(value: Any) -> Markup:
    """JSON for the page's script to read; nothing in it can end the element or run."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json">{text}</script>')


def data_uri(media: str, data: bytes) -> str:
    """Bytes as an address of their own."""
    return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def table(
    head: Iterable[object], rows: Iterable[Iterable[object]], caption: str, **attributes: object
) -> Markup:
    """A table; the first cell of each row is its heading."""
    header = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    body = []
    for first, *rest in rows:
        body.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)))
    return tag(
        "div",
        tag("table", tag("caption", caption, class_="unseen"), header, tag("tbody", *body), **attributes),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and values, one pair a line; a value that is None is left out."""
    items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None]
    return tag("dl", *items, class_="facts")


def warning(*children: object) -> Markup:
    """What must not be overlooked."""
    return tag("p", *children, class_="warning", role="alert")


def document(title: str, *body: object) -> str:
    """A page that asks nothing of a network, and says so to the browser."""
    style = (_HERE / "page.css").read_text("utf-8")
    script = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"vfx {vfx_version()}"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    page = tag("body", tag("main", *body), tag("script", Markup(script)))
    return f"<!doctype html>\n{tag('html', head, page, lang='en')}\n"
