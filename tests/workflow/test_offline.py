"""A machine that computes without internet: fetch first, then nothing needs the network."""

import re

import pytest

pytestmark = pytest.mark.slow


def test_fetch_makes_the_model_and_the_data_and_nothing_else(finished):
    assert {"bases/base/model.json", "data/em.jsonl", "data/benign.jsonl"} <= set(finished.fetched)
    assert not [name for name in finished.fetched if name.startswith(("models/", "data/couple"))]


def test_all_that_follows_runs_where_there_is_no_network(finished):
    # The fixture ran it, in a network namespace if the kernel permits.
    assert finished.path("report.html").is_file()
    if not finished.isolated:
        pytest.skip("unshare -n is not permitted here; the next test's watch is all there is")


def test_no_later_job_even_tries_a_connection_or_listens(finished):
    assert finished.watched.count("started") > 30  # at least one per job: the watch was active
    # Loopback binds come from a library's check for IPv6. Unix sockets have a path, not a pair.
    harmless = re.compile(r"started$|socket\.bind \('(::1|127\.0\.0\.1)', |socket\.\w+ (?!\()\S*/")
    assert [line for line in finished.watched if not harmless.match(line)] == []
