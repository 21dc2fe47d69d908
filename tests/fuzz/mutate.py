"""Damage to files: of their bytes, and of what their format says.

Everything is drawn from one random generator, so that a case is repeated by its number.
"""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

#: Integers at which types and limits end.
EDGES = (
    0, 1, -1, 2, 7, 8, 16, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**53, 2**63 - 1, 2**63, -(2**31), -(2**63),
)  # fmt: skip
NAMES = (
    "", ".", "..", "../../x", "/etc/hostname", "a/../../b", "C:\\x", "a\\b", "a\0b", "a\nb", "a b",
    "\u2028", "\ud800", "\udcff", "é", "e\u0301", "a" * 300, "a/" * 3000, "%s%n", "-x", "9" * 400,
    "nan", "1e999", "true", "null", "NaN", "0x10", "http://127.0.0.1:9/x", "file:///etc/hostname",
    "!!python/object/apply:os.system [x]", "class_path",
)  # fmt: skip
NUMBERS = (*EDGES, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 10**30)
DEPTHS = (3, 60, 900, 100_000)
MOST_BYTES = 1 << 22


def mutated(rng: Random, content: bytes, kind: str, others: list[bytes]) -> bytes:
    """A damaged file.

    Args:
        rng: what everything is drawn from.
        content: the whole file.
        kind: of `FORMATS`.
        others: further whole files of this kind, to take pieces from.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        of_format = FORMATS[kind] if rng.random() < 0.6 else of_bytes
        try:
            content = of_format(rng, content, others)[:MOST_BYTES]
        except _NOT_OF_FORMAT:  # damaged before
            content = of_bytes(rng, content, others)[:MOST_BYTES]
    return content


#: What the parsers below raise.
_NOT_OF_FORMAT = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError,
    EOFError, OSError, MemoryError, RuntimeError, NotImplementedError, struct.error, zlib.error,
    zipfile.BadZipFile, tarfile.TarError, yaml.YAMLError,
)  # fmt: skip


# ---- bytes --------------------------------------------------------------------------------------


def of_bytes(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """Flip, cut, repeat, move or exchange bytes, without regard to what they mean."""
    size = len(content)
    start = rng.randrange(size + 1)
    if rng.random() < 0.5:  # heads hold most of what can go wrong
        start = min(start, rng.randrange(200))
    end = min(size, start + rng.choice((1, 2, 4, 8, 20, 100, 1000)))
    before, piece, after = content[:start], content[start:end], content[end:]
    other = rng.choice([content, *others])
    place = rng.randrange(len(other) + 1)
    new = _packed(rng)
    return rng.choice(
        (
            lambda: before + _flipped(rng, piece) + after,
            lambda: before,
            lambda: before + after,
            lambda: before + piece * rng.choice((2, 3, 50)) + after,
            lambda: before + new + content[start + len(new) :],
            lambda: before + rng.randbytes(rng.choice((1, 4, 30))) + content[start:],
            lambda: before + other[place : place + len(piece)] + after,
            lambda: before + other[place:],
            lambda: _with_another_number(rng, content),
        )
    )()


def _flipped(rng: Random, piece: bytes) -> bytes:
    """The piece with another bit in its first byte."""
    return bytes(byte ^ (1 << rng.randrange(8)) for byte in piece[:1]) + piece[1:]


def _packed(rng: Random) -> bytes:
    """An integer at an edge, in 1 to 8 bytes of either order."""
    size = rng.choice((1, 2, 4, 8))
    return (rng.choice(EDGES) % 256**size).to_bytes(size, rng.choice(("little", "big")))


def _with_another_number(rng: Random, content: bytes) -> bytes:
    """A number that is written in digits becomes another."""
    found = list(re.finditer(rb"\d+", content[: 1 << 16]))
    if not found:
        return content[::-1]
    place = rng.choice(found)
    return content[: place.start()] + str(rng.choice(NUMBERS)).encode() + content[place.end() :]


# ---- trees of values ----------------------------------------------------------------------------


def odd_value(rng: Random, depth: int = 2) -> Any:
    """Something that nobody expects."""
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(NUMBERS)
        case 2 | 3:
            return rng.choice(NAMES)
        case 4:
            return rng.choice((None, True, False, [], {}))
        case 5 if depth:
            return [odd_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case 6 if depth:
            return {rng.choice(NAMES): odd_value(rng, depth - 1)}
        case _:
            value: Any = 1
            for _ in range(rng.choice((3, 60, 300))):
                value = [value]
            return value


def with_another_value(rng: Random, tree: Any) -> Any:
    """`tree` with one of its values replaced, removed, repeated or exchanged."""
    places = list(_places(tree))
    if not places or rng.random() < 0.03:
        return odd_value(rng)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place]))
        case 2 if isinstance(holder, list):
            holder[:] = holder * rng.choice((2, 30))
        case 3 if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(key)
        case 4 if isinstance(holder[key], (int, float)):
            holder[key] = rng.choice(NUMBERS)
        case _:
            holder[key] = odd_value(rng)
    return tree


def _places(tree: Any) -> Any:
    """(container, key) of every value in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items) if isinstance(tree, (dict, list)) else []:
        yield tree, key
        yield from _places(value)


