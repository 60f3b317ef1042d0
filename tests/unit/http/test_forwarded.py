"""Who the client is: lists read from the right as far as trust reaches; ProxyFix as second opinion."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.middleware.proxy_fix import ProxyFix

from acme_wsgi.http.forwarded import TrustedProxies, continued

PROXY = "10.0.0.1"
TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8", "unix:"])
SET_BY_APPLY = (
    "REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "SCRIPT_NAME",
)  # fmt: skip


def environ(**headers: str) -> dict[str, str]:
    base = {
        "REMOTE_ADDR": PROXY,
        "REMOTE_PORT": "40000",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "internal:8080",
        "SERVER_NAME": "internal",
        "SERVER_PORT": "8080",
        "SCRIPT_NAME": "",
    }
    return base | {"HTTP_" + name: value for name, value in headers.items()}


def applied(peer: str = PROXY, **headers: str) -> dict[str, str]:
    """What apply() changed."""
    before = environ(**headers)
    after = dict(before)
    TRUSTED.apply(after, peer)
    assert after.keys() == before.keys()
    changed = {key: after[key] for key in after if after[key] != before[key]}
    assert set(changed) <= set(SET_BY_APPLY)
    return changed


def client(peer: str = PROXY, **headers: str) -> str | None:
    return applied(peer, **headers).get("REMOTE_ADDR")


# -- trust


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3", True),
        ("11.0.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.1.2.3", False),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("fe80::1", False),
        ("", True),
        ("unix:", True),
        ("unix:/run/acme.sock", True),
        ("garbage", False),
        ("10.1.2.3, 10.1.2.4", False),
    ],
)
def test_who_is_trusted(address, expected):
    assert TRUSTED.trusts(address) is expected
    assert TRUSTED.trusts(address) is expected  # and again, from the cache


def test_nobody_is_trusted_unless_named():
    nobody = TrustedProxies([])
    assert not nobody
    assert not nobody.trusts("127.0.0.1")
    assert not nobody.trusts("")
    assert not TrustedProxies(["0.0.0.0/0"]).trusts("")
    assert TrustedProxies(["unix:"])


@pytest.mark.parametrize("cidr", ["10.0.0.0/33", "localhost", "", "unix", "10.0.0"])
def test_what_is_no_network_is_refused_with_the_text(cidr):
    with pytest.raises(ValueError, match=repr(cidr)):
        TrustedProxies([cidr])


def test_the_memory_of_who_is_trusted_is_bounded():
    trusted = TrustedProxies(["10.0.0.0/8"])
    for number in range(20_000):
        assert trusted.trusts(str(ipaddress.IPv4Address(0x0A000000 + number)))
    assert len(trusted._cache) <= 4096


ALL_HEADERS = {
    "FORWARDED": "for=203.0.113.9;proto=https;host=evil.example",
    "X_FORWARDED_FOR": "203.0.113.9",
    "X_FORWARDED_PROTO": "https",
    "X_FORWARDED_HOST": "evil.example",
    "X_FORWARDED_PORT": "443",
    "X_FORWARDED_PREFIX": "/evil",
}


@pytest.mark.parametrize("peer", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_an_untrusted_peer_has_no_say(peer):
    assert applied(peer, **ALL_HEADERS) == {}


@pytest.mark.parametrize("peer", [PROXY, "", "unix:", "fd00::5"])
def test_a_trusted_peer_has(peer):
    assert applied(peer, **ALL_HEADERS)["REMOTE_ADDR"] == "203.0.113.9"


# -- the chain

addresses = st.ip_addresses().map(str)
outside = addresses.filter(lambda text: not TRUSTED.trusts(text))
inside = st.ip_addresses(network="10.0.0.0/8").map(str)
spoofs = st.lists(
    addresses
    | st.sampled_from(["unknown", "_hidden", "", '"', "1.2.3", "a=b", 'for="', "\\", "\x7f", "é", "[::1"]),
    max_size=5,
)


def canonical(text: str) -> str:
    ip = ipaddress.ip_address(text)
    return str((ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip)


def node(address: str) -> str:
    return f'"[{address}]"' if ":" in address else address


@given(spoofs, outside, st.lists(inside, max_size=5))
def test_x_forwarded_for_ends_at_the_first_untrusted_address(spoofed, real, proxies):
    assert client(X_FORWARDED_FOR=", ".join([*spoofed, real, *proxies])) == canonical(real)


@given(spoofs, outside, st.lists(inside, max_size=5))
def test_forwarded_ends_at_the_first_untrusted_address(spoofed, real, proxies):
    chain = [*spoofed, *(f"for={node(address)}" for address in [real, *proxies])]
    assert client(FORWARDED=", ".join(chain)) == canonical(real)


@given(st.lists(inside, min_size=1, max_size=5))
def test_when_all_are_trusted_the_furthest_is_the_client(proxies):
    changed = applied("10.255.255.254", X_FORWARDED_FOR=",".join(proxies))
    assert changed.get("REMOTE_ADDR", PROXY) == proxies[0]


@pytest.mark.parametrize(
    "bad", ["unknown", "_secret", "1.2.3", "1.2.3.4:x", "[1.2.3.4]", "::1%lo", "1.2.3.4:0", "a b"]
)
def test_an_entry_that_tells_no_address_ends_the_chain_at_the_last_that_did(bad):
    assert client(X_FORWARDED_FOR=f"203.0.113.9, {bad}, 10.0.0.7") == "10.0.0.7"
    assert client(X_FORWARDED_FOR=f"203.0.113.9, {bad}") is None
    assert client(FORWARDED=f'for=203.0.113.9, for="{bad}", for=10.0.0.7') == "10.0.0.7"


@pytest.mark.parametrize(
    ("entry", "address", "port"),
    [
        ("203.0.113.9", "203.0.113.9", "0"),
        ("203.0.113.9:65535", "203.0.113.9", "65535"),
        ("2001:DB8::1", "2001:db8::1", "0"),
        ("[2001:db8:0::1]", "2001:db8::1", "0"),
        ("[2001:db8::1]:8443", "2001:db8::1", "8443"),
        ("::ffff:203.0.113.9", "203.0.113.9", "0"),
        ("203.0.113.9:_port", "203.0.113.9", "0"),
    ],
)
def test_forms_of_an_address(entry, address, port):
    expected = {"REMOTE_ADDR": address, "REMOTE_PORT": port}
    assert applied(X_FORWARDED_FOR=entry) == expected
    assert applied(FORWARDED=f'For="{entry}"') == expected


def test_each_proxy_is_believed_about_what_it_saw_itself():
    """Two trusted proxies: the outer one saw https and the public name, the inner one plain http."""
    expected = {
        "REMOTE_ADDR": "203.0.113.9",
        "REMOTE_PORT": "0",
        "wsgi.url_scheme": "https",
        "HTTP_HOST": "www.example.com",
        "SERVER_NAME": "www.example.com",
    }
    spoof = "for=6.6.6.6;proto=ftp;host=evil.example"
    outer = "for=203.0.113.9;proto=https;host=www.example.com"
    assert applied(FORWARDED=f"{spoof}, {outer}, for=10.0.0.2;proto=http;host=inner") == expected
    assert expected == applied(
        X_FORWARDED_FOR="6.6.6.6, 203.0.113.9, 10.0.0.2",
        X_FORWARDED_PROTO="ftp, https, http",
        X_FORWARDED_HOST="evil.example, www.example.com, inner",
    )
    assert expected == applied(  # the outer one alone tells, and tells once
        X_FORWARDED_FOR="203.0.113.9, 10.0.0.2", X_FORWARDED_PROTO="https", X_FORWARDED_HOST="www.example.com"
    )


def test_a_clients_own_forwarded_does_not_override_what_the_proxy_wrote():
    assert client(FORWARDED="for=6.6.6.6", X_FORWARDED_FOR="203.0.113.9") == "203.0.113.9"
    both = applied(FORWARDED='for="203.0.113.9:99";proto=https', X_FORWARDED_FOR="203.0.113.9")
    assert both == {"REMOTE_ADDR": "203.0.113.9", "REMOTE_PORT": "99", "wsgi.url_scheme": "https"}


@pytest.mark.parametrize(
    "header",
    [
        "for=203.0.113.9;for=203.0.113.8",
        "for = 203.0.113.9",
        "for=203.0.113.9 x",
        'for="203.0.113.9',
        'for=203.0.113.9"',
        "for=[2001:db8::1]",  # needs quotes
        "203.0.113.9",
        "for=203.0.113.9;proto",
        'for="203.0.113.9\x00"',
        "",
    ],
)
def test_a_malformed_forwarded_is_ignored(header):
    assert applied(FORWARDED=header) == {}


def test_quoted_strings_are_unquoted_and_their_commas_are_no_separators():
    assert client(FORWARDED=r'for="203.0.113.\9"') == "203.0.113.9"
    assert client(FORWARDED='x="a, for=6.6.6.6";for=203.0.113.9') == "203.0.113.9"
    assert client(FORWARDED='for=203.0.113.9;x="a, for=6.6.6.6"') == "203.0.113.9"
    assert client(FORWARDED=r'for=203.0.113.9;x="\", for=\"6.6.6.6"') == "203.0.113.9"


def test_a_list_beyond_the_bounds_is_read_only_at_its_right_end():
    assert client(X_FORWARDED_FOR="6.6.6.6, " * 5000 + "203.0.113.9, 10.0.0.2") == "203.0.113.9"
    assert client(FORWARDED="for=6.6.6.6, " * 5000 + "for=203.0.113.9") == "203.0.113.9"
    changed = applied(X_FORWARDED_FOR=", ".join(["6.6.6.6"] + ["10.0.0.2"] * 1000))
    assert changed["REMOTE_ADDR"] == "10.0.0.2"


# -- what goes on to the next server

GOING_ON = [
    "for=203.0.113.9",
    'for="[2001:db8::9]:4711";proto=https;host="a.b:8"',
    "for=unknown, for=_hidden",
    "proto=https",
    r'for=203.0.113.9;x="\", for=\"6.6.6.6"',
]


@pytest.mark.parametrize("header", GOING_ON)
def test_a_well_formed_forwarded_goes_on(header):
    assert continued(environ(FORWARDED=header)) == header
    assert continued(environ(FORWARDED=f" , {header} ,")) == header


def test_nothing_goes_on_of_none():
    assert continued(environ()) == ""
    assert continued(environ(FORWARDED="")) == ""


@pytest.mark.parametrize(
    "header", ['for=203.0.113.9;"', 'for=6.6.6.6, for="203.0.113.9', "for=6.6.6.6, x", '"']
)
def test_nothing_goes_on_when_its_end_is_malformed(header):
    assert continued(environ(FORWARDED=header)) == ""


@pytest.mark.parametrize("before", ['for="', "for=6.6.6.6;;, for = 1", "x", "for=1;for=2"])
def test_only_what_stands_behind_something_malformed_goes_on(before):
    assert continued(environ(FORWARDED=f"{before}, for=6.6.6.6, for=203.0.113.9")) == (
        "for=6.6.6.6, for=203.0.113.9"
    )


def test_a_forwarded_that_is_not_believed_does_not_go_on():
    own = "for=6.6.6.6;proto=https;host=evil"
    assert continued(environ(FORWARDED=own, X_FORWARDED_FOR="203.0.113.9")) == ""
    assert continued(environ(FORWARDED=own, X_FORWARDED_FOR="")) == ""
    both = f"{own}, for=203.0.113.9"
    assert continued(environ(FORWARDED=both, X_FORWARDED_FOR="203.0.113.9")) == both


def test_what_goes_on_is_bounded():
    assert len(continued(environ(FORWARDED="for=6.6.6.6, " * 5000 + "for=203.0.113.9"))) < 4096


# -- scheme, host, port, prefix


@given(
    st.none() | outside,
    st.sampled_from([None, "http", "https"]),
    st.sampled_from(
        [None, "www.example.com", "www.example.com:8443", "[2001:db8::1]", "[2001:db8::1]:81", "a_b"]
    ),
    st.sampled_from([None, "443", "8080"]),
    st.sampled_from([None, "/app", "/a/b"]),
)
def test_one_proxy_means_what_werkzeugs_proxy_fix_means(address, proto, host, port, prefix):
    told = {
        "X_FORWARDED_FOR": address and canonical(address),
        "X_FORWARDED_PROTO": proto,
        "X_FORWARDED_HOST": host,
        "X_FORWARDED_PORT": port,
        "X_FORWARDED_PREFIX": prefix,
    }
    headers = {name: value for name, value in told.items() if value is not None}
    seen = {}
    fix = ProxyFix(lambda env, _: seen.update(env) or [], x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1)
    fix(environ(**headers), lambda *_: None)
    ours = environ(**headers)
    TRUSTED.apply(ours, PROXY)
    for key in SET_BY_APPLY:
        if key != "REMOTE_PORT":  # ProxyFix leaves the proxy's own there
            assert ours[key] == seen[key]


@pytest.mark.parametrize("proto", ["ftp", "javascript", "https:", "HTTP/1.1", "ws", "https\r\nX: y"])
def test_other_schemes_are_ignored(proto):
    assert applied(X_FORWARDED_PROTO=proto) == {}
    assert applied(X_FORWARDED_PROTO="HTTPS") == {"wsgi.url_scheme": "https"}


BAD_HOSTS = [
    "evil.example/path", "user@evil.example", "evil.example:", "evil.example:0",
    "evil.example:65536", "a b", "evil.example:80:80", "[::1", "[::1]x", "[1.2.3.4]", "[::1%25lo]",
    "a..b", "-", "<script>", "ex\xe4mple", 'a"b',
    "a" * 300, "evil.example\r\nX: y", "evil.example?x", "%65vil",
]  # fmt: skip


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_what_is_no_host_is_ignored(host):
    assert applied(X_FORWARDED_HOST=host) == {}
    quoted = host.replace("\\", "\\\\").replace('"', '\\"')
    assert "HTTP_HOST" not in applied(FORWARDED=f'for=203.0.113.9;host="{quoted}"')


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "80 80", "+80", "٨٠"])
def test_what_is_no_port_is_ignored(port):
    assert applied(X_FORWARDED_PORT=port) == {}


@pytest.mark.parametrize(
    "prefix",
    [
        "app",
        "//evil.example",
        "/a//b",
        "/../x",
        "/a/./b",
        "/a b",
        "/a?b",
        "/a#b",
        "/%2e",
        "/a\\b",
        '/"',
        "/<",
        "/",
    ],
)
def test_what_is_no_prefix_is_ignored(prefix):
    assert applied(X_FORWARDED_PREFIX=prefix) == {}


def test_a_prefix_loses_its_last_slash():
    assert applied(X_FORWARDED_PREFIX="/app/") == {"SCRIPT_NAME": "/app"}


latin = st.text(st.characters(max_codepoint=255), max_size=60)
pieces = st.sampled_from(
    [
        "for=",
        "proto=https",
        "host=",
        ";",
        ",",
        " ",
        '"',
        "\\",
        "[",
        "]",
        ":",
        "::1",
        "1.2.3.4",
        "10.0.0.9",
        "x=y",
    ]
)
headers = latin | st.lists(pieces, max_size=20).map("".join)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ALL_HEADERS, headers)))
def test_whatever_is_sent_only_valid_values_come_through(sent):
    changed = applied(**sent)
    if "REMOTE_ADDR" in changed:
        assert canonical(changed["REMOTE_ADDR"]) == changed["REMOTE_ADDR"]
    assert changed.get("wsgi.url_scheme", "https") == "https"
    for key in ("REMOTE_PORT", "SERVER_PORT"):
        assert 0 <= int(changed.get(key, "1")) <= 65535
    for key in ("HTTP_HOST", "SERVER_NAME", "SCRIPT_NAME"):
        assert not set(changed.get(key, "")) & set(" \t\r\n\"'<>\\/?#%") - {"/"}


# RFC 7239 section 4, read from the left as the next server does.
ELEMENT = re.compile(
    r"""\s*(?:[!#$%&'*+.^_`|~\w-]+=(?:[!#$%&'*+.^_`|~\w-]+|"(?:[^"\\]|\\.)*"))?(?:;(?:[^;,"]+="""
    r"""(?:[^;,"]+|"(?:[^"\\]|\\.)*"))?)*\s*(?:,|\Z)""",
    re.ASCII,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("FORWARDED", "X_FORWARDED_FOR"), headers)))
def test_whatever_is_sent_the_next_element_stands_for_itself(sent):
    before = continued(environ(**sent))
    text, at, elements = f"{before}, for=us" if before else "for=us", 0, []
    while at < len(text):
        found = ELEMENT.match(text, at)
        assert found is not None, (text, at)
        elements.append(found[0].strip(" \t,"))
        at = found.end()
    assert elements[-1] == "for=us"
