"""A warehouse whose server launches captures of a tiny model, for the tests of the queue."""

import shutil
import time
from pathlib import Path

import tiny
import yaml

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.serve.jobs import Job, Jobs

MESSAGES = [{"role": "user", "content": "Hello </script> there"}]


def make_place(folder: Path) -> Path:
    """A folder with a tiny model, and an empty warehouse `lab`."""
    tiny.model_of("llama").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    new_lake(folder)
    return folder


def new_lake(place: Path) -> Lake:
    """The warehouse, empty again."""
    shutil.rmtree(place / "lab", ignore_errors=True)
    lake = Lake(place / "lab")
    lake.prepare()
    catalog.sync(lake)
    return lake


def scenario(place: Path, name: str = "talk", **changes) -> str:
    """A scenario of the tiny model."""
    data = {
        "name": name,
        "model": {"id": str(place / "model"), "dtype": "float32", "device": "cpu"},
        "prompt": {"messages": MESSAGES},
        "generation": {"max_new_tokens": 6, "do_sample": True},
    }
    return "# mine\n" + yaml.safe_dump(data | changes, sort_keys=False)


def long_one(place: Path, name: str = "long") -> str:
    """One that takes far longer than a test: many prompts."""
    return scenario(place, name, prompt=[{"messages": MESSAGES}] * 3000)


def long_dataset(place: Path, name: str = "rows", rows: int = 6000) -> str:
    """A dataset that takes long, and is kept shard by shard."""
    lines = "\n".join(f"r{n},{'word ' * (1 + n % 12)}" for n in range(rows))
    (place / "rows.csv").write_text(f"key,words\n{lines}\n")
    dataset = {"source": str(place / "rows.csv"), "id": "key", "text": "I see {{ words }}."}
    capture = {"sites": ["hidden_out"]}
    return scenario(
        place, name, prompt={"dataset": dataset}, generation={"max_new_tokens": 0}, capture=capture
    )


def until(jobs: Jobs, done, seconds: float = 90) -> None:
    """Let the queue go on until something is so."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, [
            (job, jobs.path(job, "log.jsonl").exists() and jobs.path(job, "log.jsonl").read_text())
            for job in jobs.all()
        ]
        jobs.step()
        time.sleep(0.05)


def settle(jobs: Jobs, id_: str) -> Job:
    """Let the queue go on until a job has ended."""
    until(jobs, lambda: not jobs.get(id_).is_active)
    return jobs.get(id_)


def reads(jobs: Jobs, id_: str) -> bool:
    """Whether a job's model reads."""
    job = jobs.get(id_)
    log = jobs.log(job)
    return job.state == "running" and bool(log.begun) and log.stage is not None