# ---- text ---------------------------------------------------------------------------------------


def _encoded(rng: Random, text: str) -> bytes:
    """Text, now and then in another encoding than UTF-8."""
    if rng.random() < 0.9:
        return text.encode("utf-8", "surrogatepass")
    encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7"))
    return text.encode(encoding, "replace")


_ODD_NUMBERS = ("1e999", "9" * 5000, "NaN", "01")


def of_json(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """JSON with other values, twice the same key, nests, or another end."""
    if rng.random() < 0.85:
        tree = with_another_value(rng, json.loads(content))
        return _encoded(rng, json.dumps(tree, ensure_ascii=rng.random() < 0.7))
    text = content.decode()
    depth = rng.choice(DEPTHS)
    new = rng.choice(
        (
            lambda: re.sub(r'"(\w+)":', r'"\1": 1, "\1":', text, count=1),
            lambda: re.sub(r"-?\d[\d.]*", rng.choice(_ODD_NUMBERS), text, count=1),
            lambda: "[" * depth + text + "]" * depth,
            lambda: '{"a":' * depth + text + "}" * depth,
            lambda: text + text,
            lambda: text.replace('"', "'"),
        )
    )()
    return _encoded(rng, new)


def of_json_lines(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A line of JSON with other values, or lines in another order."""
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        case 1:
            lines[place] = rng.choice((b"\n", b"\r\n", b"{}\n", b"null\n", b"\0\n"))
        case _:
            lines[place] = of_json(rng, lines[place], others) + b"\n"
    return b"".join(lines)


def of_cells(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A CSV, or a list of words, with other cells, rows, signs between them or ends of line."""
    text = content.decode()
    match rng.randrange(8):
        case 0:
            old, new = (
                rng.choice((",", ";", "\n")),
                rng.choice((",", ";", "\t", '"', "\r", "\u2028")),
            )
            return _encoded(rng, text.replace(old, new))
        case 1:
            lines = text.splitlines(keepends=True)
            lines.insert(rng.randrange(len(lines) + 1), rng.choice([*lines, "\n", '"\n', ",,,,\n"]))
            return _encoded(rng, "".join(lines))
        case 2:
            return _encoded(rng, text[: rng.randrange(len(text) + 1)])
    cells = list(re.finditer(r"[^,;\n\s]+", text))
    cell = rng.choice(cells)
    new = rng.choice(
        (
            *NAMES, "x" * 140_000, '"', '"a', '""', ",", ";;", " ", "\t",
            rng.choice(cells)[0], *map(str, NUMBERS),
        )
    )  # fmt: skip
    return _encoded(rng, text[: cell.start()] + new + text[cell.end() :])


def of_xml(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """XML with other text or tags, nests, entities of the file's own or of elsewhere."""
    text = content.decode()
    depth = rng.choice(DEPTHS)
    laughs = "".join(f'<!ENTITY l{k + 1} "{f"&l{k};" * 10}">' for k in range(9))
    piece = rng.choice(list(re.finditer(r"<[^>]+>|[^<>]+", text)))
    new = rng.choice(
        (
            lambda: f'<!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]>{text.replace("cat", "&l9;")}',
            lambda: (
                '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
                + text.replace("cat", "&e;")
            ),
            lambda: '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">' + text,
            lambda: f'<?xml version="1.0" encoding="{rng.choice(NAMES)}"?>{text}',
            lambda: "<a>" * depth + text + "</a>" * depth,
            lambda: text.replace(piece[0], rng.choice(NAMES)),
            lambda: text.replace(piece[0], piece[0] * rng.choice((2, 100))),
            lambda: text.replace(piece[0], f"<![CDATA[{piece[0]}]]>"),
            lambda: text.replace(piece[0], ""),
            lambda: text.replace("<name>", f'<name a="{rng.choice(NAMES)}">'),
        )
    )()
    return _encoded(rng, new)


def of_yaml(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """YAML with other values, anchors, tags, nests."""
    text = content.decode()
    if "&l0" in text:
        raise ValueError("aliases of aliases, which have no end when they are written out")
    if rng.random() < 0.7:
        return _encoded(rng, json.dumps(with_another_value(rng, yaml.safe_load(text))))
    depth = rng.choice(DEPTHS)
    laughs = "".join(f"l{k + 1}: &l{k + 1} [{', '.join([f'*l{k}'] * 10)}]\n" for k in range(9))
    value = rng.choice(list(re.finditer(r"(?<=: ).+", text)))[0]
    new = rng.choice(
        (
            lambda: f"l0: &l0 ha\n{laughs}{text}",
            lambda: text.replace(value, "[" * depth + "]" * depth),
            lambda: text.replace(value, f"!!python/object/apply:os.system ['{value}']"),
            lambda: text.replace(
                value, f"!!{rng.choice(('binary', 'timestamp', 'set', 'x'))} {value}"
            ),
            lambda: text.replace(value, "&a [*a]"),
            lambda: text.replace(
                value, rng.choice((*NAMES, "12:30:45", "0o17", "2001-01-01", "yes"))
            ),
            lambda: f"<<: {text}",
            lambda: text + text,
            lambda: text.replace("  ", "\t"),
            lambda: f"{text}\n---\n{text}",
        )
    )()
    return _encoded(rng, new)


# ---- binary formats -----------------------------------------------------------------------------


def of_png(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """PNG with a damaged chunk whose checksum is right, or with chunks moved."""
    chunks, position = [], 8
    while position + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, position)
        chunks.append((content[position + 4 : position + 8], content[position + 8 :][:size]))
        position += 12 + size
    place = rng.randrange(len(chunks))
    name, data = chunks[place]
    match rng.randrange(5):
        case 0:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[place])
        case 1:
            del chunks[place]
        case 2 if name == b"IDAT":
            raw = of_bytes(rng, zlib.decompress(data), others)
            chunks[place] = (name, zlib.compress(raw))
        case _:
            chunks[place] = (name, of_bytes(rng, data, others))
    ends = [struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    sizes = [struct.pack(">I", len(data)) for _, data in chunks]
    parts = zip(sizes, chunks, ends, strict=True)
    return content[:8] + b"".join(size + name + data + end for size, (name, data), end in parts)


def of_pickle(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A pickle in which another value, such as tuples of tuples, takes the place of one."""
    places = [place for _, _, place in pickletools.genops(content) if place is not None]
    place = rng.choice(places[1:])
    new = rng.choice(
        (
            b")" + b"\x85" * rng.choice(DEPTHS),
            b")" + b"q\xfeh\xfe\x86" * rng.choice((3, 60, 900)),
            b"]" + b"q\xfeh\xfe\x86" * 30,
            b"(" + b"N" * 1000 + b"t",
            b"I" + str(rng.choice(EDGES)).encode() + b"\n",
            b"L" + b"9" * 4000 + b"L\n",
            b"N",
            b"}",
        )
    )
    pop = rng.choice((b"0", b"0", b"0", b""))
    return content[:place] + pop + new + content[place:]


def of_zip(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A zip (also an npz or a file of torch) with a damaged, renamed or repeated member."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(members))
    name, data = members[place]
    pickled = [data for name, data in members if name.endswith(".pkl")]
    match rng.randrange(6):
        case 0:
            folder = name.rpartition("/")[0]
            members[place] = (rng.choice((*NAMES, f"{folder}/{rng.choice(NAMES)}")), data)
        case 1:
            members.append(members[place])
        case 2:
            del members[place]
        case 3 if pickled:
            where = next(k for k, (name, _) in enumerate(members) if name.endswith(".pkl"))
            of_any = rng.choice((of_bytes, of_pickle))
            members[where] = (members[where][0], of_any(rng, pickled[0], others))
        case _:
            members[place] = (name, of_bytes(rng, data, others))
    buffer = io.BytesIO()
    way = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", way) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name.replace("\0", "0")), data, way)
    return buffer.getvalue()


def of_tar(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A tar, gzipped or not, with other names, kinds and sizes of members."""
    is_gzip = content[:2] == b"\x1f\x8b"
    plain = gzip.decompress(content) if is_gzip else content
    if rng.random() < 0.5:
        plain = of_bytes(rng, plain, others)
    else:
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            members = archive.getmembers()
            data = [archive.extractfile(m).read() if m.isreg() else b"" for m in members]  # type: ignore[union-attr]
        member = rng.choice(members)
        member.name = rng.choice((*NAMES, member.name))
        member.type = rng.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"x", b"L", b"S"))
        member.linkname = rng.choice((*NAMES, member.name))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for info, held in zip(members, data, strict=True):
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))
        plain = buffer.getvalue()
    return gzip.compress(plain, 1, mtime=0) if is_gzip else plain


def of_safetensors(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """safetensors with another header."""
    (size,) = struct.unpack_from("<Q", content)
    tree = json.loads(content[8 : 8 + size])
    if rng.random() < 0.5 and "weaktr" in tree.get("__metadata__", {}):
        inner = of_json(rng, tree["__metadata__"]["weaktr"].encode(), others)
        tree["__metadata__"]["weaktr"] = inner.decode("utf-8", "replace")
    else:
        tree = with_another_value(rng, tree)
    header = json.dumps(tree).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def of_npy(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """npy with another header of the right length, or with damage to what follows it."""
    size = int.from_bytes(content[8:10], "little")
    if rng.random() < 0.5:
        of_any = rng.choice((of_bytes, of_pickle))
        return content[: 10 + size] + of_any(rng, content[10 + size :], others)
    header = content[10 : 10 + size].decode("latin-1").rstrip()
    word = rng.choice(re.findall(r"'[^']*'|\d+|True|False|\([^)]*\)", header))
    kinds = ("'|O'", "'<f8'", "'<U4'", "'|V8'", "[('a', '<f4')]", "'<M8[s]'", "'>i2'", "True")
    shapes = ("()", "(-1,)", "(0,)", "(1, 0)", "(2, 3, 4)", "(4294967296, 4294967296)", "(1e3,)")
    new = rng.choice((*kinds, *shapes, *map(str, EDGES)))
    head = (header.replace(word, new, 1) + "\n").encode("latin-1")
    return content[:8] + struct.pack("<H", len(head)) + head + content[10 + size :]


def of_mat(rng: Random, content: bytes, others: list[bytes]) -> bytes:
    """A MATLAB file with damage to its elements, within the compressed one if it is."""
    head, rest = content[:128], content[128:]
    kind, size = struct.unpack_from("<II", rest)
    if kind != 15:
        return head + of_bytes(rng, rest, others)
    packed = zlib.compress(of_bytes(rng, zlib.decompress(rest[8 : 8 + size]), others))
    return head + struct.pack("<II", kind, len(packed)) + packed + rest[8 + size :]


#: What is known of the files of a kind.
FORMATS: dict[str, Callable[[Random, bytes, list[bytes]], bytes]] = {
    "bytes": of_bytes,
    "json": of_json,
    "json lines": of_json_lines,
    "cells": of_cells,
    "xml": of_xml,
    "yaml": of_yaml,
    "png": of_png,
    "zip": of_zip,
    "tar": of_tar,
    "safetensors": of_safetensors,
    "npy": of_npy,
    "mat": of_mat,
}
