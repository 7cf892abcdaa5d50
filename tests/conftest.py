"""Fixtures that several test modules use, and how a run begins and ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from configparser import ConfigParser
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings

from tests.helpers.bed import Bed
from tests.helpers.interrupts import Interrupts, ignore_no_signal
from tests.helpers.nursery import NURSERY
from tests.helpers.processes import ROOT, Watch
from tests.helpers.twins import are_told_apart, twin

__all__ = ["twin"]

# Options in the developer's environment are not for the proxies that the tests start.
for name in [name for name in os.environ if name.startswith("FOOPROXY_") and name != "FOOPROXY_EXTENSION"]:
    del os.environ[name]

# Judge examples by their results, not by the time that a busy machine takes.
CALM: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# Use the same examples each time, so that coverage and results do not depend on chance.
settings.register_profile("all", **CALM, derandomize=True, database=None)
settings.register_profile("fast", **CALM, derandomize=True, database=None, max_examples=20)
# To look for more failures: --hypothesis-profile=new uses other examples each time.
settings.register_profile("new", **CALM)

WATCH = pytest.StashKey[Watch]()
LIMIT = pytest.StashKey[float]()
COVERED = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("fast" if config.option.markexpr == "not slow" else "all")
    ignore_no_signal()
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg")
    config.stash[COVERED] = {source.split(".")[1] for source in declared["coverage:run"]["source"].split()}
    if not hasattr(config, "workerinput"):
        # With -n, this process also watches, and ends, the processes that its workers start.
        config.stash[WATCH] = Watch()
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run tests in two processes for each core, since they mostly wait; run named files in this process."""
    if any(argument.partition("::")[0].endswith(".py") for argument in config.args):
        return 0
    return min(2 * len(os.sched_getaffinity(0)), 16)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _is_another_test(item)]
    interrupts = Interrupts()
    for item in items:
        if isinstance(item, pytest.Function) and getattr(item.obj, "_pytest_twisted_mark", None) == "async_test":
            item.obj = interrupts.cancellable(item.obj, partial(item.stash.get, LIMIT, 0.0))


def _is_another_test(item: pytest.Item) -> bool:
    """Return whether a test that would run with the pure twin differs from the one with the compiled twin."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("twin") != "pure" or are_told_apart(params)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """With --cov, trace only the tests that count for coverage; pytest-cov's own mark has no effect with -n."""
    if covers(item) or not item.config.pluginmanager.hasplugin("_cov"):
        return (yield)
    before, in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(before)
        threading.settrace(in_threads)


def covers(item: pytest.Item) -> bool:
    """Return whether the test is a fast one of a room whose branches must all be covered.

    Only these count: others may reach a branch by chance, and tracing them takes long.
    """
    # The room of tests/foo/test_grammar.py is foo, that of tests/test_locking.py locking.
    room = re.match(r"tests/(?:test_)?(\w+)", item.nodeid)
    return room is not None and room[1] in item.config.stash[COVERED] and not item.get_closest_marker("slow")


def pytest_collection_finish() -> None:
    _keep()


def _keep() -> None:
    """Collect garbage, and keep the rest: modules, items, reports.  Tests that collect need not traverse these."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """Keep the objects that are left after each module."""
    yield
    _keep()


@pytest.fixture(scope="session", autouse=True)
def garbage() -> Iterator[None]:
    """Collect the kept objects at the end, so that errors in their finalizers are reported."""
    yield
    gc.unfreeze()
    gc.collect()


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Remember the limit; pytest-timeout then sets its timer, since this returns `None`."""
    item.stash[LIMIT] = settings.timeout


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    NURSERY.close()
    watch = session.config.stash.get(WATCH, None)
    left = watch.end() if watch else []
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    say = reporter.line if reporter else print
    for line in left:
        say(f"left behind and killed: process {line}")
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the temporary files of tests and their processes inside pytest's own directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest_twisted.async_yield_fixture(params=["ours", "twisted's"])
async def bed(twin: str, request: Any) -> AsyncIterator[Bed]:
    """A relay with an upstream, over either kind of transport."""
    bed = Bed(request.param)
    await bed.start()
    yield bed
    await bed.stop()
