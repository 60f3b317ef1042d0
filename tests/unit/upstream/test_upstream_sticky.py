"""The cookie that keeps a visitor on one backend."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
import timeit
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.config.schema.upstream import StickySessions
from acme_wsgi.errors import AcmeError
from acme_wsgi.upstream.sticky import KEY_FILE, MAX_TRIED, Sticky, load_key, uncacheable, without

KEY = bytes(range(32))
NAMES = [bytes([number]) * 16 for number in range(8)]
NOW = 1_800_000_000.5
SETTINGS = StickySessions(enabled=True, ttl=3600.0)
STICKY = Sticky(KEY, SETTINGS, NAMES)


def cookie(member: int = 3, now: float = NOW, sticky: Sticky = STICKY) -> str:
    """What a browser sends back."""
    return sticky.value(member, now, secure=False).partition(";")[0]


# -- the key


def test_a_key_is_made_once(tmp_path: Path) -> None:
    key = load_key(str(tmp_path))
    assert len(key) == 32
    assert load_key(str(tmp_path)) == key
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_keys_differ(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert load_key(str(tmp_path / "a")) != load_key(str(tmp_path / "b"))


def _load_at_once(directory: str, gate: multiprocessing.synchronize.Barrier, pipe: int) -> None:
    gate.wait()
    os.write(pipe, load_key(directory))


def test_all_who_make_it_at_once_have_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        gate = context.Barrier(6)
        reading, writing = os.pipe()
        children = [
            context.Process(target=_load_at_once, args=(str(directory), gate, writing)) for _ in range(6)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(20)
            assert child.exitcode == 0
        os.close(writing)
        with open(reading, "rb") as file:
            keys = file.read()
        assert keys == load_key(str(directory)) * 6
        assert [path.name for path in directory.iterdir()] == [KEY_FILE]


def test_without_a_directory_the_key_is_a_new_one_each_time(tmp_path: Path) -> None:
    said: list[str] = []
    missing = str(tmp_path / "missing")
    first, second = load_key(missing, said.append), load_key(missing)
    assert len(first) == len(second) == 32
    assert first != second
    assert len(said) == 1
    assert missing in said[0]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_key_that_others_may_know_is_refused(tmp_path: Path, mode: int) -> None:
    load_key(str(tmp_path))
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(AcmeError, match=r"sticky\.key.*others may read or write it; remove it"):
        load_key(str(tmp_path))


@pytest.mark.parametrize("size", [0, 31, 33, 5000])
def test_a_key_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / KEY_FILE
    path.touch(0o600)
    path.write_bytes(b"x" * size)
    with pytest.raises(AcmeError, match="it doesn't hold 32 bytes; remove it"):
        load_key(str(tmp_path))
    assert path.stat().st_size == size


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_key_of_somebody_else_is_refused_unless_the_directory_is_his_too(tmp_path: Path) -> None:
    key = load_key(str(tmp_path))
    os.chown(tmp_path / KEY_FILE, 12345, 12345)
    with pytest.raises(AcmeError, match="others may"):
        load_key(str(tmp_path))
    os.chown(tmp_path, 12345, 12345)
    assert load_key(str(tmp_path)) == key


def test_what_isnt_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    os.mkfifo(path, 0o600)
    with pytest.raises(AcmeError, match="can't be the key"):
        load_key(str(tmp_path))
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(bytes(32))
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AcmeError, match=r"the key of sticky sessions, .*sticky\.key"):
        load_key(str(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(AcmeError, match="Is a directory"):
        load_key(str(tmp_path))


# -- the cookie


def test_the_whole_field() -> None:
    name, _, rest = STICKY.value(0, NOW, secure=False).partition("=")
    value, *attributes = rest.split("; ")
    assert name == "ACME_BACKEND"
    assert len(value) == 40
    assert attributes == ["Max-Age=3600", "Path=/", "HttpOnly", "SameSite=Lax"]
    assert STICKY.value(0, NOW, secure=True) == STICKY.value(0, NOW, secure=False) + "; Secure"
    assert SimpleCookie(f"ACME_BACKEND={value}")["ACME_BACKEND"].value == value


@pytest.mark.parametrize("member", range(8))
def test_a_cookie_names_its_backend(member: int) -> None:
    assert STICKY.member(cookie(member), NOW) == (member, False)


def test_it_is_renewed_in_its_second_half_and_expires() -> None:
    sent = cookie(2)
    assert STICKY.member(sent, NOW + 1799) == (2, False)
    assert STICKY.member(sent, NOW + 1801) == (2, True)
    assert STICKY.member(sent, NOW + 3599) == (2, True)
    assert STICKY.member(sent, NOW + 3600) is None


@pytest.mark.parametrize(
    "header",
    [
        "{}", " {} ", "a=1; {}", "{}; a=1", "a=1;{};b=2", "a=1;\t {}\t ;b=2", ";;{};;", "; {}", "a; {}",
        "=; {}", "ACME_BACKEND=; {}", "ACME_BACKEND=forged; {}", "XACME_BACKEND=1; {}", "ACME_BACKEND; {}",
        "x=ACME_BACKEND=1; {}", "ACME_BACKEND={}x; {}", "a=\xe9\u20ac; {}",
    ],
)  # fmt: skip
def test_it_is_found_among_others(header: str) -> None:
    assert STICKY.member(header.replace("{}", cookie()), NOW) == (3, False)


@pytest.mark.parametrize(
    "header",
    [
        "", "ACME_BACKEND", "ACME_BACKEND=", "ACME_BACKEND=;", "a=1", "X{}", "a={}", "{}x",
        "acme_backend={v}", "ACME_BACKEND ={v}", "ACME_BACKEND= {v}", 'ACME_BACKEND="{v}"',
        "ACME_BACKEND={v}=", "ACME_BACKEND={v}\n", "a=1, {}", "a=1 {}", "\x00{}", "\u00a0{}",
        "ACME_BACKEND={v},", "ACME_BACKEND={v}\u00a0",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_isnt_taken(header: str) -> None:
    sent = cookie()
    header = header.replace("{}", sent).replace("{v}", sent.partition("=")[2])
    assert STICKY.member(header, NOW) is None


def test_every_character_is_protected() -> None:
    sent = cookie()
    for at in range(len("ACME_BACKEND="), len(sent)):
        for other in "AZaz09-_+/=":
            forged = sent[:at] + other + sent[at + 1 :]
            if forged != sent:
                assert STICKY.member(forged, NOW) is None


def test_of_several_the_first_valid_one_counts() -> None:
    assert STICKY.member(f"ACME_BACKEND=forged; {cookie(1)}; {cookie(2)}", NOW) == (1, False)
    assert STICKY.member(f"{cookie(1, now=NOW - 7200)}; {cookie(2)}", NOW) == (2, False)


def test_so_many_are_looked_at() -> None:
    forged = "ACME_BACKEND=x; "
    assert STICKY.member(forged * (MAX_TRIED - 1) + cookie(), NOW) == (3, False)
    assert STICKY.member(forged * MAX_TRIED + cookie(), NOW) is None


def test_a_cookie_of_another_key_is_worth_nothing() -> None:
    other = Sticky(bytes(32), SETTINGS, NAMES)
    assert STICKY.member(cookie(sticky=other), NOW) is None


def test_backends_come_and_go_and_visitors_stay() -> None:
    sent = [cookie(member) for member in range(8)]
    rest = Sticky(KEY, SETTINGS, [NAMES[5], bytes(16), NAMES[1]])
    found = [rest.member(each, NOW) for each in sent]
    expected = {5: (0, False), 1: (2, False), 0: (1, False)}
    assert found == [expected.get(member) for member in range(8)]


def test_the_first_of_equal_names_counts() -> None:
    sticky = Sticky(KEY, SETTINGS, [NAMES[0], NAMES[1], NAMES[1]])
    assert sticky.member(cookie(2, sticky=sticky), NOW) == (1, False)


def test_another_name_of_the_cookie() -> None:
    sticky = Sticky(KEY, StickySessions(cookie_name="$.sid+", ttl=0.2), NAMES)
    assert sticky.value(0, NOW, secure=False).startswith("$.sid+=")
    assert "; Max-Age=1; " in sticky.value(0, NOW, secure=False)
    assert sticky.member(cookie(4, sticky=sticky), NOW) == (4, False)


@pytest.mark.parametrize(("ttl", "now"), [(1e15, NOW), (3600.0, -5.0), (3600.0, 1e15)])
def test_no_time_is_too_far_away(ttl: float, now: float) -> None:
    sticky = Sticky(KEY, StickySessions(ttl=ttl), NAMES)
    sent = cookie(1, now=now, sticky=sticky)
    assert sticky.member(sent, min(now, 1e12)) in ((1, False), (1, True))


@given(st.text() | st.text(alphabet='ACME_BACKEND=;" \t,aZ09-'), st.floats(0, 1e12))
def test_no_header_raises(header: str, now: float) -> None:
    assert STICKY.member(header, now) is None
    assert STICKY.member("ACME_BACKEND=" + header, now) is None
    without(header, "ACME_BACKEND")


def test_a_check_is_quick() -> None:
    header = "session=" + "x" * 400 + "; theme=dark; " + cookie() + "; _ga=" + "y" * 40
    best = (
        min(timeit.repeat(lambda: STICKY.member(header, NOW), number=2000, repeat=7, timer=time.process_time))
        / 2000
    )
    assert best < 25e-6, "5 us on a machine that does nothing else"


def test_a_hostile_header_is_quick_too() -> None:
    for header in ("ACME_BACKEND=" * 600, "; ACME_BACKEND=" * 500, " " * 8000 + "ACME_BACKEND=", ";" * 8000):
        spent = timeit.repeat(lambda: STICKY.member(header, NOW), number=1, repeat=5, timer=time.process_time)  # noqa: B023
        assert min(spent) < 0.02


# -- without it


@pytest.mark.parametrize(
    ("header", "left"),
    [
        ("", ""),
        ("a=1", "a=1"),
        ("ACME_BACKEND=x", ""),
        (" ACME_BACKEND=x ", ""),
        ("a=1; ACME_BACKEND=x; b=2", "a=1; b=2"),
        ("ACME_BACKEND=x; a=1", "a=1"),
        ("a=1; ACME_BACKEND=x", "a=1"),
        ("a=1;ACME_BACKEND=x;b=2", "a=1;b=2"),
        ("ACME_BACKEND=x; a=1; ACME_BACKEND=y; ACME_BACKEND = z", "a=1"),
        (
            "XACME_BACKEND=x; a=ACME_BACKEND=y; ACME_BACKEND",
            "XACME_BACKEND=x; a=ACME_BACKEND=y; ACME_BACKEND",
        ),
        ("acme_backend=x", "acme_backend=x"),
        ("  a = ACME_BACKEND ;; b", "  a = ACME_BACKEND ;; b"),
    ],
)
def test_the_backend_doesnt_see_it(header: str, left: str) -> None:
    assert without(header, "ACME_BACKEND") == left


# -- caches


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["private"]),
        (["public, max-age=60"], ["private, max-age=60"]),
        (["max-age=60, s-maxage=600"], ["private, max-age=60"]),
        (["PUBLIC,S-MaxAge=600 , Immutable"], ["private, Immutable"]),
        (["no-store"], ["private, no-store"]),
        (["private"], ["private"]),
        (['private="Set-Cookie", max-age=5'], ["private, max-age=5"]),
        (['no-cache="a, public", max-age=5'], ['private, no-cache="a, public", max-age=5']),
        (['x="a\\", public", s-maxage=1'], ['private, x="a\\", public"']),
        (['x="open, s-maxage=1'], ['private, x="open, s-maxage=1']),
        (["public", "s-maxage=9, max-age=5", ""], ["private, max-age=5"]),
        ([", ,"], ["private"]),
    ],
)
def test_cache_control(given: list[str], expected: list[str]) -> None:
    headers = [("Content-Type", "text/html"), *(("cache-control", value) for value in given), ("X", "y")]
    result = uncacheable(headers)
    assert [value for name, value in result if name.lower() == "cache-control"] == expected
    assert [pair for pair in result if pair[0].lower() != "cache-control"] == [headers[0], headers[-1]]


def test_fields_for_shared_caches() -> None:
    headers = [
        ("CDN-Cache-Control", "max-age=600"),
        ("Surrogate-Control", "max-age=600, stale-if-error=60"),
        ("Cloudflare-CDN-Cache-Control", "max-age=600"),
        ("surrogate-control", "max-age=9"),
        ("X-Accel-Expires", "600"),
        ("Expires", "Fri, 01 Jan 2038 00:00:00 GMT"),
    ]
    before = list(headers)
    assert uncacheable(headers) == [
        ("CDN-Cache-Control", "no-store"),
        ("Surrogate-Control", "no-store"),
        ("Cloudflare-CDN-Cache-Control", "no-store"),
        ("X-Accel-Expires", "0"),
        ("Expires", "Fri, 01 Jan 2038 00:00:00 GMT"),
        ("Cache-Control", "private"),
    ]
    assert headers == before
    assert uncacheable(uncacheable(headers)) == uncacheable(headers)


@given(st.text(alphabet='a,"\\= -public', max_size=300))
def test_no_value_keeps_a_response_public(value: str) -> None:
    ((_, found),) = uncacheable([("Cache-Control", value)])
    assert found.split(",")[0] == "private"
