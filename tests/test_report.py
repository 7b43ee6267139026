"""What users name is text in the HTML pages: no element, no attribute, no template."""

from __future__ import annotations

import html.parser
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from vgjax.report import write_html, write_page

EVIL = """<script>document.title='gone'</script><img src=x onerror="alert(1)">"' {{ 7*7 }} </td>&lt;"""
VOID = {"meta", "img", "link", "br"}


class Reader(html.parser.HTMLParser):
    """The elements of a page with their attributes, and its text; every element is closed where it should be."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.inside = [], "", []
        self.feed(page.read_text())
        assert not self.inside

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, content):
        self.text += content


def pages(folder, name):
    """The clinic's page and the reproduction's, with that name wherever a text can be."""
    row = SimpleNamespace(what=name, value=name, low=0.0, high=1.0, judgement=name, good=True)
    report = SimpleNamespace(name=name, sentence=name, verdicts=[row], note=name)
    figure = plt.figure()
    pictures = [(name, figure)]
    environment = {"size": name, name: name, "versions": {name: name}}
    template = "clinic/clinic.html"
    yield write_html(folder / "clinic.html", template, report=report, pictures=pictures, environment=environment)
    plt.close(figure)
    numbers = {"published": 1.0, "predicted": 1.0, "measured": 1.0, "interval": (0.0, 1.0), "n_seeds": 3}
    row = SimpleNamespace(quantity=name, source=name, tolerance=name, verdict="differs", **numbers)
    picture = SimpleNamespace(name="picture", sentence=name)
    (folder / "picture.png").write_bytes(b"")
    section = SimpleNamespace(title=name, notes=[name], pictures=[picture], rows=[row])
    yield write_page(folder / "report.html", [section], folder, environment)


@pytest.mark.parametrize("evil", [EVIL, "'\"><svg/onload=alert(1)>", "--><b>", "]]>&#60;b&#62;"])
def test_names_are_escaped(tmp_path, evil):
    """The page has the elements that it has with a harmless name, and shows the name as it is."""
    harmless = [Reader(page) for page in pages(tmp_path, "plain")]
    for page, plain in zip(pages(tmp_path, evil), harmless, strict=True):
        found = Reader(page)
        assert [(tag, list(attributes)) for tag, attributes in found.elements] == [
            (tag, list(attributes)) for tag, attributes in plain.elements
        ]
        assert found.text.count(evil) == plain.text.count("plain") > 4
        assert [a["alt"] for tag, a in found.elements if tag == "img"] == [evil]
        assert "onerror" not in {name for _, attributes in found.elements for name in attributes}
