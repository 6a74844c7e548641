"""Where requests come from: lists and files; and what a receipt says of it."""

import gzip
import json
import os
import socket
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import ObjectStoragePath
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from sources import HI, SECRET, growth, peak, request, sentence

from airflow_provider_claude_batch import SqlRequests
from airflow_provider_claude_batch import source as source_module
from airflow_provider_claude_batch.errors import Misconfigured
from airflow_provider_claude_batch.receipt import Source
from airflow_provider_claude_batch.source import open_source, source_of


@pytest.mark.parametrize(
    ("given", "requests"),
    [
        (None, []),
        ([], []),
        ((), []),
        ([None, None], []),
        ([[], None, []], []),
        ([{"custom_id": "a"}, None], [{"custom_id": "a"}, None]),
        ([[{"custom_id": "a"}], None, [{"custom_id": "b"}, {"custom_id": "c"}]], [{"custom_id": x} for x in "abc"]),
        (({"custom_id": "a"},), [{"custom_id": "a"}]),
    ],
)
def test_a_list_is_taken_as_it_is_and_a_mapped_upstreams_lists_are_joined(given: Any, requests: Any) -> None:
    assert list(open_source(given)) == requests


@pytest.mark.parametrize("given", [5, {"custom_id": "a"}, b"x.jsonl", object(), [[{}], {"custom_id": SECRET}]])
def test_what_is_no_source_is_told_with_what_is_taken(given: Any) -> None:
    said = sentence(given)
    assert "takes a list of dicts, a path or URI of a .jsonl, .jsonl.gz or .parquet file, or SqlRequests" in said
    assert "was given a " in said


def test_lists_without_an_end_are_told() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "lists that are nested too deeply" in sentence(endless)


def test_what_is_no_source_is_told_before_anything_is_read() -> None:
    for value in (5, "requests.csv"):
        with pytest.raises(Misconfigured):
            open_source(value)


# JSON lines

LINES = [b'{"custom_id": "a"}', b'{"custom_id": "\xe2\x80\xa8\xc2\x85"}', b'  {"custom_id": "c"}']
FORMS = {
    "as usual": b"\n".join(LINES) + b"\n",
    "no newline at the end": b"\n".join(LINES),
    "of Windows": b"\r\n".join(LINES) + b"\r\n",
    "blank lines": b"\n\n \t\r\n" + b"\n\n".join(LINES) + b"\n\n\n",
    "a byte order mark": b"\xef\xbb\xbf" + b"\n".join(LINES),
}


def zipped(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])  # two members, as `cat a.gz b.gz` makes them


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".JSONL", ".JsonL.GZ"])
def test_lines_are_split_on_newlines_alone_and_blank_ones_left_out(ending: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"requests{ending}"
    content = FORMS[form]
    path.write_bytes(zipped(content) if ending.lower().endswith("gz") else content)
    assert list(open_source(str(path))) == LINES


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\r\n"])
def test_a_file_without_lines_has_no_requests(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content))
    assert [*open_source(tmp_path / "x.jsonl"), *open_source(tmp_path / "x.jsonl.gz")] == []


def test_a_path_may_be_text_a_path_or_of_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "with space & ümlaut.jsonl"
    path.write_bytes(b'{"custom_id": "a"}\n')
    monkeypatch.chdir(tmp_path)
    forms = [str(path), path, PurePosixPath(path), path.name, f"file://{path}", ObjectStoragePath(f"file://{path}")]
    assert [list(open_source(form)) for form in forms] == [[b'{"custom_id": "a"}']] * len(forms)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.floats(allow_nan=False), max_size=3)),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_what_is_written_as_lines_is_read_as_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], newline: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.jsonl"
    path.write_bytes("".join(json.dumps(item, ensure_ascii=False) + newline for item in items).encode())
    assert [json.loads(line) for line in open_source(path)] == items


def test_lines_do_not_stay_in_memory(tmp_path: Path) -> None:
    line = json.dumps(request("r", "x" * 2_000)).encode() + b"\n"
    plain, packed = tmp_path / "x.jsonl", tmp_path / "x.jsonl.gz"
    plain.write_bytes(line * 50_000)
    packed.write_bytes(gzip.compress(line * 50_000, 1))
    for path in (plain, packed):
        count, megabytes = growth("source = sys.argv[1]", path)
        assert count == 50_000
        assert megabytes < 10


