"""The live page as a server: who may ask, for what, and what is told of runs that grow, differ, or mean harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from commanded import refusal
from live import HARMFUL, asked, listed_ids, listening, log_steps, served, step_line, until_event, write_run
from pages import Page, assert_only_its_own_scripts_may_run, assert_well_formed
from truetune.pipeline.review.live import events as events_room
from truetune.pipeline.review.live import server as server_room
from truetune.pipeline.review.live.events import PERIOD
from truetune.pipeline.review.live.security import Access, access_to
from truetune.report.page import policy
from truetune.report.run_page import SCRIPTS
from truetune.runs.directory import RunDirectory

KEY = "k3y-of_the_test"
GUARDS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, another that differs in a setting, and one whose texts mean harm."""
    folder = tmp_path_factory.mktemp("served")
    write_run(folder / "one", steps=60)
    write_run(folder / "two", steps=60, rate=1e-3)
    write_run(folder / "harm" / "<img src=x onerror=alert(1)>", steps=1, model={"name_or_path": HARMFUL})
    (folder / "secret.txt").write_text("not to be served")
    return folder


@pytest.fixture(scope="module")
def access(folder: Path) -> Iterator[Access]:
    with served(folder) as access:
        yield access


@pytest.fixture(scope="module")
def ids(access: Access) -> dict[str, str]:
    return listed_ids(access)


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[Access]:
    with served(folder, key=KEY) as access:
        yield access


# --- who may ask ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/runs", "/nothing"])
def test_nothing_but_get_is_answered(method: str, path: str, access: Access) -> None:
    assert asked(access, path, method=method)[0].status == 405


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::2]:{port}"],
)
def test_a_foreign_name_that_points_here_is_refused(host: str, access: Access) -> None:
    """DNS rebinding: a page of another site has its own name lead to this machine."""
    response, body = asked(access, "/", headers={"Host": host.format(port=access.port)})
    assert response.status in (400, 403)
    assert "one" not in body


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "127.0.0.1:{port}", "LOCALHOST", "[::1]:{port}", "[::1]"]
)
def test_this_machines_own_names_are_answered_also_through_a_forwarded_port(host: str, access: Access) -> None:
    assert asked(access, "/", headers={"Host": host.format(port=access.port)})[0].status == 200


@pytest.mark.parametrize("path", ["/", "/nothing", "/run/x", "/runs?x", "/compare"])
def test_every_answer_is_guarded_and_open_to_no_other_site(path: str, access: Access, keyed: Access) -> None:
    if path.startswith("/runs"):
        with listening(access, path) as events:
            next(events)
        return
    for where, headers in ((access, {}), (access, {"Host": "evil.example"}), (keyed, {})):
        response, _ = asked(where, path, headers={**headers, "Origin": "http://evil.example"})
        found = {name.lower(): value for name, value in response.getheaders()}
        assert GUARDS.items() <= found.items()
        assert "frame-ancestors 'none'" in found["content-security-policy"]
        assert "default-src 'none'" in found["content-security-policy"]
        assert not [name for name in found if name.startswith("access-control-")]


def test_without_the_key_nothing_is_told(keyed: Access) -> None:
    for path in ("/", "/runs", "/events?runs=x", "/?key=", "/?key=wrong", "/?key=%FF%00", "/?key=%CC%81"):
        response, body = asked(keyed, path)
        assert (response.status, "set-cookie" in response.headers) == (401, False)
        assert "run" not in body
    for cookie in (
        "",
        f"truetune_{keyed.port}=",
        f"truetune_{keyed.port + 1}={KEY}",
        f"truetune={KEY}",
        "=;;",
        f"{KEY}",
    ):
        assert asked(keyed, "/", headers={"Cookie": cookie})[0].status == 401


