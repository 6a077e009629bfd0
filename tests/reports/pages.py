"""What a report's file holds, read by a parser of HTML and by bokeh's reader of documents."""

import json
from html.parser import HTMLParser

import numpy as np
from bokeh.document import Document

VOID = {"img", "meta", "link", "input", "br", "line", "circle"}


class Parsed(HTMLParser):
    """The page's elements.

    Attributes:
        elements: of each its name and its attributes.
        scripts: the texts of scripts, the first one of which is the plots' JSON.
        styles: the texts of styles.
        text: all that a reader sees, on one line.
        tables: by name the rows of cells.
    """

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.styles, self.tables = [], [], [], {}
        self._open, self._words = [], []
        self._table = None
        self.feed(html)
        self.close()
        assert not self._open, self._open
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, name, attributes):
        told = dict(attributes)
        self.elements.append((name, told))
        if name not in VOID:
            self._open.append(name)
        if name == "table":
            self._table = self.tables.setdefault(told["aria-label"], [])
        elif name == "tr":
            self._table.append([])
        elif name in ("th", "td"):
            self._table[-1].append("")

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        if name not in VOID:
            assert self._open.pop() == name

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] == ["style"]:
            self.styles.append(data)
        else:
            self._words.append(data)
            if self._open and self._open[-1] in ("th", "td"):
                self._table[-1][-1] += data

    def levels(self):
        """Of the headings, in their order."""
        return [int(n[1]) for n, _ in self.elements if n[0] == "h" and n[1:].isdecimal()]

    def addresses(self):
        """Whatever an element might fetch."""
        return [
            told[key]
            for _, told in self.elements
            for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
            if key in told
        ]


def plots_of(parsed):
    """bokeh's document."""
    told = json.loads(parsed.scripts[0])
    return Document.from_json(told["documents"]["report"])


def lines_of(document, name):
    """By name the points of a plot's lines: `(x, y)`."""
    plot = document.get_model_by_name(name)
    found = {}
    for own in plot.renderers:
        if type(own.glyph).__name__ == "Line":
            data = own.data_source.data
            found[own.name] = np.asarray(data["x"]), np.asarray(data["y"])
    return found


def images_of(document, name):
    """A map's images as bytes, `(layers, epochs)` each, and where they lie."""
    plot = document.get_model_by_name(name)
    return [
        (
            np.asarray(own.data_source.data["image"][0]),
            {key: getattr(own.glyph, key).value for key in ("x", "y", "dw", "dh")},
        )
        for own in plot.renderers
    ]
