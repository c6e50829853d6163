"""Secrets of any form leave no trace; other text stays as it is."""

from __future__ import annotations

import pytest

from ops.redact import redact

AWS_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEK3y"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://ann:pw@db:5432/x", "postgresql+psycopg2://***@db:5432/x"),
        ("https://token@host", "https://***@host"),
        ("https://ann:p@ss@host/a@b", "https://***@host/a@b"),
        ("http://ann:pa/ss@h", "http://***@h"),
        ("http://ann:pa/s/s@h/x and http://b:pw@h", "http://***@h/x and http://***@h"),
        ("http://ann:pa?s#s@h", "http://***@h"),
        ("http://:pw@h", "http://***@h"),
        ("jdbc:postgresql://ann:pw@h/x", "jdbc:postgresql://***@h/x"),
        ("jdbc:oracle:thin:ann/pw@//h:1521/x", "jdbc:oracle:thin:***@//h:1521/x"),
        ("ann:pw@db:5432/x", "***@db:5432/x"),
        ("http%3A%2F%2Fann%3Apw%40h%2Fx", "http%3A%2F%2F***%40h%2Fx"),
        ("odbc_connect=SERVER%3Dh%3BPWD%3Dp%2Bw%3B", "odbc_connect=SERVER%3Dh%3BPWD%3D***%3B"),
        ("https://h/a?X-Amz-Signature=f0f0&x=1", "https://h/a?X-Amz-Signature=***&x=1"),
        ("https://h/a?x=1&access_token=f0f0#b", "https://h/a?x=1&access_token=***#b"),
        ("https://h/a?sig=f%2B0&sv=1", "https://h/a?sig=***&sv=1"),
        ("https://h/cb#access_token=f0&x=1", "https://h/cb#access_token=***&x=1"),
        ("host=db user=ann password=p@w/x dbname=y", "host=db user=ann password=*** dbname=y"),
        ("Server=h;Password='a b';Db=x", "Server=h;Password='***';Db=x"),
        ("pwd = a\\ b port=1", "pwd = *** port=1"),
        ('{"password": "p w", "user": "x"}', '{"password": "***", "user": "x"}'),
        ("AccountName=x;AccountKey=aa+/==;B=1", "AccountName=x;AccountKey=***;B=1"),
        (f"AWS_SECRET_ACCESS_KEY={AWS_SECRET}", "AWS_SECRET_ACCESS_KEY=***"),
        (f"the key {AWS_SECRET} is wrong", "the key *** is wrong"),
        ("AKIAIOSFODNN7EXAMPLE is unknown", "*** is unknown"),
        ("Authorization: Bearer eyJhbGciOi.J9-x_y", "Authorization: Bearer ***"),
        ("Authorization: Basic YW5uOmh1bnRlcjI=", "Authorization: Basic ***"),
        ("ghp_0123456789abcdefghij", "***"),
    ],
)
def test_secrets_are_taken_out(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b.png",
        "models:/name@alias",
        "http://host:5000/a@b",
        "http://host:5000",
        "https://host/a?column=image&page=2",
        "file:///data/line-1/a b@2.png#x/y@z.png",
        "0123456789abcdef0123456789abcdef01234567",
        "/data/Washers/2026/november/line1/camera",
        "error: where 'width > 1000' is not a condition",
        "sqlite:////tmp/out/mlflow.db",
        "2026-11-20T10:30:00",
        "1:2:3@512-100",
        "{product}/{split}/{name}",
    ],
)
def test_other_text_stays(text):
    assert redact(text) == text