def test_the_key_becomes_a_cookie_and_leaves_the_address(keyed: Access) -> None:
    assert keyed.url == f"http://127.0.0.1:{keyed.port}/?key={KEY}"
    response, body = asked(keyed, f"/compare?runs=a,b&key={KEY}")
    assert KEY not in body
    assert 'url=/compare?runs=a%2Cb"' in body
    name, _, rest = response.headers["set-cookie"].partition("=")
    value, *attributes = rest.split("; ")
    assert (name, value) == (keyed.cookie, KEY)
    assert {each.lower() for each in attributes} == {"httponly", "samesite=strict", "path=/"}
    assert asked(keyed, "/", headers={"Cookie": f"other=1; {name}={value}"})[0].status == 200
    # Where there is a key, other names may lead here: that of the machine, seen from elsewhere.
    assert asked(keyed, "/", headers={"Cookie": f"{name}={value}", "Host": "gpu-7:8770"})[0].status == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/%2f%2fevil.example", '/"><script>'])
def test_the_key_leads_nowhere_else(path: str, keyed: Access) -> None:
    _, body = asked(keyed, f"{path.replace('<', '%3C').replace('>', '%3E')}?key={KEY}")
    assert "url=//" not in body
    assert "<script" not in body


def test_keys_are_random_and_made_wherever_others_can_reach_it() -> None:
    assert access_to("127.0.0.1", 1).key is None
    assert access_to("::1", 1).key is None
    assert access_to("localhost", 1).key is None
    keys = {access_to(host, 1).key for host in ("0.0.0.0", "::", "192.168.1.5", "gpu-7", "0")}
    keys |= {access_to("127.0.0.1", 1, is_keyed=True).key, access_to("0.0.0.0", 1).key}
    assert len(keys) == 7
    assert all(key and len(key) >= 43 for key in keys)
    assert access_to("::", 5).url.startswith("http://[::1]:5/?key=")


# --- for what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/run/../secret.txt",
        "/run/..%2fsecret.txt",
        "/run/%2e%2e/curves",
        "/run/one",
        "/run/%2Fetc%2Fpasswd/report",
        "/run/{one}/../../secret.txt",
        "/run/{one}/config.yaml",
        "/run/{one}%00/curves",
        "/compare?runs={one}",
        "/compare?runs={one},{one}",
        "/compare?runs={one},../two",
        "/events?runs=",
        "/events?runs={one},one",
        "/favicon.ico",
    ],
)
def test_nothing_is_served_but_what_was_found(path: str, access: Access, ids: dict[str, str]) -> None:
    response, body = asked(access, path.format(one=ids["one"]))
    assert response.status == 404
    assert "not to be served" not in body


def test_pages_bring_all_they_need_and_their_policies_say_so(access: Access, ids: dict[str, str]) -> None:
    for path in ("/", f"/run/{ids['one']}", f"/compare?runs={ids['one']},{ids['two']}"):
        response, source = asked(access, path)
        page = Page(source)
        assert response.status == 200
        assert_well_formed(page)
        assert_only_its_own_scripts_may_run(page)
        assert response.headers["content-security-policy"] == f"{page.policy}; frame-ancestors 'none'"
        assert "connect-src 'self'" in page.policy
        links = [each.get(name, "") for _, each in page.tags for name in ("src", "href")]
        assert all(link[:1] in ("", "/", "#") or link.startswith("data:image/svg+xml,") for link in links)


def test_the_report_is_made_when_it_is_asked_for(access: Access, ids: dict[str, str], folder: Path) -> None:
    response, source = asked(access, f"/run/{ids['one']}/report")
    assert response.headers["content-security-policy"] == f"{policy(SCRIPTS)}; frame-ancestors 'none'"
    assert "60 of 100 steps" in source
    assert not (folder / "one" / "report.html").exists()


def test_texts_of_runs_are_texts(access: Access, ids: dict[str, str]) -> None:
    name = "harm/<img src=x onerror=alert(1)>"
    paths = (f"/run/{ids[name]}", f"/run/{ids[name]}/report", f"/compare?runs={ids['one']},{ids[name]}")
    for path in paths:
        _, source = asked(access, path)
        page = Page(source)
        assert page.named("img") == []
        assert name not in source
        assert HARMFUL not in source
        assert_well_formed(page)
        assert_only_its_own_scripts_may_run(page)


