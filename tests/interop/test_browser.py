"""Our JavaScript client in headless Chromium, through the WebSocket gateways of a cluster whose leaders are killed."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.interop.bench import Killer, cluster_for_clients, create_topic, send, stored
from tests.interop.chromium import Browser, NotToBeHad, open_browser
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row, record
from trimq.testing.local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
CLIENT = "trimq.js (ours, in Chromium)"
MESSAGES = 10_000
KILLS = 3
pytestmark = [pytest.mark.interop, pytest.mark.timeout(420)]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def web_server() -> Iterator[str]:
    """The repository served over HTTP, as a user would; yields its origin."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(ROOT)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, LocalCluster, str]]:
    directory = tmp_path_factory.mktemp("browser")
    with web_server() as origin:
        try:
            with (
                open_browser(directory, free_port()) as browser,
                cluster_for_clients(directory / "cluster", webSocketAllowedOrigins=origin) as cluster,
            ):
                yield browser, cluster, origin
        except NotToBeHad as error:
            record(Row(client=CLIENT, version="-", feature="all", result=NOT_TO_BE_HAD, note=str(error)))
            pytest.skip(str(error))


def test_a_page_sends_and_subscribes_while_leaders_are_killed(stage: tuple[Browser, LocalCluster, str]) -> None:
    browser, cluster, origin = stage
    topic = "browser-many"
    create_topic(cluster.namesrv_address, topic)
    browser.open(f"{origin}/examples/browser/?namesrv={cluster.websocket_address}")
    browser.run(
        """
        const { connect } = await import(`${args[0]}/clients/js/trimq.js`);
        const [, gateway, topic, count] = args;
        const run = globalThis.run = { acked: [], errors: [], received: new Map() };
        const mq = run.mq = await connect(gateway, { timeout: 20_000 });
        run.subscription = await mq.subscribe(topic, { group: "browser-readers" }, (message) => {
          run.received.set(message.text, (run.received.get(message.text) ?? 0) + 1);
        });
        let next = 0;
        async function sender() {
          while (next < count) {
            const body = `body-${next++}`;
            try {
              await mq.send(topic, body, { tag: "TagA", keys: [body] });
              run.acked.push(body);
            } catch (error) { run.errors.push(`${body}: ${error.message}`); }
          }
        }
        run.sending = Promise.all(Array.from({ length: 8 }, sender));
        """,
        origin,
        cluster.websocket_address,
        topic,
        MESSAGES,
    )
    killer = Killer(cluster)
    try:
        for number in range(KILLS):
            at = MESSAGES * (number + 1) // (KILLS + 1)
            browser.run("while (run.acked.length < args[0]) await new Promise((done) => setTimeout(done, 50));", at)
            killer.kill()
        browser.run("await run.sending;")
    finally:
        killer.returned()
    killer.healed()
    browser.run(
        "const until = Date.now() + 60_000;"
        "while (run.received.size < run.acked.length && Date.now() < until)"
        "  await new Promise((resolve) => setTimeout(resolve, 50));"
    )
    acked = set(browser.run("return run.acked;"))
    errors = browser.run("return run.errors;")
    received = dict(browser.run("return [...run.received];"))
    browser.run("await run.subscription.close(); await run.mq.close();")
    there = stored(cluster.namesrv_address, topic)
    lost, twice = len(acked - there.bodies), there.twice_in_one_group + there.twice_elsewhere
    unseen = len(acked - set(received))
    again = sum(received.values()) - len(received)
    good = not lost and not unseen and not twice and not errors and len(acked) == MESSAGES
    record(
        Row(
            client=CLIENT,
            version=browser.version,
            feature="send and subscribe over WebSocket, leader kills",
            result=PASSED if good else FAILED,
            messages=len(acked),
            kills=killer.kills,
            lost=lost,
            twice=twice,
            errors=len(errors),
            note=f"{len(received)} received, {again} of them again",
        )
    )
    assert not lost
    assert not unseen, f"{unseen} stored messages did not reach the page"
    assert not twice
    assert not errors, errors[:5]


