"""The error log: three formats, none of which lets anything from outside forge, hide or leak."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from acme_wsgi import log as room
from acme_wsgi.config.grammar import LOG_FIELDS
from acme_wsgi.errors import ClientDisconnected, ConfigError
from acme_wsgi.log import errorlog
from acme_wsgi.log.errorlog import MAX_MESSAGE, MAX_TRACEBACK
from acme_wsgi.log.sink import open_sinks

logger = logging.getLogger("acme.test")
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def section(
    form: str = "text",
    level: str = "info",
    output: str = "stderr",
    errors: str | None = None,
    fields: tuple[tuple[str, str], ...] = (),
) -> Any:
    return SimpleNamespace(
        level=level,
        format=form,
        output=output,
        error=SimpleNamespace(output=errors),
        mask_headers=("Authorization", "Set-Cookie"),
        fields=fields,
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Callable[[], str]]]:
    """Configures the log; what it returns closes the log and gives what was written."""
    path = tmp_path / "error.log"

    def configure(
        form: str = "text",
        level: str = "info",
        output: str | None = None,
        errors: str | None = None,
        fields: tuple[tuple[str, str], ...] = (),
    ) -> Callable[[], str]:
        path.unlink(missing_ok=True)
        room.setup(section(form, level, output or str(path), errors, fields), process="worker 3")

        def written() -> str:
            room.close(10)
            return path.read_text("utf-8")

        return written

    yield configure
    room.close(0.1)
    assert open_sinks() == []


def test_text_is_for_people(start):
    written = start()
    before = time.time()
    logger.warning(
        "%d peers of %s are down", 2, "caf\xe9", extra={"route": "/api/*", "peers": 2, "why": "no route"}
    )
    line = written()
    found = re.fullmatch(
        rf"({STAMP}) warning acme\.test worker 3\[(\d+)\]: 2 peers of café are down "
        r'route=/api/\* peers=2 why="no route"\n',
        line,
    )
    assert found is not None, line
    assert int(found[2]) == os.getpid()
    assert found[1][:10] in {time.strftime("%Y-%m-%d", time.gmtime(t)) for t in (before, time.time())}


def test_json_is_for_machines(start):
    written = start("json")
    logger.error("no\nway", extra={"route": "/a", "status": 502, "retry": False, "peer": None, "level": "x"})
    fields = json.loads(written())
    assert re.fullmatch(STAMP, fields.pop("timestamp"))
    assert fields == {
        "level": "error",
        "logger": "acme.test",
        "process": "worker 3",
        "pid": os.getpid(),
        "message": "no\nway",
        "route": "/a",
        "status": 502,
        "retry": False,
        "peer": None,
        "level_": "x",
    }


def test_logfmt_quotes_what_it_must(start):
    written = start("logfmt")
    logger.info(
        'a "b" \\ c', extra={"plain": "a/b:c", "empty": "", "eq": "a=b", "ok": True, "none": None, "a b": 1.5}
    )
    assert re.fullmatch(
        rf"timestamp={STAMP} level=info logger=acme\.test process=\"worker 3\" pid=\d+ "
        r'message="a \\"b\\" \\\\ c" plain=a/b:c empty="" eq="a=b" ok=true none=null a_b=1\.5\n',
        written(),
    )


FORMS = ["text", "json", "logfmt"]
nasty = st.text(
    st.characters(codec=None) | st.sampled_from('\r\n\x00\x1b\x85\u2028\u202e\ud800"\\='), max_size=60
)


@pytest.mark.parametrize("form", FORMS)
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=nasty, extra=nasty, cause=nasty)
def test_a_record_is_one_line_of_printable_characters(start, form, message, extra, cause):
    written = start(form)
    try:
        raise ValueError(cause)
    except ValueError:
        logger.exception("%s", message, extra={"thing": extra, "headers": {"X": extra}})
    text = written()
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    assert all(line.isprintable() for line in lines)
    if form == "text":  # a traceback's lines can't be taken for lines of the log
        assert re.match(STAMP, lines[0])
        assert len(lines) > 3
        assert all(line.startswith("    | ") for line in lines[1:])
    else:
        assert len(lines) == 1
    if form == "json":
        fields = json.loads(lines[0])
        assert (fields["message"], fields["thing"]) == (message, extra)
        assert "ValueError" in fields["traceback"]


@pytest.mark.parametrize("form", FORMS)
def test_a_line_is_bounded(start, form):
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        raise RuntimeError("x" * 1_000_000)

    written = start(form)
    try:
        # Frames that differ, so that the formatter doesn't fold them.
        code = "\n".join(f"def f{i}():\n  f{i + 1}()" for i in range(400))
        exec(code + "\ndef f400():\n  deep(0)\nf0()", {"deep": deep})
    except RuntimeError:
        logger.exception("y" * 1_000_000, extra={"z": "z" * 1_000_000, "headers": {"h": "z" * 1_000_000}})
    text = written()
    assert len(text) < MAX_MESSAGE * 8 + MAX_TRACEBACK * 200
    assert re.search(r"\.\.\. \d+ lines \.\.\.", text)
    assert "RuntimeError: xxx" in text


@pytest.mark.parametrize("form", FORMS)
def test_masked_headers_are_not_shown(start, form):
    written = start(form)
    sent = [
        ("Host", "a"),
        ("authorization", "Bearer s3cret"),
        ("Set-Cookie", "s3cret"),
        ("SET-COOKIE", "s3cret"),
    ]
    logger.error("bad response", extra={"headers": sent, "request_headers": dict(sent)})
    text = written()
    assert "s3cret" not in text
    assert text.count("***") == 6


def test_the_level_is_obeyed_and_nobody_elses_logger_touched(start):
    root_before = (logging.getLogger().level, list(logging.getLogger().handlers))
    written = start(level="error")
    logger.warning("quiet")
    logger.critical("loud")
    logging.getLogger("application").error("not ours")
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == root_before
    text = written()
    assert "loud" in text
    assert "quiet" not in text
    assert "not ours" not in text


def test_warnings_of_python_are_logged(start):
    written = start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings put the plain one back
        warnings.warn("this is\x1b old", DeprecationWarning, stacklevel=1)
    text = written()
    assert "warning py.warnings worker 3[" in text
    assert r"DeprecationWarning: this is\x1b old" in text


def disconnect(nested: bool) -> None:
    try:
        try:
            raise ClientDisconnected("gone")
        except ClientDisconnected as error:
            if nested:
                raise RuntimeError("template failed") from error
            raise
    except (ClientDisconnected, RuntimeError):
        logger.exception("application raised")


@pytest.mark.parametrize("nested", [False, True])
def test_a_client_that_left_is_noise(start, nested):
    written = start(level="info")
    disconnect(nested)
    assert written() == ""
    written = start(level="debug")
    disconnect(nested)
    text = written()
    assert re.match(rf"{STAMP} debug acme\.test ", text)
    assert "ClientDisconnected: gone" in text


def test_other_errors_on_the_way_to_a_client_that_left_are_not(start):
    written = start()
    try:
        try:
            raise ClientDisconnected("gone")
        except ClientDisconnected:
            raise KeyError("a bug in the clean-up") from None
    except KeyError:
        logger.exception("application raised")
    assert "a bug in the clean-up" in written()


def test_a_second_setup_replaces_the_first(start, tmp_path):
    start(output=str(tmp_path / "first.log"))
    logger.info("one")
    written = start()
    logger.info("two")
    assert written().count("\n") == 1
    assert "one" in (tmp_path / "first.log").read_text()
    assert "two" not in (tmp_path / "first.log").read_text()


def test_a_setup_that_fails_leaves_the_log_as_it_was(start, tmp_path):
    written = start()
    missing = str(tmp_path / "no" / "log")
    with pytest.raises(ConfigError, match=r"logging\.output: can't open"):
        room.setup(section(output=missing), process="worker 3")
    with pytest.raises(ConfigError, match=r"logging\.error\.output: can't open"):
        room.setup(section(output=str(tmp_path / "other.log"), errors=missing), process="worker 3")
    assert [sink.output for sink in open_sinks()] == [str(tmp_path / "error.log")]
    logger.info("still here")
    assert "still here" in written()


def test_a_mistake_in_a_logging_call_harms_nobody(start, capsys):
    written = start()
    (handler,) = (
        h for h in logging.getLogger("acme").handlers if h.__class__.__module__ == errorlog.__name__
    )
    handler.handle(logger.makeRecord("acme.test", logging.ERROR, "shop.py", 7, "%d", ("not a number",), None))
    logger.error("after")
    first, second = written().splitlines()
    assert "the logging call at shop.py:7 failed: TypeError: %d format" in first
    assert "after" in second
    assert capsys.readouterr().err == ""  # which may be a pipe that nobody reads


def test_what_was_lost_is_told_in_the_log_itself(start, tmp_path):
    written = start()
    (sink,) = open_sinks()
    sink.dropped = 7
    logger.info("room again")
    first, second = written().splitlines()
    assert "room again" in first
    assert re.match(
        rf"{STAMP} warning acme\.log worker 3\[\d+\]: 7 lines for {tmp_path}/error\.log were lost", second
    )


# -- fields and errors apart


def test_configured_fields_are_in_every_line_for_machines(start):
    own = (("service", "shop"), ("zone", 'a "b"\x1b'), ("route", "mine"))
    written = start("json", fields=own)
    logger.warning("one", extra={"route": "/api", "status": 502})
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("two")
    first, second = (json.loads(line) for line in written().splitlines())
    assert {key: first[key] for key in ("service", "zone", "route")} == dict(own)
    assert (first["route_"], first["status"]) == ("/api", 502)
    assert list(first)[6:9] == ["service", "zone", "route"]
    assert second["service"] == "shop"
    assert list(second)[-1] == "traceback"
    written = start("logfmt", fields=own)
    logger.warning("one", extra={"route": "/api"})
    assert written().endswith(r' message=one service=shop zone="a \"b\"\x1b" route=mine route_=/api' + "\n")
    written = start("text", fields=own)
    logger.warning("one")
    assert "shop" not in written()


def test_no_field_of_a_line_may_be_configured_for_the_error_log(start):
    written = start("json")
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("two", extra={"headers": {"A": "b"}})
    assert json.loads(written()).keys() <= LOG_FIELDS


def test_errors_go_apart_and_only_there(start, tmp_path):
    apart = tmp_path / "apart.log"
    written = start(level="debug", errors=str(apart))
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, level)("one %s", level)
    disconnect(nested=True)
    assert re.findall(r"one (\w+)\n", written()) == ["debug", "info", "warning"]
    assert re.findall(r"one (\w+)\n", apart.read_text()) == ["error", "critical"]
    assert "ClientDisconnected" not in apart.read_text()


def test_both_outputs_may_be_the_same(start, tmp_path):
    written = start(errors=str(tmp_path / "error.log"))
    logger.info("one")
    logger.error("two")
    text = written()
    assert [line[-3:] for line in text.splitlines()] == ["one", "two"]


def test_what_the_output_for_errors_lost_is_told_in_the_other(start):
    written = start(errors="/dev/full")
    logger.error("gone")
    (full,) = (sink for sink in open_sinks() if sink.output == "/dev/full")
    assert full.drain(10)
    logger.info("here")
    text = written()
    assert "gone" not in text
    assert "1 lines for /dev/full were lost: No space left on device" in text
