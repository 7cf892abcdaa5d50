"""The page in a real browser, on a real proxy with real traffic.

The page must show the truth, and nothing that a client sends may affect it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer, connect, free_port, read_lines, reset
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium or chromedriver is not installed"),
]

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--window-size=1300,900"),
]

HOSTILE = b"<script>document.title='hacked'</script><img src=x onerror=alert(1)>"


class Page:
    """The page of a proxy, in the browser."""

    def __init__(self, browser: Any, proxy: Proxy) -> None:
        self.browser = browser
        self.proxy = proxy
        self.browser.get(f"http://127.0.0.1:{proxy.http_port}/")

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """Return the visible text of an element, with plain spaces."""
        found = self.run("return document.querySelector(arguments[0]).innerText", selector)
        return str(found).replace("\u00a0", " ").strip()

    def figure(self, path: str) -> str:
        """Return the text shown for a value of the proxy's answer."""
        return self.text(f'[data-show="{path}"]')

    @property
    def word(self) -> str:
        return self.text("#word")

    @property
    def title(self) -> str:
        return str(self.browser.title)

    def points(self, chart: str) -> int:
        """Count the points of a chart's first line."""
        path = self.run("return document.querySelector(`#${arguments[0]} .line`).getAttribute('d') ?? ''", chart)
        return int(path.count(","))

    def column(self, name: str) -> list[str]:
        """Return a column of the table of sessions."""
        script = """
            const heads = [...document.querySelectorAll("#heads th")];
            const index = heads.findIndex((th) => th.dataset.column === arguments[0]);
            return [...document.querySelectorAll("#rows tr")].map((row) => row.cells[index].textContent);
        """
        return [str(text) for text in self.run(script, name)]

    def sorted_by(self) -> dict[str, str]:
        """Return the columns that are marked as sorted, and their order."""
        script = """
            const heads = document.querySelectorAll("#heads th[aria-sort]");
            return Object.fromEntries([...heads].map((th) => [th.dataset.column, th.getAttribute("aria-sort")]));
        """
        found: dict[str, str] = self.run(script)
        return found

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def requests(self) -> int:
        """Return the number of requests for figures so far."""
        script = (
            "return performance.getEntriesByType('resource').filter((entry) => entry.name.includes('/live')).length"
        )
        return int(self.run(script))

    @contextlib.contextmanager
    def as_wide_as(self, width: int) -> Iterator[None]:
        """Have a window of this width."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            eventually(lambda: self.run("return innerWidth") == width)
            yield
        finally:
            self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def fits(self, width: int) -> bool:
        """Return whether the page fits into a window of this width without scrolling sideways."""
        with self.as_wide_as(width):
            return int(self.run("return document.documentElement.scrollWidth")) <= width

    def hide(self, hidden: bool) -> None:
        """Have the page believe that its tab is hidden, or is seen again."""
        script = """
            Object.defineProperty(document, "hidden", { value: arguments[0], configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        """
        self.run(script, hidden)

    def complaints(self) -> list[str]:
        """Return the messages in the browser's console: errors, and violations of the content security policy."""
        return [str(entry["message"]) for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that many tests share, one after the other."""
    with FooServer() as server, fooproxy(tmp_path_factory.mktemp("steady"), upstream=server.port) as proxy:
        yield proxy


@contextlib.contextmanager
def opened(browser: Any, proxy: Proxy, *, may_go: bool = False) -> Iterator[Page]:
    """Open the page; the console must stay empty, except for failed requests if the proxy `may_go` away."""
    page = Page(browser, proxy)
    settles(lambda: page.word, "OK")
    yield page
    complaints = page.complaints()
    assert [line for line in complaints if not (may_go and "Failed to load resource: net::ERR_" in line)] == []
    browser.get("about:blank")


@pytest.fixture
def page(browser: Any, steady: Proxy) -> Iterator[Page]:
    """The page of a proxy without sessions, whose counters may not be 0."""
    settles(lambda: steady.stats("connections_active"), {"connections_active": 0})
    with opened(browser, steady) as page:
        yield page


@pytest.fixture
def server() -> Iterator[FooServer]:
    with FooServer() as server:
        yield server


@pytest.fixture
def fresh_page(browser: Any, server: FooServer, tmp_path: Path) -> Iterator[Page]:
    """The page of a new proxy, which the test may end."""
    with (
        fooproxy(tmp_path, "--http", f"127.0.0.1:{free_port()}", upstream=server.port) as proxy,
        opened(browser, proxy, may_go=True) as page,
    ):
        yield page


@contextlib.contextmanager
def clients(proxy: Proxy, *messages: int) -> Iterator[list[socket.socket]]:
    """Open a session for each number, and send that many requests on it; every second reply is a NAK."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connect(proxy.port)) for _ in messages]
        for peer, count in zip(peers, messages, strict=True):
            exchange(peer, count)
        yield peers


def exchange(peer: socket.socket, count: int) -> None:
    peer.sendall(b"".join(b"REQ %d %s\n" % (seq, b"not good" if seq % 2 else b"good") for seq in range(count)))
    read_lines(peer, count)


def test_the_page_shows_what_the_clients_sent(fresh_page: Page) -> None:
    page = fresh_page
    with clients(page.proxy, 1500, 2) as peers:
        peers[1].sendall(b"ACK 7\nnonsense\n")
        read_lines(peers[1], 2)
        settles(lambda: page.figure("report.msg_req"), "1,502")
        settles(lambda: page.figure("report.msg_invalid"), "1")
        settles(lambda: page.figure("report.msg_misdirected"), "1")
        settles(lambda: page.figure("report.connections_active"), "2")
        assert page.figure("report.bytes_from_clients").endswith(" KiB")
        assert page.figure("report.latency_seconds_10s.p99").split(" ")[1] in ("µs", "ms", "s")
        settles(lambda: page.figure("nak_share"), "50.0 %")
    settles(lambda: page.figure("report.connections_active"), "0")
    settles(lambda: page.text("#closed [data-reason=client_closed]"), "client closed\n2")


def test_zeros_are_left_out_of_the_totals_and_the_ends(fresh_page: Page) -> None:
    page = fresh_page
    script = """
        return [...document.querySelectorAll("#totals dd, #closed [data-reason] dd")]
            .filter((element) => element.getClientRects().length)
            .map((element) => element.dataset.show ?? element.parentNode.dataset.reason);
    """
    with clients(page.proxy, 2):
        settles(lambda: page.figure("report.msg_req"), "2")
    settles(lambda: page.text("#closed [data-reason=client_closed]"), "client closed\n1")
    shown = set(page.run(script))
    assert {"report.msg_req", "report.bytes_from_clients", "report.connections_total", "client_closed"} <= shown
    assert not shown & {"report.msg_misdirected", "report.requests_unanswered", "upstream_refused"}


def test_failures_are_told_from_planned_ends_and_those_of_late_have_a_chart(fresh_page: Page) -> None:
    page = fresh_page
    settles(lambda: page.text("#failed"), "0")
    with clients(page.proxy, 1, 1) as (one, _):
        reset(one)
    settles(lambda: page.text("#failed"), "1")
    assert page.text("#failed-by") == "client reset\n1"
    assert page.text(".failed [data-reason=client_reset]") == "client reset\n1"
    assert page.text(".list:not(.failed) [data-reason=client_closed]") == "client closed\n1"


def test_the_header_says_which_process_the_page_is_about_and_when_on_its_clock(page: Page) -> None:
    assert page.text("#identity") == (
        f"{socket.gethostname()} \u00b7 listening on 127.0.0.1:{page.proxy.port} \u00b7 process {page.proxy.pid}"
    )
    ours = time.time()
    seen = time.strptime(page.text("#updated"), "%H:%M:%S")
    passed = (time.localtime(ours).tm_hour - seen.tm_hour) * 3600 + (time.localtime(ours).tm_min - seen.tm_min) * 60
    assert abs(passed + time.localtime(ours).tm_sec - seen.tm_sec) % 86400 <= 5


def test_the_current_sessions_stand_beside_their_limit(page: Page) -> None:
    limit = page.proxy.stats("connections_limit")["connections_limit"]
    settles(lambda: page.figure("report.connections_limit"), f"{limit:,}")


def test_a_shorter_time_range_shows_fewer_seconds(page: Page) -> None:
    label = "return document.querySelector('#sessions-chart').getAttribute('aria-label')"
    page.run("range.value = 60; range.dispatchEvent(new Event('change'))")
    settles(lambda: "in the last 1 min 0 s" in page.run(label), True)
    assert page.points("sessions-chart") <= 60
    assert page.text("#failed-range") == "last 1 min"


def test_sessions_can_be_filtered(page: Page) -> None:
    with clients(page.proxy, 1, 1, 1) as peers:
        settles(lambda: len(page.column("client")), 3)
        address = "{}:{}".format(*peers[1].getsockname())
        page.run("filter.value = arguments[0]; filter.dispatchEvent(new Event('input'))", address)
        settles(lambda: page.column("client"), [address])
        assert page.text("#shown") == "showing 1 of 1 that match, of 3"


def test_clients_are_listed_while_their_list_is_open(page: Page) -> None:
    script = "return [...document.querySelectorAll('#client-rows tr')].map((row) => row.cells[0].textContent)"
    with clients(page.proxy, 1):
        settles(lambda: page.run(script), ["127.0.0.1"])
    page.run("clients.open = false")
    asked = "return performance.getEntriesByType('resource').filter((entry) => entry.name.includes('/clients')).length"

    def two_more() -> None:
        requests = page.requests()
        eventually(lambda: page.requests() >= requests + 2)

    # What was under way is over by then.
    two_more()
    before = page.run(asked)
    two_more()
    assert page.run(asked) == before


def test_the_page_agrees_with_the_report(page: Page) -> None:
    with clients(page.proxy, 1234):
        names = ("msg_total", "msg_req", "msg_ack", "msg_nak", "requests_in_flight", "connections_total")
        report = page.proxy.stats(*names)
        assert report["msg_req"] >= 1234
        settles(lambda: {name: page.figure(f"report.{name}") for name in names}, {n: f"{report[n]:,}" for n in names})


def test_the_page_shows_the_options_in_force_and_where_they_come_from(page: Page) -> None:
    script = """
        return [...document.querySelectorAll("#options div")]
            .map((row) => [row.firstChild.textContent, row.lastChild.textContent, row.title]);
    """
    rows = {name: (value, title) for name, value, title in eventually(lambda: page.run(script))}
    assert rows["listen"] == ("127.0.0.1:0", "command line: --listen")
    assert rows["idle-timeout"] == ("0", "default")
    assert rows["allow"] == ("\u2013", "default")
    assert rows["log-sessions"] == ("off", "default")
    assert page.text("#options").count("recovery.json") == 1


def test_rates_are_shown_while_there_is_traffic_and_fall_to_zero_after_it(page: Page) -> None:
    settles(lambda: page.figure("report.request_rate_1s"), "0 /s")
    with clients(page.proxy, 0) as (peer,):

        def moves() -> bool:
            exchange(peer, 100)
            return page.figure("report.request_rate_1s")[0] in "123456789"

        eventually(moves)
        settles(lambda: page.figure("report.request_rate_1s"), "0 /s")


def test_charts_grow_with_time(page: Page) -> None:
    charts = ("requests-chart", "replies-chart", "sessions-chart")
    eventually(lambda: page.points(charts[0]))
    before = [page.points(chart) for chart in charts]
    eventually(lambda: all(page.points(chart) >= count + 2 for chart, count in zip(charts, before, strict=True)))


def test_the_latency_charts_show_replies(page: Page) -> None:
    with clients(page.proxy, 10):
        assert eventually(lambda: page.points("latency-chart")) >= 1
        eventually(lambda: page.run("return document.querySelector('#spread-chart .bars').getAttribute('d')"))
        label = page.run("return document.querySelector('#latency-chart').getAttribute('aria-label')")
        assert label.startswith("Latency: p50 now ")


def test_every_chart_tells_its_values_to_those_who_cannot_see_it(page: Page) -> None:
    script = "return [...document.querySelectorAll('svg[role=img]')].map((svg) => svg.getAttribute('aria-label'))"
    with clients(page.proxy, 10):
        eventually(lambda: all(label and "none yet" not in label for label in page.run(script)))
        labels = page.run(script)
    assert len(labels) == 9
    assert all("lowest" in label and "highest" in label for label in labels[:8])


def test_a_header_sorts_the_sessions_one_way_and_then_the_other(page: Page) -> None:
    with clients(page.proxy, 5, 1100, 30, 0):
        eventually(lambda: len(page.column("msg_req")) == 4)
        assert page.sorted_by() == {"age_seconds": "descending"}
        page.click("th[data-column=msg_req] button")
        settles(page.sorted_by, {"msg_req": "descending"})
        settles(lambda: page.column("msg_req"), ["1,100", "30", "5", "0"])
        page.click("th[data-column=msg_req] button")
        settles(page.sorted_by, {"msg_req": "ascending"})
        settles(lambda: page.column("msg_req"), ["0", "5", "30", "1,100"])


def test_sessions_are_named_by_their_clients_addresses(page: Page) -> None:
    with clients(page.proxy, 1, 1, 1) as peers:
        page.click("th[data-column=client] button")
        addresses = sorted("{}:{}".format(*peer.getsockname()) for peer in peers)
        settles(lambda: page.column("client"), addresses)


def test_no_more_rows_are_shown_than_were_chosen_and_the_page_says_so(page: Page) -> None:
    with clients(page.proxy, *[1] * 120):
        settles(lambda: page.text("#shown"), "showing 100 of 120")
        assert len(page.column("id")) == 100
        page.run("limit.value = 25; limit.dispatchEvent(new Event('change'))")
        settles(lambda: page.text("#shown"), "showing 25 of 120")
        assert len(page.column("id")) == 25


def test_rows_are_used_again(page: Page) -> None:
    with clients(page.proxy, 1, 1):
        eventually(lambda: len(page.column("id")) == 2)
        page.run("document.querySelector('#rows tr').marked = true")
        before = page.requests()
        eventually(lambda: page.requests() >= before + 2)
        assert page.run("return document.querySelector('#rows tr').marked === true")


def test_markup_from_clients_does_nothing(page: Page) -> None:
    with clients(page.proxy, 0) as (peer,):
        peer.sendall(b"REQ 1 %s\n%s\n" % (HOSTILE, HOSTILE))
        read_lines(peer, 2)
        settles(lambda: page.column("msg_invalid"), ["1"])
        assert page.title.startswith("OK")
        assert page.run("return document.querySelectorAll('img, body script').length") == 0


def test_markup_from_the_proxy_is_text(page: Page) -> None:
    """The proxy would never send this; the page does not rely on that."""
    script = """
        const given = window.fetch;
        window.fetch = async (...request) => {
            const answer = await (await given(...request)).json();
            answer.upstream.address = arguments[0];
            answer.report.connections_closed = { [arguments[0]]: 1 };
            for (const row of answer.connections.connections) row.client = row.state = arguments[0];
            return { ok: true, json: async () => answer };
        };
    """
    with clients(page.proxy, 1):
        page.run(script, HOSTILE.decode())
        settles(lambda: page.column("client"), [HOSTILE.decode()])
        settles(lambda: page.figure("upstream.address"), HOSTILE.decode())
        assert page.run("return document.querySelectorAll('img, body script').length") == 0


def test_a_proxy_that_is_killed_is_announced_and_its_figures_are_marked_as_old(fresh_page: Page) -> None:
    with clients(fresh_page.proxy, 3):
        settles(lambda: fresh_page.figure("report.msg_req"), "3")
    assert fresh_page.title.startswith("OK")
    fresh_page.proxy.process.kill()
    settles(lambda: fresh_page.word, "Lost")
    assert fresh_page.title.startswith("Lost")
    assert "The proxy does not answer" in fresh_page.text("#why")
    assert "ago" in fresh_page.text("#why")
    assert fresh_page.run("return document.documentElement.classList.contains('old')")
    assert fresh_page.figure("report.msg_req") == "3"


def test_a_proxy_that_hangs_is_announced(fresh_page: Page) -> None:
    fresh_page.proxy.signal(signal.SIGSTOP)
    try:
        settles(lambda: fresh_page.word, "Lost")
        assert "has not answered for 5 seconds" in fresh_page.text("#why")
    finally:
        fresh_page.proxy.signal(signal.SIGCONT)
    settles(lambda: fresh_page.word, "OK")
    settles(lambda: fresh_page.run("return document.documentElement.classList.contains('old')"), False)


def test_a_restarted_proxy_is_followed_again(fresh_page: Page, server: FooServer, tmp_path: Path) -> None:
    eventually(lambda: fresh_page.points("requests-chart") >= 3)
    with clients(fresh_page.proxy, 3):
        settles(lambda: fresh_page.figure("report.msg_req"), "3")
    fresh_page.proxy.process.kill()
    fresh_page.proxy.process.wait()
    settles(lambda: fresh_page.word, "Lost")
    (tmp_path / "recovery.json").unlink()
    before = fresh_page.points("requests-chart")
    with fooproxy(tmp_path, "--http", f"127.0.0.1:{fresh_page.proxy.http_port}", upstream=server.port):
        settles(lambda: fresh_page.word, "OK")
        settles(lambda: fresh_page.figure("report.msg_req"), "0")
        eventually(lambda: fresh_page.points("requests-chart") >= before + 2)


def test_a_page_that_was_hidden_while_the_proxy_restarted_does_not_join_old_seconds_to_new(
    fresh_page: Page, server: FooServer, tmp_path: Path
) -> None:
    page, old = fresh_page, fresh_page.proxy

    def seconds() -> list[int]:
        """Return how many points each part of the line has."""
        line = page.run("return document.querySelector('#sessions-chart .line').getAttribute('d')")
        return [part.count(",") for part in line.split("M")[1:]]

    eventually(lambda: page.points("sessions-chart") >= 2)
    page.hide(True)
    old.process.kill()
    old.process.wait()
    (tmp_path / "recovery.json").unlink()
    # Seconds that nobody has counted.
    time.sleep(2)
    seen = page.points("sessions-chart")
    with fooproxy(tmp_path, "--http", f"127.0.0.1:{old.http_port}", upstream=server.port) as new:
        # Until it has as many seconds as the old one had, and has run for longer.
        eventually(lambda: new.get("/history")[1]["last"] >= seen + 3)
        page.hide(False)
        eventually(lambda: page.points("sessions-chart") > seen)
        least = new.get("/history")[1]["last"] - 2
        eventually(lambda: sum(seconds()[1:]) >= least)
        parts = seconds()
        known = new.get("/history")[1]["last"]
    # The old seconds, a gap, and all of the new ones.
    assert len(parts) == 2, parts
    assert parts[0] <= seen + 1
    assert least <= parts[1] <= known


def test_a_drain_is_announced(browser: Any, tmp_path: Path) -> None:
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, upstream=server.port) as proxy,
        opened(browser, proxy, may_go=True) as page,
        connect(proxy.port) as peer,
    ):
        peer.sendall(b"REQ 1\n")
        settles(lambda: page.figure("report.requests_in_flight"), "1")
        proxy.signal(signal.SIGTERM)
        settles(lambda: page.word, "Draining")
        assert "1 session is still open" in page.text("#why")
        server.release()
        assert proxy.wait() == 0


def test_an_upstream_that_is_down_is_announced(browser: Any, tmp_path: Path) -> None:
    with fooproxy(tmp_path, "--connect-timeout", "0.5") as proxy, opened(browser, proxy) as page:
        with connect(proxy.port) as peer:
            assert peer.recv(1) == b""
        settles(lambda: page.word, "Not ready")
        assert f"{tmp_path}/nobody: " in page.text("#why")


AMEND = """
    const given = window.fetch;
    window.verdict = {};
    window.fetch = async (...request) => {
        const answer = await given(...request);
        const body = await answer.json();
        Object.assign(body.verdict ?? {}, window.verdict);
        return { ok: true, json: async () => body };
    };
"""
"""Has the page read the verdict that a test gives."""


@pytest.mark.parametrize(
    ("state", "word"), [("not-ready", "Not ready"), ("degraded", "Degraded"), ("draining", "Draining")]
)
def test_the_page_says_what_is_wrong_and_what_else_is(fresh_page: Page, state: str, word: str) -> None:
    verdict = {"state": state, "why": "Because <b>.", "also": ["One more.", "Another."]}
    fresh_page.run(AMEND)
    fresh_page.run("window.verdict = arguments[0]", verdict)
    settles(lambda: fresh_page.word, word)
    assert fresh_page.text("#why") == "Because <b>."
    assert fresh_page.text("#also") == "One more.\nAnother."
    fresh_page.run("window.verdict = {}")
    settles(lambda: fresh_page.word, "OK")
    assert fresh_page.run("return document.getElementById('also').hidden")


def test_the_tables_fit_a_laptops_screen(page: Page) -> None:
    widths = "return [...document.querySelectorAll('.box')].map((box) => box.scrollWidth - box.clientWidth)"
    with clients(page.proxy, 1500, 1), page.as_wide_as(1366):
        settles(lambda: len(page.column("id")), 2)
        assert page.run(widths) == [0, 0, 0]


def test_one_request_is_under_way_at_most(page: Page) -> None:
    script = """
        const given = window.fetch;
        window.under = window.most = window.done = 0;
        window.fetch = async (...request) => {
            window.most = Math.max(window.most, ++window.under);
            try { return await given(...request); } finally { window.under--; window.done++; }
        };
        for (let click = 0; click < 10; click++) document.querySelector("th[data-column=msg_req] button").click();
    """
    page.run(script)
    eventually(lambda: page.run("return window.done") >= 3)
    assert page.run("return window.most") == 1


def test_a_hidden_tab_asks_for_nothing_and_catches_up_when_it_is_seen(page: Page) -> None:
    eventually(lambda: page.points("requests-chart") >= 2)
    page.hide(True)
    # An answer that was pending is still shown.
    eventually(
        lambda: page.run("return performance.now() - performance.getEntriesByType('resource').at(-1).startTime > 900")
    )
    before, points = page.requests(), page.points("requests-chart")
    last = page.proxy.get("/history")[1]["last"]
    eventually(lambda: page.proxy.get("/history")[1]["last"] >= last + 3)
    assert page.requests() == before
    page.hide(False)
    eventually(lambda: page.points("requests-chart") >= points + 3)


def test_the_page_can_be_paused_and_says_so(page: Page) -> None:
    page.click("#pause")
    settles(lambda: page.word, "Paused")
    with clients(page.proxy, 7):
        last = page.proxy.get("/history")[1]["last"]
        eventually(lambda: page.proxy.get("/history")[1]["last"] >= last + 2)
        assert page.column("msg_req") == []
        page.click("#pause")
        settles(lambda: page.column("msg_req"), ["7"])
        assert page.word == "OK"


def test_nothing_sticks_out_on_a_narrow_screen(page: Page) -> None:
    with clients(page.proxy, 1200):
        settles(lambda: len(page.column("id")), 1)
        assert page.fits(360)
        assert page.fits(700)


LARGE = """
    const given = window.fetch;
    const large = 123456789012345;
    window.fetch = async (...request) => {
        const answer = await (await given(...request)).json();
        const { report, connections: { connections } } = answer;
        for (const [name, value] of Object.entries(report)) {
            if (name.endsWith("_rate_1s") || name.endsWith("_rate_10s")) report[name] = 12345678.9;
            else if (Number.isInteger(value)) report[name] = large;
        }
        report.connections_active = 1234567;
        for (const reason of Object.keys(report.connections_closed)) report.connections_closed[reason] = large;
        for (const row of connections) {
            for (const [name, value] of Object.entries(row)) if (Number.isInteger(value)) row[name] = large;
            Object.assign(row, { id: 1234567890, age_seconds: 1e9, idle_seconds: 1e9 });
        }
        return { ok: true, json: async () => answer };
    };
"""
"""Makes all numbers large that the proxy answers."""


@pytest.mark.parametrize("width", [400, 800, 1366])
def test_large_numbers_are_whole(page: Page, width: int) -> None:
    cut = """
        const whole = (element) => element.scrollWidth <= element.clientWidth + 1;
        const lines = (element) => {
            const range = document.createRange();
            range.selectNodeContents(element.firstChild);
            return range.getClientRects().length;
        };
        const numbers = document.querySelectorAll("td.number, [data-as=count], [data-as=rate], [data-reason] dd");
        const shown = [...numbers].filter((element) => element.getClientRects().length);
        const cut = shown.filter((element) => !(whole(element) && lines(element) === 1));
        return cut.map((element) => `${element.dataset.show ?? element.className}: ${element.textContent}`);
    """
    with clients(page.proxy, 1, 1), page.as_wide_as(width):
        page.run(LARGE)
        settles(lambda: page.column("id"), 2 * ["1,234,567,890"])
        settles(lambda: page.figure("report.msg_total"), "123,456,789,012,345")
        assert page.column("msg_req") == 2 * ["123,456,789,012,345"]
        assert page.run(cut) == []
        assert page.run("return document.documentElement.scrollWidth") <= width


def test_session_numbers_from_a_thousand_on_are_whole(page: Page) -> None:
    script = """
        const cell = document.querySelector("#rows tr td");
        cell.textContent = "9,999";
        return cell.scrollWidth <= cell.clientWidth && cell.title === "";
    """
    with clients(page.proxy, 1):
        settles(lambda: len(page.column("id")), 1)
        assert page.run(script)


def test_a_pointer_on_a_chart_reads_it_out(page: Page) -> None:
    script = """
        const chart = document.getElementById("sessions-chart");
        const box = chart.getBoundingClientRect();
        chart.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 6, clientY: box.top + 20 }));
        return document.querySelector("#sessions-chart + figcaption").textContent.replace(/\\u00a0/g, " ");
    """
    with clients(page.proxy, 1, 1):
        settles(lambda: page.run(script), "now: sessions 2")


def test_several_servers_have_a_table_and_a_single_one_has_none(browser: Any, page: Page, tmp_path: Path) -> None:
    assert page.run("return document.getElementById('upstreams').hidden")
    with FooServer() as one, FooServer() as other:
        words = ["--forward", f"127.0.0.1:{one.port},name=<b>one", "--forward", f"127.0.0.1:{other.port},name=other"]
        with fooproxy(tmp_path, *words) as proxy, opened(browser, proxy) as table, clients(proxy, 4, 4, 4, 4):
            script = """
                return [...document.querySelectorAll("#upstream-rows tr")].map((row) =>
                    [...row.cells].map((cell) => cell.textContent));
            """
            settles(lambda: sum(int(row[5]) for row in table.run(script)), 16)
            assert [row[0] for row in table.run(script)] == ["<b>one", "other"]
            assert not table.run("return document.getElementById('upstreams').hidden")
            assert table.fits(1200)
            other.close()
            other.forget()
            # Its sessions may still be open, but then it has fewer than the other one, and is tried.
            with clients(proxy, *[1] * 8):
                settles(lambda: table.word, "Degraded")
            assert table.text("#why").endswith("cannot use some of its Foo servers: other (upstream refused).")