def test_a_page_shares_a_group_with_a_handler_that_fails_now_and_then(
    stage: tuple[Browser, LocalCluster, str],
) -> None:
    browser, cluster, origin = stage
    topic, count = "browser-group", 400
    create_topic(cluster.namesrv_address, topic)
    browser.open(f"{origin}/examples/browser/?namesrv={cluster.websocket_address}")
    browser.run(
        """
        const { connect } = await import(`${args[0]}/clients/js/trimq.js`);
        const run = globalThis.run = { seen: [[], []], attempts: new Map(), members: [] };
        for (const number of [0, 1]) {
          const mq = await connect(args[1], { timeout: 20_000 });
          run.members.push(mq);
          await mq.subscribe(args[2], { group: "sharing", tags: "TagA || TagB", start: "first" }, (message) => {
            run.attempts.set(message.text, message.attempt);
            if (message.attempt === 1 && message.text.endsWith("7")) throw new Error("not now");
            run.seen[number].push(message.text);
          });
        }
        """,
        origin,
        cluster.websocket_address,
        topic,
    )
    send(cluster.namesrv_address, topic, [f"n-{n}" for n in range(count)], tags=("TagA", "TagB", "TagC"))
    wanted = {f"n-{n}" for n in range(count) if n % 3 != 2}
    both = browser.run(
        "const until = Date.now() + 90_000;"
        "while (new Set(run.seen.flat()).size < args[0] && Date.now() < until)"
        "  await new Promise((resolve) => setTimeout(resolve, 50));"
        "for (const each of run.members) await each.close(); return run.seen;",
        len(wanted),
    )
    seen = set(both[0]) | set(both[1])
    attempts = dict(browser.run("return [...run.attempts];"))
    good = seen == wanted and all(both) and all(attempts[body] >= 2 for body in seen if body.endswith("7"))
    record(
        Row(
            client=CLIENT,
            version=browser.version,
            feature="two members share a group, tags, failed messages again",
            result=PASSED if good else FAILED,
            messages=len(wanted),
            lost=len(wanted - seen),
            note=f"{len(both[0])} and {len(both[1])} deliveries",
        )
    )
    assert seen == wanted
    assert all(both), "both members got a share"
    assert all(attempts[body] >= 2 for body in seen if body.endswith("7"))


def test_the_demo_page_works_for_somebody_who_types(stage: tuple[Browser, LocalCluster, str], tmp_path: Path) -> None:
    browser, cluster, origin = stage
    browser.open(f"{origin}/examples/browser/?namesrv={cluster.websocket_address}")
    ready = "while (document.getElementById('body').disabled) await new Promise((r) => setTimeout(r, 50));"
    browser.run(ready)
    for line in ("hello from a browser", "<b>not bold</b>", "Grüße, 你好"):
        browser.type("#body", line + "\ue007")
    rows = browser.run(
        "const rows = document.getElementById('messages').rows; const until = Date.now() + 20_000;"
        "while (rows.length < 3 && Date.now() < until) await new Promise((r) => setTimeout(r, 50));"
        "return [...rows].map((row) => row.cells[0].textContent);"
    )
    browser.screenshot(Path(os.environ.get("TRIMQ_SCREENSHOT", tmp_path / "demo.png")))
    assert sorted(rows) == sorted(["hello from a browser", "<b>not bold</b>", "Grüße, 你好"])
    assert browser.run("return document.getElementById('error').textContent;") == ""


def test_a_page_of_another_origin_is_kept_out(stage: tuple[Browser, LocalCluster, str]) -> None:
    browser, cluster, _ = stage
    with web_server() as elsewhere:
        browser.open(f"{elsewhere}/examples/browser/?namesrv={cluster.websocket_address}")
        browser.run(
            "while (!document.getElementById('error').textContent) await new Promise((r) => setTimeout(r, 50));"
        )
        assert "webSocketAllowedOrigins" in browser.run("return document.getElementById('error').textContent;")
    record(Row(client=CLIENT, version=browser.version, feature="another origin is refused", result=PASSED))
