"""What tests of HTML pages share: a reader that insists on order, and the rules of a self-contained page."""

import re
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Reader(HTMLParser):
    """Collects what a page refers to and insists that every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.links, self.images, self.ids, self.words = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.images += [attrs] if tag == "img" else []

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def self_contained(text: str) -> Reader:
    """Reads a page that must fetch nothing, be well formed, and say in words what it shows."""
    reader = Reader(text)
    assert all(link.startswith(("data:image/", "#")) for link in reader.links)
    assert not re.search(r"@import|url\((?!#)|<script|<link|http-equiv", text)
    assert len(reader.ids) == len(set(reader.ids))
    known = {f"#{name}" for name in reader.ids}
    assert {link for link in reader.links if link.startswith("#")} <= known
    assert set(re.findall(r"url\((#[^)]*)\)", text)) <= known
    assert all(image["alt"] for image in reader.images)
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in reader.tags if tag == "th")
    drawings = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in drawings)
    return reader
