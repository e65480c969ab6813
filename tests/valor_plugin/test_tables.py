"""Tables of any size, read row by row."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.errors import ConfigError
from valor_plugin.data import tables

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.json"


@given(
    content=st.lists(values, max_size=4),
    chunk=st.sampled_from((1, 2, 5, 1 << 16)),
    indent=st.none() | st.just(1),
    ascii_only=st.booleans(),
)
def test_json_is_read_the_same_wherever_a_chunk_ends(file, content, chunk, indent, ascii_only):
    def write(what: Any) -> None:
        text = json.dumps(what, indent=indent, ensure_ascii=ascii_only)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_CHUNK", chunk)
        write(content)
        assert list(tables.json_items(file)) == content
        pairs = {"a": content, "train": content, "z": 1}
        write(pairs)
        assert list(tables.json_items(file, under="train")) == content
        assert dict(tables.json_pairs(file)) == pairs
        file.write_text("\n".join(map(json.dumps, content)))
        assert list(tables.json_lines(file)) == content


def test_nan_is_none_but_in_a_text(file):
    file.write_text('[NaN, {"a": NaN, "b": "x: NaN, y"}]')
    assert list(tables.json_items(file)) == [None, {"a": None, "b": "x: NaN, y"}]


def test_a_list_under_a_key_that_is_not_there_has_nothing(file):
    file.write_text('{"train": [1, 2]}')
    assert list(tables.json_items(file, under="test")) == []


def test_the_first_keys_end_with_the_first_list_or_object(file):
    file.write_text('{"version": 1, "train": [1], "test": ')
    assert tables.json_keys(file) == ["version", "train"]


def test_a_gzipped_file_is_read_as_it_is(tmp_path):
    (tmp_path / "table.json.gz").write_bytes(gzip.compress(b"[1, 2]"))
    assert list(tables.json_items(tmp_path / "table.json.gz")) == [1, 2]


@pytest.mark.parametrize("broken", ["", "[1,", "[1 2]", '["a', '{"a": 1}', "[tru]", "[-", "x"])
def test_what_is_no_list_in_json_is_refused_with_its_name(broken, file):
    file.write_text(broken)
    with pytest.raises(ConfigError, match=r"table.json is no JSON that is read here: \w"):
        list(tables.json_items(file))


@pytest.mark.parametrize("broken", ["", "{1: 2}", '{"a" 1}', '{"a": 1', '{"a": 1 "b": 2}', "[1]"])
def test_what_is_no_object_in_json_is_refused_with_its_name(broken, file):
    file.write_text(broken)
    with pytest.raises(ConfigError, match=r"table.json is no JSON that is read here: \w"):
        list(tables.json_pairs(file))


def test_memory_does_not_grow_with_a_list(file):
    with file.open("w") as opened:
        opened.write('{"train": [' + ",".join(['{"report": "' + "x" * 400 + '"}'] * 20_000) + "]}")
    tracemalloc.start()
    try:
        assert sum(1 for _ in tables.json_items(file, under="train")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 < file.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_value_without_an_end_is_given_up(file, monkeypatch):
    monkeypatch.setattr(tables, "_LARGEST", 1 << 18)
    file.write_text('["' + "x" * (1 << 20))
    with pytest.raises(ConfigError, match="is not ended"):
        list(tables.json_items(file))


@pytest.mark.parametrize(
    ("content", "read", "place"),
    [
        ('[{"a": 1}, {"b": 1}]', tables.json_items, "entry 2"),
        ('{"s1": 5}', tables.json_pairs, "entry 1"),
        ('{"a": 1}\n[]', tables.json_lines, "entry 2"),
    ],
)
def test_an_entry_without_a_key_that_is_needed_is_named(content, read, place, file):
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"table.json, {place}: it is no object with the keys a"):
        list(read(file, "a"))