def test_a_comparison_shows_what_differs(access: Access, ids: dict[str, str]) -> None:
    _, source = asked(access, f"/compare?runs={ids['two']},{ids['one']}")
    text = Page(source).sections["main"]
    assert "training.learning_rate0.0010.0002" in "".join(text.split())
    assert "training.seed" not in text
    assert "loss at step 60" in text
    assert "two has answered no rows yet" in text


def test_answers_of_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    for name, answer in (("one", "four"), ("two", "five")):
        run = write_run(tmp_path / name, steps=10)
        run.answers.mkdir()
        row = {"where": {"path": "sums.jsonl", "line": 3}, "prompt": "2 + 2?", "expected": "four", "answer": answer}
        (run.answers / "step-10.jsonl").write_text(json.dumps({**row, "scores": {}}) + "\n")
    with served(tmp_path) as access:
        ids = listed_ids(access)
        _, source = asked(access, f"/compare?runs={ids['one']},{ids['two']}")
    text = "".join(Page(source).sections["main"].split())
    assert "asked2+2?expectedfouronefourtwofive" in text


@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl", "config.yaml", "evaluations/validation-1.json"])
@pytest.mark.parametrize("kind", ["pipe", "link", "garbage"])
def test_damaged_and_hostile_runs_hold_nobody_up(file: str, kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "good", steps=20)
    bad = write_run(tmp_path / "bad", steps=20).path / file
    (tmp_path / "outside").write_text('{"status": "finished", "note": "not yours"}\n')
    with served(tmp_path) as access:
        ids = listed_ids(access)
        bad.parent.mkdir(exist_ok=True)
        bad.unlink(missing_ok=True)
        match kind:
            case "pipe":
                os.mkfifo(bad)
            case "link":
                bad.symlink_to(tmp_path / "outside")
            case "garbage":
                bad.write_bytes(b'{"step": "\xff", "loss": {}}\n' + b"\x00" * 100)
        for path in ("", "/curves", "/report"):
            response, body = asked(access, f"/run/{ids['bad']}{path}")
            assert response.status in (200, 500)
            assert "not yours" not in body
        response, body = asked(access, f"/compare?runs={ids['good']},{ids['bad']}")
        assert response.status == 200
        assert "not yours" not in body
        if kind != "garbage":
            assert "cannot be compared" in body


# --- what is new ------------------------------------------------------------------------------------------


def test_lines_are_told_as_they_come_and_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=3, status="running")
    with served(tmp_path) as access, run.locked():
        (id,) = listed_ids(access).values()
        curves = json.loads(asked(access, f"/run/{id}/curves")[1])
        assert curves["curves"]["charts"][0]["curves"][0]["steps"] == [1, 2, 3]
        with listening(access, f"/events?runs={id}&from={curves['position']}") as events:
            name, head, _ = next(events)
            assert (name, head["head"]["status"], head["head"]["steps"]) == ("head", "running", 3)
            log_steps(run, range(4, 6))
            with run.metrics.open("a") as file:
                file.write(json.dumps(step_line(6))[:20])
            _, data, position = until_event(events, "lines")
            assert [line["step"] for line in data["lines"]] == [4, 5]
            with run.metrics.open("a") as file:
                file.write(json.dumps(step_line(6))[20:] + "\n")
            assert [line["step"] for line in until_event(events, "lines")[1]["lines"]] == [6]
        log_steps(run, range(7, 8))
        again = {"Last-Event-ID": position}
        with listening(access, f"/events?runs={id}&from={curves['position']}", headers=again) as events:
            assert [line["step"] for line in until_event(events, "lines")[1]["lines"]] == [6, 7]


def test_a_run_that_begins_anew_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=9)
    with served(tmp_path) as access:
        (id,) = listed_ids(access).values()
        position = json.loads(asked(access, f"/run/{id}/curves")[1])["position"]
        with listening(access, f"/events?runs={id}&from={position}") as events:
            next(events)
            shutil.copy(run.metrics, tmp_path / "copy")
            (tmp_path / "copy").replace(run.metrics)
            assert until_event(events, "restarted")[1] == {"run": id}