GOOD = json.dumps(request("good")).encode() + b"\n"
ENDLESS = b"a" * 10_000_000


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_line_that_no_batch_could_hold_is_skipped_and_does_not_fill_the_memory(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb{ending}"
    pack = (lambda content: gzip.compress(content, 1)) if ending == ".jsonl.gz" else bytes
    begin, block, end = pack(GOOD + b'{"custom_id": "long", "params": "'), pack(ENDLESS), pack(b'"}\n' + GOOD)
    path.write_bytes(begin)
    with path.open("ab") as file:
        for _ in range(80):
            file.write(block)
        file.write(end.replace(b"good", b"also") if ending == ".jsonl" else end)
    sent, invalid, megabytes = peak("source = sys.argv[1]", path)
    assert "good" in sent
    assert invalid["one request of 800,000,036 bytes is more than a batch holds"] == ["long"]
    assert megabytes < 400


ARRAYS = {
    "on one line": json.dumps([request("a"), request("b")]).encode(),
    "on many lines": b"\n" + json.dumps([request("a"), request("b")], indent=2).encode(),
    "with a newline": json.dumps([request("a")]).encode() + b"\n\n",
    "empty": b"[]",
    "cut off": b'[{"custom_id": "a",',
}


@pytest.mark.parametrize("form", ARRAYS)
def test_a_file_that_is_one_json_array_is_told(form: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(ARRAYS[form])
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(ARRAYS[form]))
    for path in (tmp_path / "x.jsonl", tmp_path / "x.jsonl.gz"):
        assert f"{path} is one JSON array, not JSON lines: write each request on a line of its own." == sentence(path)


def test_a_line_that_is_an_array_among_others_is_left_to_the_reader_of_requests(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"[]\n" + GOOD)
    assert list(open_source(tmp_path / "x.jsonl")) == [b"[]", GOOD.rstrip()]


# Parquet


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_params_in_parquet_may_be_text_bytes_or_a_struct(tmp_path: Path) -> None:
    text = json.dumps(HI)
    forms = {"text": pa.array([text]), "bytes": pa.array([text.encode()]), "struct": pa.array([HI])}
    for name, column in forms.items():
        path = write(tmp_path / f"{name}.parquet", custom_id=["a"], params=column)
        assert list(open_source(path)) == [{"custom_id": "a", "params": HI}]


def test_a_null_in_a_struct_is_absent_and_a_map_is_a_dict(tmp_path: Path) -> None:
    block = pa.struct({"type": pa.string(), "text": pa.string(), "source": pa.struct({"url": pa.string()})})
    message = pa.struct({"role": pa.string(), "content": pa.list_(block)})
    params = pa.struct(
        {
            "messages": pa.large_list(message),
            "system": pa.string(),
            "metadata": pa.map_(pa.string(), pa.struct({"x": pa.int64(), "y": pa.int64()})),
            "stop_sequences": pa.list_(pa.string()),
        }
    )
    rows = [
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "metadata": [("k", {"x": 1, "y": None})],
            "stop_sequences": ["a", None],
        },
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"url": "u"}}]}], "system": ""},
        None,
    ]
    path = write(tmp_path / "x.parquet", custom_id=["a", "b", "c"], params=pa.array(rows, params))
    assert [item["params"] for item in open_source(path)] == [
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "metadata": {"k": {"x": 1}},
            "stop_sequences": ["a", None],
        },
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"url": "u"}}]}], "system": ""},
        None,
    ]


def test_ids_in_parquet_become_text_whatever_they_are(tmp_path: Path) -> None:
    ids = [
        pa.array([7, None]),
        pa.array([Decimal("1.50"), None]),
        pa.array([date(2026, 11, 21), None]),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([b"\xc3\xbc", None]),
        pa.array([b"\xff\x00", None]),
    ]
    found = []
    for number, column in enumerate(ids):
        path = write(tmp_path / f"{number}.parquet", Custom_ID=column, PROMPT=["Hi", "Hi"], other=[1, 2])
        found.append([item["custom_id"] for item in open_source(path)])
    assert found == [[x, None] for x in ("7", "1.50", "2026-11-21", "a", "ü", "ff00")]


