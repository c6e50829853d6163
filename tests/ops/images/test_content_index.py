"""The key of a content is the same in Python and in SQL."""

from __future__ import annotations

import hashlib

import duckdb
import numpy as np

from ops.images.content_index import KEY, Contents, key

PAIRS = [(hashlib.sha256(bytes([n])).hexdigest(), f"nut 'ü'/{n % 3}") for n in range(200)]


def test_sql_and_python_agree_on_the_key():
    rows = ", ".join(f"('{content}', '{p.replace(chr(39), chr(39) * 2)}')" for content, p in PAIRS)
    found = duckdb.sql(
        f"SELECT {KEY.format('product')} FROM (VALUES {rows}) AS t(content_sha256, product)"
    )
    assert [row[0] for row in found.fetchall()] == [key(*pair) for pair in PAIRS]


def test_contents_has_a_content_only_under_its_product():
    held, others = PAIRS[:100], PAIRS[100:]
    contents = Contents(np.sort(np.array([key(*pair) for pair in held], np.uint64)))
    assert all(contents.has(*pair) for pair in held)
    assert not any(contents.has(*pair) for pair in others)
    assert not contents.has(held[0][0], held[1][1])


def test_an_empty_index_has_nothing():
    assert not Contents(np.empty(0, np.uint64)).has(*PAIRS[0])
