"""A page as a reader of HTML, and a browser, see it."""

import base64
import html.parser
import io
import re
import shutil

from PIL import Image

BROWSER = next((shutil.which(b) for b in ("chromium", "google-chrome", "chromium-browser") if shutil.which(b)), None)


SWITCHES = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    " disable-sync virtual-time-budget=2000"
)


def plain(text):
    """The text with every kind of space as one ordinary space."""
    return re.sub(r"\s+", " ", text)


class Dom(html.parser.HTMLParser):
    """The page's elements as (tag, attributes, text inside), and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in ("meta", "img", "col", "line", "circle", "polyline", "rect"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        if self.open:
            self.open.pop()

    def handle_data(self, data):
        for i in self.open:
            self.elements[i][2] += data
        if not any(self.elements[i][0] == "style" for i in self.open):
            self.words.append(data)

    @property
    def text(self):
        return plain("".join(self.words))

    def find(self, tag, kind=""):
        return [e for e in self.elements if e[0] == tag and kind in ["", *(e[1].get("class") or "").split()]]


def check_whole(path):
    """Parses the page; nothing may point outside, every picture must decode, every tag must close."""
    text = path.read_text("utf-8")
    dom = Dom(text)
    assert dom.open == []
    assert not dom.find("script")
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert not re.search(r"\b(nan|None)\b", dom.text)
    for _, attributes, _ in dom.find("img"):
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 160
        assert attributes["alt"]
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    return dom