def test_what_makes_no_params_is_passed_on_under_its_id(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", custom_id=["a", "b", "c"], params=["{broken", None, "[1]"])
    assert [item["params"] for item in open_source(path)] == ["{broken", None, [1]]
    for prompt in (pa.array([None], pa.string()), pa.array([b"\xff"])):
        path = write(tmp_path / "y.parquet", custom_id=["a"], prompt=prompt)
        assert list(open_source(path)) == [{"custom_id": "a", "params": None}]


def test_a_prompt_that_is_no_text_is_not_sent_as_python_would_write_it(tmp_path: Path) -> None:
    for prompt in (HI, ["Hi"]):
        path = write(tmp_path / "x.parquet", custom_id=["a"], prompt=[prompt])
        assert f"Column 'prompt' holds a {type(prompt).__name__}, no text" in sentence(path)


def test_parquet_with_other_columns_is_told_which_it_needs(tmp_path: Path) -> None:
    assert "has no column 'custom_id', but id, prompt" in sentence(write(tmp_path / "a.parquet", id=[1], prompt=["x"]))
    assert "has no column 'params', but custom_id" in sentence(write(tmp_path / "b.parquet", custom_id=[1]))
    both = write(tmp_path / "c.parquet", custom_id=[1], params=["{}"], prompt=["x"])
    assert "leave one of the two" in sentence(both)
    twice = pa.table([pa.array([1]), pa.array([2]), pa.array(["x"])], names=["ID", "Custom_Id", "prompt"])
    parquet.write_table(twice.rename_columns(["CUSTOM_ID", "Custom_Id", "prompt"]), tmp_path / "d.parquet")
    assert "has 2 columns 'custom_id': name them apart" in sentence(tmp_path / "d.parquet")


def test_parquet_does_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema({"custom_id": pa.int64(), "prompt": pa.string()})
    with parquet.ParquetWriter(tmp_path / "x.parquet", schema, compression="none", use_dictionary=False) as writer:
        for part in range(4):
            ids = range(part * 30_000, (part + 1) * 30_000)
            writer.write_table(pa.table([list(ids), [f"{n:02000}" for n in ids]], schema))
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")  # the other keeps up to 60 MB of what was freed
    count, megabytes = growth("source = sys.argv[1]", tmp_path / "x.parquet")
    assert count == 120_000
    assert megabytes < 40


def test_large_rows_of_parquet_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")
    schema = pa.schema({"custom_id": pa.string(), "prompt": pa.string()})
    with parquet.ParquetWriter(tmp_path / "x.parquet", schema, compression="zstd", use_dictionary=False) as writer:
        for n in range(60):
            writer.write_table(pa.table([[f"{n}"], [f"{n}" * 5_000_000]], schema), row_group_size=1)
    sent, invalid, megabytes = peak("source = sys.argv[1]", tmp_path / "x.parquet")
    assert (len(sent), invalid) == (60, {})
    assert megabytes < 700


def test_a_row_of_parquet_that_no_batch_could_hold_is_told_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MAX_BYTES", 100_000)
    assert len(list(open_source(write(tmp_path / "x.parquet", custom_id=["a"], prompt=["x" * 90_000])))) == 1
    path = write(tmp_path / "y.parquet", custom_id=["a", "b"], prompt=["x" * 110_000, "y" * 110_000])
    assert "bytes of prompt in one row, more than a batch holds" in sentence(path)


# What goes wrong with a file


def damaged(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_each_trouble_with_a_file_is_one_clear_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(50_000))
    table = write(tmp_path / "whole.parquet", custom_id=["a"], prompt=[SECRET]).read_bytes()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    for value, expected in {
        tmp_path / "missing.jsonl": "There is no file",
        tmp_path / "missing.parquet": "There is no file",
        tmp_path / "folder.jsonl": "is a folder",
        tmp_path / "folder.parquet": "is a folder",
        tmp_path / "no" / "where.jsonl.gz": "There is no file",
        tmp_path / "folder.jsonl" / ("x" * 300 + ".jsonl"): "File name too long",
        damaged(tmp_path, "nothing.jsonl.gz", b""): "is damaged or cut off",
        damaged(tmp_path, "plain.jsonl.gz", SECRET.encode()): "is damaged or cut off",
        damaged(tmp_path, "cut.jsonl.gz", whole[:-20]): "is damaged or cut off",
        damaged(tmp_path, "flipped.jsonl.gz", whole[:20_000] + b"xxxx" + whole[20_004:]): "is damaged or cut off",
        damaged(tmp_path, "trailing.jsonl.gz", whole + b"garbage"): "is damaged or cut off",
        damaged(tmp_path, "empty.parquet", b""): "is damaged or cut off",
        damaged(tmp_path, "text.parquet", SECRET.encode()): "is damaged or cut off",
        damaged(tmp_path, "cut.parquet", table[:-30]): "is damaged or cut off",
        damaged(tmp_path, "hole.parquet", table[:4] + b"\0" * 60 + table[64:]): "is damaged or cut off",
    }.items():
        said = sentence(value)
        assert expected in said
        assert str(value) in said


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_a_pipe_a_socket_or_a_device_is_told_and_not_waited_for(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe.{ending}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / f"socket.{ending}"))
    (tmp_path / f"device.{ending}").symlink_to("/dev/zero")
    for name in ("pipe", "socket", "device"):
        path = tmp_path / f"{name}.{ending}"
        for value in (path, f"file://{path}"):
            assert "is a pipe, a socket or a device: write the requests to a file" in sentence(value)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "x.jsonl")
    assert len(list(open_source(tmp_path / "link.jsonl"))) == 1


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = damaged(tmp_path, "locked.jsonl", b"{}")
    path.chmod(0)
    if os.geteuid() == 0:  # whom no file refuses
        monkeypatch.setattr(Path, "open", refuse)
    assert "is not allowed" in sentence(path)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("requests.csv", "was given 'requests.csv'"),
        ("s3://bucket/requests.json", "was given 's3://bucket/requests.json'"),
        ("", "a text of 0 characters"),
        (f'[{{"custom_id": "{SECRET}"}}]', "a text of"),
        (f"{SECRET} in a sentence", "a text of"),
        ("s3://bucket/x.jsonl", "pip install 'airflow-provider-claude-batch[s3]'"),
        ("s3://aws@bucket/x.parquet", "no filesystem here for s3:// of s3://aws@bucket/x.parquet"),
        ("gs://bucket/x.jsonl", "pip install the Airflow provider that has it"),
        ("nonsense://bucket/x.jsonl", "no filesystem here for nonsense://"),
        (f"s3://AKIA:{SECRET}@bucket/x.jsonl", "Credentials do not belong in a URI"),
        (f"s3://AKIA:a/{SECRET}@bucket/x.jsonl", "Credentials do not belong in a URI"),
        (f"https://host/x.jsonl?signature={SECRET}", "no filesystem here for https:// of https://host/x.jsonl:"),
        (f"https://user%3A{SECRET}@host/x.jsonl", "Credentials do not belong in a URI"),
    ],
)
def test_a_uri_that_cannot_be_read_is_told_without_its_secrets(uri: str, expected: str) -> None:
    assert expected in sentence(uri)


