"""S3 through an Airflow connection, in an environment of its own: the Amazon provider drags in fifty packages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.s3, pytest.mark.timeout(1_800)]
ROOT = Path(__file__).parent.parent
SECRET = "the-secret-key"
LINES = ['{"custom_id": "a"}', '{"custom_id": "b"}']
ROWS = [
    {"custom_id": "1", "params": {"messages": [{"role": "user", "content": "Hi"}]}},
    {"custom_id": "2", "params": {"messages": [{"role": "user", "content": "Ho"}]}},
]
READ = {
    "s3://aws_conn@bucket/x.jsonl": LINES,
    "s3://aws_conn@bucket/x.jsonl.gz": LINES,
    "s3://aws_conn@bucket/x.parquet": ROWS,
}
REFUSED = {
    "s3://aws_conn@bucket/missing.jsonl": "There is no file s3://aws_conn@bucket/missing.jsonl",
    "s3://aws_conn@no-bucket/x.parquet": "There is no file s3://aws_conn@no-bucket/x.parquet",
    "s3://aws_conn@bucket/folder.jsonl": "is a folder: name one file in it",
    "s3://aws_conn@bucket/cut.jsonl.gz": "is damaged or cut off",
    "s3://aws_conn@bucket/cut.parquet": "is damaged or cut off",
    "s3://nowhere@bucket/x.jsonl": "There is no connection 'nowhere'",
    f"s3://AKIA:{SECRET}@bucket/x.jsonl": "Credentials do not belong in a URI",
    "s3://trouble@403/x.jsonl": "Reading s3://trouble@403/x.jsonl is not allowed",
}
PASSING = ["s3://trouble@500/x.jsonl", "s3://trouble@503/x.parquet", "s3://dead@bucket/x.jsonl"]


def call(*command: str | Path, **options: Any) -> None:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds this package with its extras s3 and parquet, and a server of S3."""
    folder = tmp_path_factory.mktemp("s3")
    python = folder / "venv/bin/python"
    call(sys.executable, "-m", "venv", folder / "venv")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    pip = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    call(*pip, "--quiet", "--constraint", ROOT / "constraints.txt", f"{ROOT}[parquet,s3]", "moto[server]", "psutil")
    return python


@pytest.fixture(scope="module")
def found(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of reading each URI."""
    folder = tmp_path_factory.mktemp("airflow")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AWS"))}
    env = {**inherited, "AIRFLOW_HOME": str(folder)}
    script = Path(__file__).with_name("s3.py")
    call(python, script, folder / "report.json", env=env, cwd=folder, input=json.dumps([*READ, *REFUSED, *PASSING]))
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("uri", READ)
def test_a_file_in_s3_is_read_and_its_connection_stays_in_its_name(uri: str, found: dict[str, Any]) -> None:
    assert found[uri] == {"items": READ[uri], "uri": uri}


def test_an_object_storage_path_is_read_like_its_uri(found: dict[str, Any]) -> None:
    assert found["object"] == {"items": LINES, "uri": "s3://aws_conn@bucket/x.jsonl"}


@pytest.mark.parametrize("uri", REFUSED)
def test_what_another_try_would_meet_again_is_final(uri: str, found: dict[str, Any]) -> None:
    assert found[uri]["kind"] == "Misconfigured"
    assert REFUSED[uri] in found[uri]["said"]
    assert SECRET not in found[uri]["said"]


@pytest.mark.parametrize("uri", PASSING)
def test_what_may_pass_is_not_final(uri: str, found: dict[str, Any]) -> None:
    assert found[uri]["kind"] == "SourceUnavailable"
    assert f"{uri} cannot be read for now" in found[uri]["said"]


def test_a_wrong_key_is_told_without_it(found: dict[str, Any]) -> None:
    assert found["wrong key"]["kind"] == "Misconfigured"
    assert "is not allowed: check the rights of the file, or of the connection" in found["wrong key"]["said"]
    assert SECRET not in found["wrong key"]["said"]


def test_a_large_file_does_not_stay_in_memory(found: dict[str, Any]) -> None:
    assert found["memory"]["count"] == 40_000
    assert found["memory"]["megabytes"] < 40
