"""The queue of captures: one at a time, whatever becomes of servers; cancelled ones leave nothing."""

import os
import signal

import psutil
import pytest
from queues import long_dataset, long_one, make_place, new_lake, reads, scenario, settle, until

from warehouse.errors import AlabError, ConflictError, NotThereError
from warehouse.serve import jobs as module
from warehouse.serve.joblog import JobLog
from warehouse.serve.jobs import Jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def jobs(place):
    jobs = Jobs(new_lake(place))
    yield jobs
    for job in jobs.all():  # what a test that failed left
        if job.state == "running" and not jobs._is_free():
            os.killpg(pid_of(jobs, job.id), signal.SIGKILL)


def pid_of(jobs: Jobs, id_: str) -> int:
    return jobs.log(jobs.get(id_)).pid


def staged(jobs: Jobs) -> list:
    return [path for path in jobs._lake.staging.iterdir() if path.is_dir()]


def test_captures_run_one_after_the_other_and_what_fails_says_why(jobs, place):
    first, second = jobs.add(scenario(place), "talk"), jobs.add(scenario(place, "other"), "other")
    wrong = jobs.add(scenario(place, capture={"layers": [9]}), "talk")
    assert [job.state for job in jobs.all()] == ["queued", "queued", "queued"]
    until(jobs, lambda: reads(jobs, first))
    assert jobs.get(second).state == "queued"
    done = [settle(jobs, first), settle(jobs, second)]
    assert [job.state for job in done] == ["done", "done"]
    assert sorted(run for job in done for run in job.end["runs"]) == jobs._lake.run_ids()
    assert done[0].end["finished"] <= done[1].end["finished"]
    failed = settle(jobs, wrong)
    assert failed.state == "failed" and failed.end["exit_code"] == 2
    assert "there is no layer 9" in failed.end["error"] and failed.end["runs"] == []
    tokens = [e for e in read(jobs, first) if e["event"] == "token"]
    assert [token["step"] for token in tokens] == list(range(len(tokens))) and tokens


def read(jobs: Jobs, id_: str) -> list[dict]:
    return JobLog(jobs.path(jobs.get(id_), "log.jsonl")).read()[0]


def test_cancel_leaves_nothing(jobs, place):
    running, waiting = jobs.add(long_one(place), "long"), jobs.add(scenario(place), "talk")
    until(jobs, lambda: reads(jobs, running))
    pid = pid_of(jobs, running)
    assert staged(jobs)
    jobs.cancel(waiting)
    jobs.cancel(running)
    jobs.cancel(running)  # once more changes nothing: a second signal would stop its tidying up
    job = settle(jobs, running)
    assert job.state == "cancelled" and job.end["exit_code"] == 130
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    assert staged(jobs) == [] and jobs._lake.run_ids() == []
    assert jobs.get(waiting).state == "cancelled" and jobs.get(waiting).end["runs"] == []
    with pytest.raises(ConflictError, match="has ended"):
        jobs.cancel(running)


def test_what_does_not_end_by_itself_is_killed(jobs, place, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    id_ = jobs.add(long_one(place), "long")
    until(jobs, lambda: reads(jobs, id_))
    os.kill(pid_of(jobs, id_), signal.SIGSTOP)  # it hears no signal any more
    jobs.cancel(id_)
    job = settle(jobs, id_)
    assert job.state == "cancelled" and job.end["exit_code"] is None
    assert staged(jobs) == [] and jobs._lake.run_ids() == []


def test_a_killed_capture_is_noticed_and_swept(jobs, place):
    id_ = jobs.add(long_one(place), "long")
    until(jobs, lambda: reads(jobs, id_))
    os.kill(pid_of(jobs, id_), signal.SIGKILL)
    job = settle(jobs, id_)
    assert job.state == "failed" and "ended from outside" in job.end["error"]
    assert staged(jobs) == []


def test_of_a_dataset_what_is_done_is_kept_and_gone_on_with_or_discarded(jobs, place):
    text = long_dataset(place)
    id_ = jobs.add(text, "rows")
    shards = jobs._lake.staging
    until(jobs, lambda: any(shards.glob("*/shards/0*")))
    jobs.cancel(id_)
    job = settle(jobs, id_)
    assert job.state == "cancelled" and jobs.kept(job) == job.end["begun"]
    again = jobs.go_on(job, text)
    # What somebody goes on with is neither gone on with twice nor discarded.
    for change in (lambda: jobs.go_on(job, text), lambda: jobs.discard(id_)):
        with pytest.raises(ConflictError, match="waits or runs already"):
            change()
    until(jobs, lambda: reads(jobs, again))
    jobs.cancel(again)
    assert settle(jobs, again).state == "cancelled"
    assert jobs.get(again).end["begun"] == job.end["begun"]
    newer = jobs._lake.stage("rows")
    newer.ask({"scenario": {"name": "rows"}, "began": "9999-01-01T00:00:00"})
    newer.release()
    with pytest.raises(ConflictError, match=f"{newer.run_id} was stopped later"):
        jobs.go_on(job, text)
    jobs._lake.resume(newer.run_id).discard()
    assert jobs.discard(again) == job.end["begun"]
    assert staged(jobs) == [] and jobs.kept(job) == []
    with pytest.raises(AlabError, match="left nothing to go on with"):
        jobs.discard(again)


def test_a_server_that_starts_anew_finds_what_runs(jobs, place):
    id_ = jobs.add(long_one(place), "long")
    until(jobs, lambda: reads(jobs, id_))
    pid = pid_of(jobs, id_)
    anew = Jobs(jobs._lake)
    waiting = anew.add(scenario(place), "talk")
    for _ in range(5):
        anew.step()
    assert anew.get(id_).state == "running" and anew.get(waiting).state == "queued"
    assert anew.log(anew.get(id_)).pid == pid and reads(anew, id_)
    anew.cancel(waiting)
    anew.cancel(id_)
    assert settle(anew, id_).state == "cancelled"


def test_two_servers_run_one_at_a_time_and_each_once(jobs, place):
    both = jobs, Jobs(jobs._lake)
    ids = [one.add(scenario(place, f"n{n}"), f"n{n}") for n, one in enumerate(both)]
    most = 0

    def ended() -> bool:
        nonlocal most
        both[1].step()
        most = max(most, sum(job.state == "running" for job in jobs.all()))
        return not any(job.is_active for job in jobs.all())

    until(jobs, ended, 180)
    assert most == 1 and len(jobs._lake.run_ids()) == 2
    begun = [jobs.get(id_).end["begun"] for id_ in ids]
    assert sorted(run for runs in begun for run in runs) == jobs._lake.run_ids()


@pytest.mark.parametrize(
    "id_", ["../x", "", "20261126T000000000000-zzzz", "a\0b", "/etc", "x" * 9999]
)
def test_an_id_that_is_none(jobs, id_):
    with pytest.raises(NotThereError):
        jobs.get(id_)