def test_a_parquet_reader_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", custom_id=["a"], prompt=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'airflow-provider-claude-batch[parquet]'" in sentence(path)


@pytest.mark.parametrize(
    ("value", "uri"),
    [
        ("s3://bucket/x.jsonl", "s3://bucket/x.jsonl"),
        ("s3://aws_conn@bucket/a@b:c#d.jsonl", "s3://aws_conn@bucket/a@b:c#d.jsonl"),
        (ObjectStoragePath("s3://aws_conn@bucket/x.jsonl"), "s3://aws_conn@bucket/x.jsonl"),
        (ObjectStoragePath("s3://bucket/x.jsonl", conn_id="aws"), "s3://aws@bucket/x.jsonl"),
        (f"s3://AKIA:{SECRET}@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        (f"s3://AKIA:{SECRET}/{SECRET}@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        (f"s3://AKIA%3A{SECRET}@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        (f"https://host:8443/x.jsonl?X-Amz-Signature={SECRET}", "https://host:8443/x.jsonl"),
        (f"https://u:{SECRET}?{SECRET}@host:8443/x.jsonl?sig={SECRET}", "https://host:8443/x.jsonl"),
        ("hdfs://conn@host:9000/x.parquet", "hdfs://conn@host:9000/x.parquet"),
        ("/data/x.jsonl.gz", "/data/x.jsonl.gz"),
        (Path("/data/x.jsonl"), "/data/x.jsonl"),
    ],
)
def test_a_receipt_names_a_file_without_credentials(value: Any, uri: str) -> None:
    assert source_of(value) == Source(uri=uri)


def test_a_relative_path_is_named_so_that_another_task_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("x.jsonl") == Source(uri=str(tmp_path / "x.jsonl"))


def test_a_receipt_names_a_query_that_can_be_run_again() -> None:
    short = SqlRequests("db", "SELECT 1", custom_id="id", prompt="p")
    assert source_of(short) == Source(conn_id="db", sql="SELECT 1", custom_id="id")
    for query in (
        SqlRequests("db", "x" * 2_001, custom_id="id", prompt="p"),
        SqlRequests("db", "SELECT ?", custom_id="id", prompt="p", parameters=[SECRET]),
    ):
        assert source_of(query) == Source(conn_id="db", custom_id="id")


@pytest.mark.parametrize("value", [None, [], [{"custom_id": "a"}], ({},)])
def test_a_list_is_no_source_that_can_be_read_again(value: Any) -> None:
    assert source_of(value) is None
