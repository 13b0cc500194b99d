"""Ways of doing one thing, each in a process of its own that is asked again and again."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path


def memory_of(name: str) -> int:
    """Bytes of memory of this process, by a name of `/proc/self/status`: VmRSS, VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


class Way:
    """A process that runs one way each time it is asked.

    Args:
        script: the benchmark's own file; called with `--worker` it says `ready`, and answers each
            line with an object in JSON.
        arguments: what follows `--worker`; an object goes as JSON.

    Attributes:
        results: what it answered, in order.
    """

    def __init__(self, script: str, *arguments: object):
        words = [json.dumps(one) if isinstance(one, dict) else str(one) for one in arguments]
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.results: list[dict] = []
        assert self.process.stdout.readline() == "ready\n", "the worker did not start"

    def run(self) -> dict:
        """Run once more."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.results.append(json.loads(self.process.stdout.readline()))
        return self.results[-1]

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    @property
    def seconds(self) -> list[float]:
        """How long each run took."""
        return [result["seconds"] for result in self.results]

    def median(self, key: str) -> float:
        """The median of a number of the results."""
        return statistics.median(result[key] for result in self.results)
