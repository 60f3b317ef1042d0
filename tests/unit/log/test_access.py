"""The access log's formats: byte for byte what tools expect, whatever a client puts in its request."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.config.grammar import LOG_FIELDS
from acme_wsgi.errors import ConfigError
from acme_wsgi.log import AccessLog, Entry, HeaderMask, reopen_all
from acme_wsgi.log.access import MAX_FIELD, CommonFormat, JsonFormat, sampler

WHEN = 971211336.25  # 10 October 2000 20:55:36.25 UTC, the moment of Apache's own example
NO_MASK = HeaderMask([])


@pytest.fixture(autouse=True)
def los_angeles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "PST8PDT,M4.1.0,M10.5.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "end": WHEN,
        "duration_ns": 1_234_567,
        "addr": "127.0.0.1",
        "method": "GET",
        "target": "/apache_pb.gif",
        "protocol": "HTTP/1.0",
        "status": 200,
        "size": 2326,
        "referer": "http://www.example.com/start.html",
        "agent": "Mozilla/4.08 [en] (Win98; I ;Nav)",
        "host": "www.example.com",
        "request_id": "4711",
        "environ": None,
    }
    assert changes.keys() <= fields.keys()
    return tuple((fields | changes).values())  # type: ignore[return-value]


def combined(*entries: Entry, mask: HeaderMask = NO_MASK) -> str:
    return CommonFormat(True, mask)(list(entries)).decode("ascii")


def common(*entries: Entry) -> str:
    return CommonFormat(False, NO_MASK)(list(entries)).decode("ascii")


def test_apaches_own_example():
    line = '127.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326'
    tail = ' "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)"\n'
    assert common(entry()) == line + "\n"
    assert combined(entry()) == line + tail


def test_what_there_was_not_is_a_dash():
    line = '- - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.1" 304 - "-" "-"\n'
    assert (
        combined(entry(addr="", target="/", protocol="HTTP/1.1", status=304, size=0, referer=None, agent=""))
        == line
    )


@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("UTC0", "10/Oct/2000:20:55:36 +0000"),
        ("IST-5:30", "11/Oct/2000:02:25:36 +0530"),
        ("NST3:30", "10/Oct/2000:17:25:36 -0330"),
    ],
)
def test_the_time_is_local_with_its_offset(zone, stamp, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    assert f"[{stamp}]" in common(entry())


def test_a_batch_over_midnight_dates_each_line():
    batch = [entry(end=WHEN + offset) for offset in (0, 0.7499, 0.75, 36263.9, 36264)]
    stamps = re.findall(r"\[(.*?) ", common(*batch))
    assert stamps == ["10/Oct/2000:13:55:36"] * 2 + ["10/Oct/2000:13:55:37"] + ["11/Oct/2000:00:00:00"] * 2


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ('say "hi"', r"say \"hi\""),
        ("back\\slash", r"back\\slash"),
        ("a\r\nGET /forged", r"a\r\nGET /forged"),
        ("\t\v\b", r"\t\v\b"),
        ("\x00\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        ("caf\xc3\xa9", r"caf\xc3\xa9"),
        ("\x85\x9b\xa0\xff", r"\x85\x9b\xa0\xff"),
        ("snow\u2603\udc80", r"snow\xe2\x98\x83\xed\xb2\x80"),
    ],
)
def test_escapes_are_apaches(raw, escaped):
    assert f'"GET {escaped} HTTP/1.0"' in common(entry(target=raw))
    assert combined(entry(agent=raw)).endswith(f' "{escaped}"\n')
    assert f' "{escaped}" "Mozilla' in combined(entry(referer=raw))


LINE = re.compile(
    r'(?P<addr>[^ ]+) - - \[[^\]]+\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<size>\d+|-)'
    r' "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"'
)
NAMED = {"n": "\n", "r": "\r", "t": "\t", "v": "\v", "b": "\b", '"': '"', "\\": "\\"}


def unescaped(text: str) -> str:
    return re.sub(
        r"\\(x[0-9a-f]{2}|.)",
        lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "x" and len(m[1]) == 3 else NAMED[m[1]],
        text,
    )


wire_text = st.text(st.characters(max_codepoint=255), max_size=40)
entries = st.builds(
    entry,
    end=st.floats(WHEN, WHEN + 2),
    target=wire_text | st.just("/"),
    method=st.sampled_from(["GET", "POST", ""]) | wire_text,
    referer=st.none() | wire_text,
    agent=st.none() | wire_text | st.just("Mozilla/5.0"),
    size=st.integers(0, 1 << 40),
)


@given(st.lists(entries, min_size=1, max_size=5))
def test_every_line_can_be_read_back(batch):
    lines = combined(*batch).split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(batch)
    for line, (_, _, addr, method, target, protocol, status, size, referer, agent, *_) in zip(
        lines, batch, strict=True
    ):
        assert line.isprintable()
        found = LINE.fullmatch(line)
        assert found is not None
        assert unescaped(found["request"]) == f"{method} {target} {protocol}"
        assert unescaped(found["referer"]) == (referer or "-")
        assert unescaped(found["agent"]) == (agent or "-")
        assert (found["addr"], found["status"], found["size"]) == (addr, str(status), str(size or "-"))


@given(st.lists(entries, min_size=1, max_size=5), st.booleans())
def test_a_batch_is_its_lines_one_by_one(batch, is_combined):
    """The fast path for a clean batch and the careful one write the same."""
    batch.sort(key=lambda one: one[0])
    form = CommonFormat(is_combined, NO_MASK)
    assert form(batch).decode() == "".join(form._careful(one) for one in batch)


@pytest.mark.parametrize(
    "form", [CommonFormat(True, NO_MASK), CommonFormat(False, NO_MASK), JsonFormat([], NO_MASK)]
)
@pytest.mark.parametrize("value", [7, b"bytes", ["a", "\n"], {"a": '"'}])
def test_what_an_application_put_into_its_environ_is_shown_as_text(form, value):
    line = form([entry(addr=value, referer=value, agent=value, host=value)]).decode("ascii")
    assert line.endswith("\n")
    assert line[:-1].isprintable()


class Unspeakable:
    def __str__(self) -> str:
        raise ArithmeticError("no words")


@pytest.mark.parametrize("form", ["combined", "common", "json"])
def test_a_line_that_cannot_be_written_does_not_stop_the_next(form, tmp_path, caplog):
    log = AccessLog(settings(tmp_path / "log", form))
    log.entries.append(entry(addr=Unspeakable()))
    with caplog.at_level(logging.ERROR, "acme.log"):
        log.flush()
    assert "1 lines could not be formatted" in caplog.text
    log.entries.append(entry(status=404))
    log.close(10)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "404" in line


@pytest.mark.parametrize("char", ["x", '"', "\xff"])
def test_no_field_is_longer_than_the_bound(char):
    huge = char * (MAX_FIELD + 100_000)
    line = combined(entry(target=huge, referer=huge, agent=huge))
    assert len(line) < 3 * 4 * MAX_FIELD + 500
    fields = JsonFormat([], NO_MASK)([entry(target=huge, referer=huge, agent=huge)])
    assert len(fields) < 3 * 6 * MAX_FIELD + 1000
    assert json.loads(fields)["target"].startswith(char * 10)


# -- json


def test_json_has_the_documented_fields():
    line = JsonFormat([], NO_MASK)([entry(referer=None)])
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "timestamp": "2000-10-10T20:55:36.250Z",
        "remote_addr": "127.0.0.1",
        "method": "GET",
        "target": "/apache_pb.gif",
        "protocol": "HTTP/1.0",
        "status": 200,
        "bytes": 2326,
        "duration_ms": 1.235,
        "referer": None,
        "user_agent": "Mozilla/4.08 [en] (Win98; I ;Nav)",
        "host": "www.example.com",
        "request_id": "4711",
    }


def test_json_shows_utf8_as_what_it_means_and_other_bytes_as_they_are():
    line = JsonFormat([], NO_MASK)([entry(target="/caf\xc3\xa9", agent="caf\xe9\x1b")])
    assert line.isascii()
    fields = json.loads(line)
    assert (fields["target"], fields["user_agent"]) == ("/caf\xe9", "caf\xe9\x1b")


@given(st.lists(entries, min_size=1, max_size=5))
def test_every_json_line_is_json(batch):
    data = JsonFormat([], NO_MASK)(batch)
    lines = data.decode("ascii").split("\n")
    assert lines.pop() == ""
    assert all(c.isprintable() for c in data.decode("ascii").replace("\n", ""))
    for line, one in zip(lines, batch, strict=True):
        fields = json.loads(line)
        assert fields["status"] == one[6]
        target = one[4]
        assert fields["target"] in (target, target.encode("latin-1").decode("utf-8", "replace"))


def test_json_adds_the_headers_asked_for():
    environ = {
        "HTTP_ACCEPT": "text/html",
        "HTTP_AUTHORIZATION": "Bearer secret",
        "CONTENT_TYPE": "text/plain\x1b",
        "HTTP_X_EMPTY": "",
        "acme.request_id": "4711",
    }
    form = JsonFormat(
        ["Accept", "authorization", "Content-Type", "X-Empty", "X-Absent"], HeaderMask(["Authorization"])
    )
    fields = json.loads(form([entry(environ=environ)]))
    assert fields["headers"] == {
        "Accept": "text/html",
        "authorization": "***",
        "Content-Type": "text/plain\x1b",
    }


def test_masked_headers_are_masked_in_every_format():
    mask = HeaderMask(["REFERER", "user-agent", "Host"])
    assert combined(entry(), mask=mask).endswith('2326 "***" "***"\n')
    assert combined(entry(referer=None, agent=None), mask=mask).endswith('2326 "-" "-"\n')
    fields = json.loads(JsonFormat([], mask)([entry()]))
    assert (fields["referer"], fields["user_agent"], fields["host"]) == ("***", "***", "***")


def test_json_adds_the_configured_fields_at_the_end():
    own = (("service", "shop"), ("zone", 'caf\xe9 "a"\\'))
    line = JsonFormat([], NO_MASK, fields=own)([entry()]).decode("ascii")
    assert line.endswith(', "service": "shop", "zone": "caf\\u00e9 \\"a\\"\\\\"}\n')
    assert list(json.loads(line).items())[-2:] == list(own)
    assert line.startswith(JsonFormat([], NO_MASK)([entry()]).decode("ascii")[:-2])


def test_no_field_of_a_line_may_be_configured():
    environ = {"HTTP_ACCEPT": "text/html"}
    line = JsonFormat(["Accept"], NO_MASK, sample=0.5)([entry(environ=environ)])
    assert json.loads(line).keys() <= LOG_FIELDS


# -- sampling

HEX = st.integers(0, 1 << 128).map("{:032x}".format)


@pytest.mark.parametrize("ids", ["{:032x}", "req-{}", "{}", "{:08x}-a"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_met_whatever_the_ids_look_like(ids, share):
    """Within five standard deviations of what independent draws would give, also for ids that only count."""
    keep = sampler(share)
    total = 40_000
    kept = sum(keep(entry(request_id=ids.format(number))) for number in range(total))
    assert abs(kept - share * total) < 5 * (total * share * (1 - share)) ** 0.5


@given(HEX, st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_share_is_part_of_a_larger_one_on_every_server(request_id, one, other):
    less, more = sorted((one, other))
    assert sampler(less)(entry(request_id=request_id)) <= sampler(more)(entry(request_id=request_id))
    assert sampler(one)(entry(request_id=request_id)) == sampler(one)(entry(request_id=request_id))


@pytest.mark.parametrize(("status", "kept"), [(200, 0), (404, 0), (499, 0), (500, 1), (503, 1)])
def test_failures_are_logged_whatever_the_share(tmp_path, status, kept):
    log = AccessLog(settings(tmp_path / "log", sample=0.0))
    log.entries.append(entry(status=status))
    log.close(10)
    assert len((tmp_path / "log").read_text().splitlines()) == kept


def test_a_sampled_log_says_what_each_line_stands_for(tmp_path):
    log = AccessLog(settings(tmp_path / "log", "json", sample=0.25, fields=(("service", "shop"),)))
    for number in range(8000):
        log.entries.append(entry(request_id=f"{number:032x}", status=500 if number % 10 == 0 else 200))
        if number % 128 == 0:
            log.flush()
    log.close(10)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {(line["status"], line["sample"]) for line in lines} == {(200, 0.25), (500, 1)}
    assert {line["service"] for line in lines} == {"shop"}
    assert sum(line["status"] == 500 for line in lines) == 800
    scaled = sum(1 / line["sample"] for line in lines)
    assert abs(scaled - 8000) < 5 * (7200 * 0.25 * 0.75) ** 0.5 / 0.25


# -- the log


def settings(
    output: object,
    form: str = "combined",
    headers: tuple[str, ...] = (),
    *,
    sample: float = 1.0,
    fields: tuple[tuple[str, str], ...] = (),
) -> Any:
    return SimpleNamespace(
        access=SimpleNamespace(format=form, output=str(output), headers=headers, sample=sample),
        mask_headers=("Cookie",),
        fields=fields,
    )


@pytest.mark.parametrize(
    ("form", "headers", "needed"),
    [("combined", ("Accept",), False), ("json", (), False), ("json", ("Accept",), True)],
)
def test_environs_are_asked_for_only_when_used(tmp_path, form, headers, needed):
    log = AccessLog(settings(tmp_path / "log", form, headers))
    assert log.needs_environ is needed
    log.close()


def test_entries_become_lines_and_the_list_stays_the_same(tmp_path):
    log = AccessLog(settings(tmp_path / "log"))
    collected = log.entries
    log.flush()
    collected.append(entry())
    collected.append(entry(status=404))
    log.flush()
    assert log.entries is collected
    assert collected == []
    collected.append(entry(status=500))
    log.close(10)
    assert re.findall(r'" (\d+) 2326 ', (tmp_path / "log").read_text()) == ["200", "404", "500"]


def test_reopening(tmp_path, caplog):
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log"
    log = AccessLog(settings(path))
    log.entries.append(entry(status=200))
    log.flush()
    path.rename(tmp_path / "logs" / "log.1")
    log.reopen()
    log.entries.append(entry(status=404))
    log.flush()
    (tmp_path / "logs").rename(tmp_path / "moved")
    with caplog.at_level(logging.WARNING, "acme.log"):
        reopen_all()
    assert f"can't reopen {path}, still writing to the old file: No such file" in caplog.text
    log.entries.append(entry(status=500))
    log.close(10)
    assert " 200 " in (tmp_path / "moved" / "log.1").read_text()
    assert re.findall(r'" (\d+) 2326 ', (tmp_path / "moved" / "log").read_text()) == ["404", "500"]


def test_losses_are_told_to_the_error_log(caplog):
    log = AccessLog(settings("/dev/full"))
    log.entries.extend([entry(), entry()])
    log.flush()
    assert log._sink.drain(10)
    with caplog.at_level(logging.WARNING, "acme.log"):
        log.flush()
    assert "access log: 2 lines for /dev/full were lost: No space left on device" in caplog.text
    log.close()


def test_an_output_that_cannot_be_opened_is_a_problem_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError) as caught:
        AccessLog(settings(tmp_path / "no" / "log"))
    (problem,) = caught.value.problems
    assert problem.key == "logging.access.output"
    assert "No such file or directory" in problem.message


@pytest.mark.slow
def test_a_combined_line_is_cheap():
    """The budget is 1.5 us with a browser's user agent; a busy machine gets twice that before this fails."""
    log = AccessLog(settings("/dev/null"))
    agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126 Safari/537.36"
    best = float("inf")
    for _ in range(5):
        batches = [
            [entry(target=f"/p/{i}", agent=agent[:9] + agent[9:]) for i in range(128)] for _ in range(100)
        ]
        began = time.process_time()
        for batch in batches:
            log.entries.extend(batch)
            log.flush()
        log._sink.drain(10)
        best = min(best, time.process_time() - began)
    log.close()
    assert best / 12800 < 3e-6
