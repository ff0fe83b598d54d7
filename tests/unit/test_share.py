"""One engine for many chains: exact reuse, locks, and what remains after an engine dies."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from persona_collapse.chains import BASE, model_of
from persona_collapse.errors import UserError
from persona_collapse.jobs import MeasureJob
from persona_collapse.runtime import shared_engine
from persona_collapse.study import configuration
from persona_collapse.study.plan import Plan
from runs import HANG

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path):
    return shared_engine.Store(tmp_path / "store")


def job(chain, suffix=".txt", adapters=(), **more):
    """A job; `more`: the files that it reads."""
    given = {"given": {}, "inputs": {}} | more
    return MeasureJob("completions", chain, chain, list(adapters), suffix, **given)


class Engine:
    """Counts its starts, and fails for given chains."""

    def __init__(self, fails=()):
        self.starts, self.worked, self.fails = 0, [], set(fails)

    def open(self):
        self.starts += 1
        return self

    def work(self, engine, one, path):
        if one.chain in self.fails:
            raise RuntimeError("engine died")
        self.worked.append(one.chain)
        path.write_text(f"result of {one.chain}")


def run(store, engine, own, planned, output, keys, limit=10):
    return shared_engine.run(
        store,
        job(own),
        [job(chain) for chain in planned],
        key=lambda one: keys.get(one.chain),
        open_engine=engine.open,
        work=engine.work,
        limit=limit,
        output=output,
        log=lambda message: None,
    )


def test_a_result_may_be_a_folder(store, tmp_path):
    one = job("a", suffix="")

    def write(folder):
        (folder / "weights").write_text("w")
        (folder / ".left-by-a-killed-job").write_text("x")
        (folder / "manifest").write_text("m")

    store.put(one, "key", write)
    assert store.holds(one, "key") and not store.holds(one, "other")
    store.take(one, tmp_path / "made")
    assert {p.name: p.read_text() for p in (tmp_path / "made").iterdir()} == {
        "weights": "w",
        "manifest": "m",
    }
    (store.path(one) / "weights").write_text("edited")
    assert not store.holds(one, "key")


def test_what_a_result_was_bounded_by_is_recorded_and_no_part_of_its_key(tmp_path):
    folder, keys = tmp_path / "store", {"a": "key a"}
    run(shared_engine.Store(folder, {"jobs_per_gpu": 3}), Engine(), "a", "a", tmp_path / "a", keys)
    record = json.loads((folder / "completions/a.json").read_text())
    assert record["runtime"] == {"jobs_per_gpu": 3}
    engine = Engine()
    other = shared_engine.Store(folder, {"jobs_per_gpu": 1})
    assert run(other, engine, "a", "a", tmp_path / "a", keys) == 0 and not engine.starts


def test_what_becomes_ready_meanwhile_is_done_too(store, tmp_path):
    """Becomes ready during the work, like a second stage after the first."""
    keys = {"a": "key a", "b": "key b"}
    engine = Engine()

    def work(one, task, path):
        engine.work(one, task, path)
        if task.chain == "b":
            keys["first"] = "key first"

    done = shared_engine.run(
        store, job("a"), [job(c) for c in ("first", "never", "b")],
        key=lambda one: keys.get(one.chain), open_engine=engine.open, work=work, limit=10,
        output=tmp_path / "a.txt", log=lambda message: None,
    )  # fmt: skip
    assert done == 3 and engine.worked == ["a", "b", "first"]


def test_one_start_serves_all_chains_and_their_own_jobs_start_none(store, tmp_path):
    keys = {c: f"key {c}" for c in "abc"}
    engine = Engine()
    assert run(store, engine, "a", "abc", tmp_path / "a.txt", keys) == 3
    for chain in "bc":
        assert run(store, engine, chain, "abc", tmp_path / f"{chain}.txt", keys) == 0
    assert engine.starts == 1 and engine.worked == ["a", "b", "c"]
    assert [(tmp_path / f"{c}.txt").read_text() for c in "abc"] == [f"result of {c}" for c in "abc"]


def test_one_changed_chain_is_done_again_alone(store, tmp_path):
    keys = {c: f"key {c}" for c in "abc"}
    run(store, Engine(), "a", "abc", tmp_path / "a.txt", keys)
    engine = Engine()
    changed = keys | {"b": "another key"}
    assert run(store, engine, "b", "abc", tmp_path / "b.txt", changed) == 1
    assert engine.worked == ["b"]
    assert run(store, engine, "c", "abc", tmp_path / "c.txt", changed) == 0


def test_chains_that_are_not_ready_and_those_beyond_the_limit_are_left(store, tmp_path):
    engine = Engine()
    keys = {"a": "1", "c": "3", "d": "4"}
    assert run(store, engine, "a", "abcd", tmp_path / "a.txt", keys, limit=2) == 2
    assert engine.worked == ["a", "c"]
    with pytest.raises(UserError, match="adapter of the chain is missing"):
        run(store, engine, "b", "abcd", tmp_path / "b.txt", keys)


def test_an_engine_that_dies_keeps_what_it_finished(store, tmp_path):
    keys = {c: c for c in "abcd"}
    engine = Engine(fails="c")
    assert run(store, engine, "a", "abcd", tmp_path / "a.txt", keys) == 2
    healthy = Engine()
    assert run(store, healthy, "b", "abcd", tmp_path / "b.txt", keys) == 0
    assert run(store, healthy, "c", "abcd", tmp_path / "c.txt", keys) == 2
    assert healthy.worked == ["c", "d"]


def test_a_chain_that_fails_fails_its_own_job_and_leaves_nothing(store, tmp_path):
    with pytest.raises(RuntimeError, match="engine died"):
        run(store, Engine(fails="a"), "a", "ab", tmp_path / "a.txt", {"a": "1", "b": "2"})
    assert not (tmp_path / "a.txt").exists()
    assert not store.holds(job("a"), "1")


@pytest.mark.parametrize("damage", ["edit", "cut", "record"])
def test_a_result_that_was_changed_is_not_used(store, tmp_path, damage):
    run(store, Engine(), "a", "a", tmp_path / "a.txt", {"a": "1"})
    kept = tmp_path / "store/completions/a.txt"
    if damage == "edit":
        kept.write_text("result of b")
    elif damage == "cut":
        kept.write_text("resu")
    else:
        kept.with_name("a.json").write_text('{"key": "1"')
    engine = Engine()
    assert run(store, engine, "a", "a", tmp_path / "a.txt", {"a": "1"}) == 1
    assert (tmp_path / "a.txt").read_text() == "result of a"


def test_editing_an_output_in_place_does_not_reach_the_next_one(store, tmp_path):
    run(store, Engine(), "a", "a", tmp_path / "a.txt", {"a": "1"})
    with open(tmp_path / "a.txt", "a", encoding="utf-8") as handle:  # the same inode as the store's
        handle.write(" and more")
    (tmp_path / "a.txt").unlink()
    run(store, Engine(), "a", "a", tmp_path / "a.txt", {"a": "1"})
    assert (tmp_path / "a.txt").read_text() == "result of a"


def hold(root, ready):
    with shared_engine.Store(root).claimed(job("b"), wait=True):
        ready.set()
        time.sleep(HANG)  # until it is killed


def test_a_chain_that_another_job_works_on_is_passed_over(store, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(store.root, ready))
    other.start()
    try:
        assert ready.wait(HANG)
        engine = Engine()
        assert run(store, engine, "a", "abc", tmp_path / "a.txt", {c: c for c in "abc"}) == 2
        assert engine.worked == ["a", "c"]
        # Killed without a chance to clean up: the kernel releases its lock.
        os.kill(other.pid, signal.SIGKILL)
        other.join(HANG)
        assert run(store, engine, "b", "abc", tmp_path / "b.txt", {c: c for c in "abc"}) == 1
    finally:
        other.kill()


def test_keys_follow_every_input(tmp_path, make_adapter):
    base, questions, rows = (tmp_path / name for name in ("model.json", "q.jsonl", "rows.jsonl"))
    for path in (base, questions, rows):
        path.write_text("{}")

    def key(code="code", adapters=(), **given):
        given = {"questions": {"file": str(questions)}, "seed": 1} | given
        one = job("a", adapters=adapters, given=given, inputs={"rows": str(rows)})
        return shared_engine.key_of(one, code, base)

    first = key()
    assert key() == first
    assert (
        len({first, key(seed=2), key("other"), key(adapters=[str(make_adapter(1, 4, False))])}) == 4
    )
    questions.write_text("two\n")
    second = key()
    rows.write_text("two\n")
    third = key()
    base.write_text("[]")
    assert len({first, second, third, key()}) == 4


def test_a_job_has_a_key_only_when_all_it_needs_is_there(tmp_path, make_adapter):
    base = tmp_path / "model.json"
    base.write_text("{}")
    folder = Path(make_adapter(1, 4, False))
    one = job("a", adapters=[str(folder)])
    manifest = folder / "manifest.json"
    manifest.unlink(missing_ok=True)
    assert shared_engine.ready_key(one, "code", base) is None
    manifest.write_text("{}")
    key = shared_engine.ready_key(one, "code", base)
    assert key and shared_engine.ready_key(one, "other code", base) != key
    assert shared_engine.ready_key(job("a", inputs={"rows": "none"}), "code", base) is None


def test_answers_are_served_together_and_then_the_job_ends(store, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    plan = Plan(configuration.check(config))
    # An engine serves only chains of its base model.
    answers, chains = (
        [job for job in jobs if model_of(job.chain) == BASE]
        for jobs in (plan.couplings_answers, plan.chains_answers)
    )
    assert len(answers) > 1
    worked = []

    def done_by(own):
        """Order of work of a job when all adapters are ready; its own work comes first."""
        worked.clear()
        shared_engine.run(
            store,
            own,
            plan.beside(own),
            key=lambda one: "key",
            open_engine=lambda: None,
            work=lambda engine, one, path: (worked.append(one), path.write_text("x")),
            limit=1000,
            output=tmp_path / own.kind / own.name,
            log=lambda message: None,
        )
        return list(worked)

    # Trainings wait for the first job, so it ends once the answers of the other couplings are done.
    assert done_by(answers[1]) == [answers[1], answers[0], *answers[2:]]
    assert done_by(answers[0]) == []
    # The next engine serves the chains, in plan order, but no coupling answers.
    store.path(answers[0]).unlink()
    assert done_by(chains[3]) == [chains[3], *chains[:3], *chains[4:]]


def test_what_others_made_is_not_read_again_and_its_own_job_makes_good_what_is_damaged(
    store, tmp_path, monkeypatch
):
    names = [f"c{i}" for i in range(20)]
    keys = dict.fromkeys(names, "key")
    run(store, Engine(), names[0], names, tmp_path / "out", keys, limit=100)
    store.path(job("c7")).write_text("damaged")
    keys["c0"] = "changed"
    read, hashed = [], shared_engine.sha256
    monkeypatch.setattr(shared_engine, "sha256", lambda path: read.append(path) or hashed(path))
    engine = Engine()
    run(store, engine, "c0", names, tmp_path / "out", keys, limit=100)
    assert engine.worked == ["c0"] and set(read) == {store.path(job("c0"))}
    run(store, engine, "c7", names, tmp_path / "out7", keys, limit=100)
    assert engine.worked == ["c0", "c7"] and "result of c7" in (tmp_path / "out7").read_text()


def test_files_that_jobs_share_are_hashed_once_and_again_when_they_change(tmp_path, monkeypatch):
    base, rows = tmp_path / "model.json", tmp_path / "rows.jsonl"
    base.write_text("{}")
    rows.write_text("one")
    read, hashed = [], shared_engine.sha256
    monkeypatch.setattr(shared_engine, "sha256", lambda path: read.append(path) or hashed(path))
    jobs = [job(f"c{i}", inputs={"rows": str(rows)}) for i in range(20)]
    keys = {shared_engine.key_of(one, "code", base) for one in jobs}
    assert len(keys) == 20 and len(read) == 2
    rows.write_text("another")
    assert shared_engine.key_of(jobs[0], "code", base) not in keys
