"""CVAT for images 1.1: one XML file, with a ``mask`` for each part and a ``tag`` for each label.

Source: https://docs.cvat.ai/docs/manual/advanced/xml_format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

from weaktr.data import Classes
from weaktr.data.classes import palette
from weaktr.exchange.instances import Part, parts_of, row_runs
from weaktr.exchange.items import Item, Options, Report
from weaktr.exchange.xml_text import fits_xml, require_xml


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``annotations.xml``; see `weaktr.exchange.Format`.

    Photographs have the names that they have below ``images/``.

    Raises:
        ValueError: XML cannot hold the name of a class.
    """
    require_xml(classes.names)
    with open(folder / "annotations.xml", "w", encoding="utf-8") as file:
        xml = XMLGenerator(file, "utf-8", short_empty_elements=True)
        xml.startDocument()
        with _element(xml, "annotations"):
            _text(xml, "version", "1.1")
            _write_labels(xml, classes)
            number = 0
            for item in items:
                if not fits_xml(item.file):
                    report.leave_out(item, "XML cannot hold its name: choose a format of JSON")
                    continue
                height, width = item.size
                image = {"id": number, "name": item.file, "width": width, "height": height}
                with _element(xml, "image", image):
                    for index in item.shown or ():
                        tag = {"label": classes.names[index], "source": "auto"}
                        with _element(xml, "tag", tag):
                            pass
                    for part in parts_of(item, options, report):
                        _write_mask(xml, part, classes.names[part.label - 1])
                number += 1
        xml.endDocument()


def _write_labels(xml: XMLGenerator, classes: Classes) -> None:
    colours = palette(classes.num_labels)
    with _element(xml, "meta"), _element(xml, "task"), _element(xml, "labels"):
        for label, name in enumerate(classes.names, 1):
            with _element(xml, "label"):
                _text(xml, "name", name)
                _text(xml, "color", f"#{colours[label].tobytes().hex()}")
                _text(xml, "type", "any")
                _text(xml, "attributes", "")


def _write_mask(xml: XMLGenerator, part: Part, name: str) -> None:
    """A part by run lengths of its box, row by row."""
    left, top, width, height = part.box
    attributes = {
        "label": name,
        "source": "auto",
        "occluded": 0,
        "rle": ", ".join(map(str, row_runs(part.inside))),
        "left": left,
        "top": top,
        "width": width,
        "height": height,
        "z_order": 0,
    }
    with _element(xml, "mask", attributes):
        pass


@contextmanager
def _element(
    xml: XMLGenerator, name: str, attributes: Mapping[str, object] | None = None
) -> Iterator[None]:
    texts = {key: str(value) for key, value in (attributes or {}).items()}
    xml.startElement(name, AttributesImpl(texts))
    yield
    xml.endElement(name)


def _text(xml: XMLGenerator, name: str, text: str) -> None:
    with _element(xml, name):
        xml.characters(text)
