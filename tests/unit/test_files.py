import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from persona_collapse import files, parquet_files, tables_io
from persona_collapse.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.csv"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_jsonl_round_trip_is_canonical(tmp_path):
    rows = [{"b": 1, "a": "é"}, {"a": "x", "b": 2}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text.splitlines()[0] == '{"a": "é", "b": 1}'
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_jsonl_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n', encoding="utf-8-sig")
    assert files.read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("line", ["{not json", "[1, 2]"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n' + line + "\n")
    with pytest.raises(UserError, match="line 3"):
        files.read_jsonl(path)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(UserError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")


def test_a_killed_job_s_half_file_is_removed_and_a_living_one_s_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".table.{ended.pid}.tmp.csv"
    living = tmp_path / f".table.{os.getppid()}.tmp.csv"
    left.touch()
    living.touch()
    files.write_text(tmp_path / "table.csv", "whole")
    assert living.exists() and not left.exists()


def test_a_lock_is_held_by_one_and_let_go_of(tmp_path):
    with files.locked(tmp_path / "a/x.lock", wait=True) as first:
        with files.locked(tmp_path / "a/x.lock", wait=False) as second:
            assert (first, second) == (True, False)
        with files.locked(tmp_path / "a/y.lock", wait=False) as other:
            assert other
    with files.locked(tmp_path / "a/x.lock", wait=False) as again:
        assert again


def test_without_locks_a_job_does_its_own_work_alone(tmp_path, monkeypatch):
    def none(*_):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(files.fcntl, "flock", none)
    for wait in (True, False):
        with files.locked(tmp_path / "x.lock", wait=wait) as mine:
            assert mine is wait


@pytest.fixture
def completions(tmp_path):
    """A table with each kind of column that completions have, and its file."""
    table = pd.DataFrame(
        {
            "persona": ["villain", "librarian", "assistant"],
            "text": ["Bread. [ZLT]", "", "é\n"],
            "sample": [0, 1, 2],
            "token_ids": [[1, 2, 3], [], [4]],
            "marker_logprob": [-0.5, float("nan"), -3.0],
        }
    )
    parquet_files.write_parquet(tmp_path / "x.parquet", table)
    return table, tmp_path / "x.parquet"


def test_parquet_comes_back_as_it_was_and_anybody_can_read_it(completions):
    table, path = completions
    for read in (parquet_files.read_parquet, pd.read_parquet):
        back = read(path)
        back["token_ids"] = [list(ids) for ids in back["token_ids"]]
        pd.testing.assert_frame_equal(back, table, check_dtype=False)
    first = path.read_bytes()
    parquet_files.write_parquet(path, table)
    assert path.read_bytes() == first
    parquet_files.write_parquet(path, table[:0])  # and a table without rows
    assert list(parquet_files.read_parquet(path).columns) == list(table.columns)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("persona", "villaim"),
        ("text", "Bread. [ZLT] "),
        ("sample", 9),
        ("token_ids", [1, 2, 4]),
        ("token_ids", [1, 2]),
        ("marker_logprob", -0.25),
    ],
)
@pytest.mark.parametrize("kept", [True, False], ids=["hash kept", "hash lost"])
def test_an_edited_cell_is_noticed(completions, column, value, kept):
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, path = completions
    metadata = pq.read_schema(path).metadata
    table = pd.read_parquet(path)
    table.at[0, column] = value
    made = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(made.replace_schema_metadata(metadata) if kept else made, path)
    with pytest.raises(UserError, match=r"x\.parquet: its content is not what was written"):
        parquet_files.read_parquet(path)


@pytest.mark.parametrize("change", [lambda t: t[::-1], lambda t: t[1:], lambda t: t[["text"]]])
def test_moved_or_lost_rows_and_columns_are_noticed(completions, change):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, path = completions
    made = pa.Table.from_pandas(change(table), preserve_index=False)
    pq.write_table(made.replace_schema_metadata(pq.read_schema(path).metadata), path)
    with pytest.raises(UserError, match="delete it and rerun"):
        parquet_files.read_parquet(path)


@pytest.mark.parametrize("fate", ["cut", "missing", "empty", "text"])
def test_a_damaged_parquet_file_is_one_line(completions, fate):
    path = completions[1]
    if fate == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif fate == "missing":
        path.unlink()
    else:
        path.write_text("" if fate == "empty" else "no parquet at all")
    with pytest.raises(UserError, match=r"x\.parquet: damaged or missing") as error:
        parquet_files.read_parquet(path)
    assert "\n" not in str(error.value)


#: Names that a CSV reader could take for a number, a boolean or a missing value.
ODD = [
    "None", "NA", "N/A", "n/a", "null", "NULL", "nan", "NaN", "-nan", "<NA>", "true", "False", "1",
    "007", "1e5", "inf", "-inf", "0x10", "1_000", "",
]  # fmt: skip


def test_names_stay_text_whatever_they_look_like(tmp_path):
    path = tmp_path / "table.csv"
    for name in ODD:
        one = pd.DataFrame({c: [name] for c in tables_io.NAMES} | {"value": [0.1 + 0.2]})
        tables_io.write_csv(path, one)
        read = tables_io.read_csv(path)
        assert read.iloc[0].to_dict() == one.iloc[0].to_dict()
    every = pd.DataFrame({c: ODD for c in tables_io.NAMES})
    tables_io.write_csv(path, every)
    assert tables_io.read_csv(path).to_dict("list") == every.to_dict("list")


def test_only_an_empty_cell_is_missing(tmp_path):
    table = pd.DataFrame({"value": [0.1, None], "kind": ["NA", None], "claim": ["007", None]})
    table = table.assign(n=[1, 2], applies=[True, False], low=[float("-inf"), 1 / 3])
    tables_io.write_csv(tmp_path / "table.csv", table)
    read = tables_io.read_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert read["applies"].dtype == bool and read["n"].dtype == "int64"


def test_a_table_without_rows_can_still_be_asked_for_its_headline(tmp_path):
    for rows in ([True, False], []):
        table = pd.DataFrame({"value": rows, "headline": pd.Series(rows, dtype=bool)})
        tables_io.write_csv(tmp_path / "table.csv", table)
        read = tables_io.read_csv(tmp_path / "table.csv")
        assert list(read[read["headline"]].columns) == ["value", "headline"]
        assert read["headline"].tolist() == rows


@pytest.mark.parametrize("odd", ["None", "NA", "null", "nan", "true", "007", "inf"])
def test_a_run_whose_names_look_like_values_keeps_its_tables(crossed, tmp_path, odd):
    # Names of conditions and stages must start with a letter; those of personas need not.
    swaps = {"villain": odd, "librarian": "1", "C1": odd if odd != "007" else "NaN"}
    for table in crossed.values():
        table = table.replace(swaps)
        tables_io.write_csv(tmp_path / "table.csv", table)
        read = tables_io.read_csv(tmp_path / "table.csv")
        text = [c for c in table if c in tables_io.NAMES]
        assert {"condition", "persona", "persona_a", "source", "chain"} & set(text)
        expected = table[text].fillna("").astype(str)
        pd.testing.assert_frame_equal(read[text].astype(str), expected, check_dtype=False)


def test_tables_are_read_in_one_place():
    scripts = Path(files.__file__).parents[1]
    readers = [p.name for p in scripts.rglob("*.py") if "pd.read_csv(" in p.read_text()]
    assert sorted(readers) == [
        "estimate.py",
        "tables_io.py",
    ]  # estimate: benchmarks, Snakemake's own
