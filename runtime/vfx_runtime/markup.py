"""Self-contained HTML pages: all text is escaped, and styles, scripts, data and images are embedded."""

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
    """Text that is already HTML. All other text is escaped when it is inserted."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Make an HTML or SVG element.

    Args:
        name: name of the element.
        children: markup, or anything else, which is shown as text; None is left out.
        attributes: ``class_`` stands for ``class`` and ``data_kind`` for ``data-kind``. None and False leave
            an attribute out; True writes it without a value.
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
    """Concatenate parts, escaping those that are not markup."""
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in parts))


def _text(value: object) -> str:
    if value is None:
        return ""
    # Lone surrogates stand for bytes of file names that are not UTF-8. They cannot be encoded.
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def data_island(value: Any) -> Markup:
    """JSON for the page's script to read. Nothing in it can end the element or be executed."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json">{text}</script>')


def data_uri(media: str, data: bytes) -> str:
    """Bytes as a ``data:`` URI."""
    return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def table(
    head: Iterable[object], rows: Iterable[Iterable[object]], caption: str, **attributes: object
) -> Markup:
    """A table in which the first cell of each row is the row's heading."""
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
    """Names and values, one pair per line; pairs whose value is None are left out."""
    items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None]
    return tag("dl", *items, class_="facts")


def warning(*children: object) -> Markup:
    """A paragraph that must not be overlooked."""
    return tag("p", *children, class_="warning", role="alert")


def document(title: str, *body: object) -> str:
    """A page that needs no network, with a Content-Security-Policy that forbids it any."""
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
