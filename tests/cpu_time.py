"""Adds up the processor time of the tests, of the processes that they start too, and says where it went.

Time on the clock says little on a machine that others use, or with several cores; this is what `make test` costs.
"""

import resource
from collections import defaultdict

import pytest

#: Seconds that `make test` may cost, without what it installs.
LIMIT = 25 * 60


def spent() -> float:
    """Seconds of processor time of this process, and of those that it started and that have ended."""
    own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


class CpuTime:
    """A plugin of pytest."""

    def __init__(self) -> None:
        self._files: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """Count a test with what is set up for it first; so a fixture that many share counts where it is made."""
        before = spent()
        try:
            return (yield)
        finally:
            self._files[item.location[0]] += spent() - before

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Of several processes that share the tests, each tells the first one what its files cost."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["processor time"] = dict(self._files)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        """Add what a process tells that shared the tests."""
        for name, seconds in getattr(node, "workeroutput", {}).get("processor time", {}).items():
            self._files[name] += seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what it all cost, and the files that cost most, or with -v all of them."""
        total = spent()
        by_cost = sorted(self._files.items(), key=lambda file: -file[1])
        shown = by_cost if terminalreporter.config.option.verbose > 0 else by_cost[:5]
        files = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in shown)
        over = f"; make test may cost {clock(LIMIT)}" if total > LIMIT else ""
        terminalreporter.write_line(f"processor time {clock(total)}{over} (most of it: {files})")


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(61.4)
    '1:01'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