def test_the_log_of_a_run_is_told_as_it_grows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=1)
    run.log.write_text("checking rows\n")
    with served(tmp_path) as access:
        (id,) = listed_ids(access).values()
        with listening(access, f"/events?runs={id}") as events:
            assert until_event(events, "log")[1] == {"run": id, "text": "checking rows\n", "is_whole": True}
            with run.log.open("a") as file:
                file.write("step 1\n")
            assert until_event(events, "log")[1] == {"run": id, "text": "step 1\n", "is_whole": False}


def test_several_runs_are_heard_in_one_stream(tmp_path: Path) -> None:
    runs = {name: write_run(tmp_path / name, steps=2) for name in ("a", "b")}
    with served(tmp_path) as access:
        ids = listed_ids(access)
        positions = [json.loads(asked(access, f"/run/{ids[name]}/curves")[1])["position"] for name in ids]
        path = f"/events?runs={','.join(ids.values())}&from={','.join(positions)}"
        with listening(access, path) as events:
            assert {next(events)[1]["run"] for _ in ids} == set(ids.values())
            for name in ("b", "a"):
                log_steps(runs[name], range(3, 4))
                data = until_event(events, "lines")[1]
                assert (data["run"], [line["step"] for line in data["lines"]]) == (ids[name], [3])


def test_the_list_tells_what_comes_changes_and_goes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with served(tmp_path) as access, listening(access, "/runs") as events:
        assert [each["name"] for each in next(events)[1]["runs"]] == ["a"]
        write_run(tmp_path / "b", status="failed")
        assert [(each["name"], each["status"]) for each in next(events)[1]["runs"]] == [("b", "failed")]
        run.update_record(final_loss=0.125)
        assert [(each["name"], each["loss"]) for each in next(events)[1]["runs"]] == [("a", 0.125)]
        run.record.unlink()
        assert len(next(events)[1]["gone"]) == 1


def test_nothing_is_read_while_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    news = events_room.news
    monkeypatch.setattr(events_room, "news", lambda run, since: (looks.append(run.path.name), news(run, since))[1])
    write_run(tmp_path / "a", steps=3)
    with served(tmp_path) as access:
        (id,) = listed_ids(access).values()
        with listening(access, f"/events?runs={id}") as events:
            next(events)
            time.sleep(2.5 * PERIOD)
            assert len(looks) >= 2
        time.sleep(1.5 * PERIOD)
        seen = len(looks)
        time.sleep(3 * PERIOD)
        assert len(looks) == seen


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_prints_its_address_serves_and_ends_with_ctrl_c(folder: Path) -> None:
    command = [sys.executable, "-m", "truetune", "report", "--serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urlopen(address) as page, urlopen(f"{address}runs"):
            assert "<h1>Runs</h1>" in page.read().decode()
            # Somebody still listens when it ends.
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert process.wait(timeout=20) == 0
        assert process.stdout.read() == ""
        assert said.strip() == "Ctrl-C ends it"
    finally:
        process.kill()


def test_words_that_do_not_go_together_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = str(folder / "one")
    for words in (
        ["report", run, "--port", "8770"],
        ["report", run, "--key"],
        ["report", run, "--host", "0.0.0.0"],
        ["report"],
        ["report", run, run],
        ["report", "--serve", run, "--output", "x.html"],
    ):
        status, said = refusal(capsys, *words)
        assert (status, "hint: " in said) == (2, True)
    status, said = refusal(capsys, "report", "--serve", tmp_path / "none")
    assert (status, "no such folder" in said) == (1, True)


def test_a_port_that_is_taken_and_a_missing_extra_are_told(
    folder: Path, access: Access, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = refusal(capsys, "report", "--serve", folder, "--port", access.port)
    assert (status, f"port {access.port}" in said, "--port 0" in said) == (2, True, True)
    monkeypatch.setattr(server_room.importlib.util, "find_spec", lambda name: None)
    status, said = refusal(capsys, "report", "--serve", folder)
    assert (status, "pip install 'truetune[live]'" in said) == (1, True)


def test_a_run_is_left_as_it_was(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "a", steps=5).path)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with served(tmp_path) as access:
        (id,) = listed_ids(access).values()
        for path in ("", "/curves", "/report"):
            asked(access, f"/run/{id}{path}")
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
