"""Labels are read as they are documented, and each mistake in them is one sentence that says where it is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.labels import Labels, Range, read_labels


def read(folder: Path, text: str | bytes) -> Labels:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(path)


def test_labels_of_sessions(tmp_path: Path) -> None:
    """1 is anomalous, 0 normal, nothing not known; quotes, blank lines, a byte-order mark and CRLF do no harm."""
    found = read(tmp_path, '\ufeffSession, Label\r\na,1\r\n\r\n"b,c",0\r\nd,\r\ne, TRUE\r\na,true\r\n')
    assert found == Labels("sessions", sessions={"a": True, "b,c": False, "d": None, "e": True})
    assert len(found) == 4


def test_labels_of_lines(tmp_path: Path) -> None:
    """Lines are named by their numbers, which count from 1; a compressed file is read as a plain one."""
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(gzip.compress(b"line,label\n3,1\n10,0\n"))
    assert read_labels(path) == Labels("lines", lines={3: True, 10: False})


def test_labels_of_ranges(tmp_path: Path) -> None:
    """Ranges are of all sessions or of one, with times in any form that events may have."""
    assert read(tmp_path, "start,end\n1700000000,2023-11-14T22:13:21Z\n").ranges == [
        Range(1_700_000_000_000, 1_700_000_001_000, None)
    ]
    assert read(tmp_path, "start,end,session\n5,5,a\n6,7,\n").ranges == [
        Range(5_000, 5_000, "a"), Range(6_000, 7_000, None)
    ]  # fmt: skip


def test_a_file_without_rows_says_that_all_is_normal(tmp_path: Path) -> None:
    """What is not named is normal, so the columns alone are labels."""
    assert read(tmp_path, "start,end\n") == Labels("ranges")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names the columns"),
        ("a,1\n", "the first line of LABELS is 'a,1'; it names the columns: write session,label or"),
        ("session,label\na\n", "row 2 of LABELS is no label: it has 1 values for the 2 columns session,label"),
        ("session,label\n\na,1,2\n", "row 3 of LABELS is no label: it has 3 values"),
        ("session,label\na,yes\n", "the label 'yes' is none of 1 (anomalous), 0 (normal) and nothing (not known)"),
        ("session,label\na,1\nb,0\na,0\n", "row 4 of LABELS is no label: session a has another label above"),
        ("line,label\n0,1\n", "'0' is no number of a line, which count from 1"),
        ("line,label\nx,1\n", "'x' is no number of a line"),
        ("line,label\n7,1\n7,\n", "line 7 has another label above"),
        ("start,end\nyesterday,5\n", "row 2 of LABELS is no label: the time 'yesterday' is neither ISO 8601 nor"),
        ("start,end\n9,5\n", "it ends, 5, before it begins, 9; correct it or take it out"),
        (b"session,label\n\xff,1\n", "cannot be read: "),
        ('session,label\n"a,1\n', "cannot be read: "),
    ],
)
def test_a_mistake_is_told_with_its_row(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    """Each mistake names the file, the row, what is wrong and what is wanted."""
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert sentence.replace("LABELS", str(tmp_path / "labels.csv")) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and a damaged .gz are sentences too."""
    damaged = tmp_path / "labels.csv.gz"
    damaged.write_bytes(b"session,label\n")
    for path in (tmp_path / "none.csv", tmp_path, damaged):
        with pytest.raises(UsageError, match="cannot be read: "):
            read_labels(path)
