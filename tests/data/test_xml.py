"""XML of strangers: entities are not multiplied without end, and none is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.prepare.loopback import Site, serving
from tests.data.trees import voc_tree
from weaktr.data import DataError, voc12

NAME = "2007_000001"
LAUGHS = "".join(f'<!ENTITY l{k + 1} "{f"&l{k};" * 10}">' for k in range(9))
SECRET = "a secret of this machine"


def refusal(folder: Path, head: str, name: str = "&e;") -> str:
    """What is said of an annotation with such a head, which names an object `name`."""
    voc = voc_tree(folder)
    path = voc / f"Annotations/{NAME}.xml"
    text = f"{head}<annotation><object><name>{name}</name></object></annotation>"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        voc12(voc)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_entities_that_multiply_are_refused(tmp_path):
    laughs = refusal(tmp_path / "a", f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>', "&l9;")
    assert "amplification factor" in laughs
    blow_up = f'<!DOCTYPE a [<!ENTITY e "{"ha" * 100_000}">]>'
    assert "amplification factor" in refusal(tmp_path / "b", blow_up, "&e;" * 10_000)


@pytest.mark.parametrize("kind", ["SYSTEM", 'PUBLIC "-//X//Y"'])
def test_nothing_is_fetched_from_elsewhere(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "secret").write_text(SECRET)
    with serving(Site({"x": SECRET.encode()})) as site:
        for number, address in enumerate(
            (f"http://127.0.0.1:{site.port}/x", (tmp_path / "secret").as_uri())
        ):
            folder = tmp_path / str(number)
            entity = f'<!DOCTYPE a [<!ENTITY e {kind} "{address}">]>'
            parameter = f'<!DOCTYPE a [<!ENTITY % e {kind} "{address}"> %e;]>'
            for place, head in ("entity", entity), ("parameter", parameter):
                said = refusal(folder / place, head)
                assert "undefined entity" in said and SECRET not in said
            assert "none of the 20" in refusal(
                folder / "dtd", f'<!DOCTYPE a {kind} "{address}">', "ha"
            )
        assert site.asked == []


def test_nests_and_other_encodings_are_refused(tmp_path):
    assert "none of the 20" in refusal(tmp_path / "deep", "", "<a>" * 50_000 + "</a>" * 50_000)
    assert "expected XML" in refusal(tmp_path / "cut", "", "<a>" * 50_000)
