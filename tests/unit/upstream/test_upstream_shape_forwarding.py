"""What a backend is told of who asks, and whose word is taken for it."""

from __future__ import annotations

import pytest

from acme_wsgi.errors import HTTPError
from acme_wsgi.upstream.target import Target
from tests.unit.upstream.heads import OURS, TRUSTED, apart, asked, sent, shaper

# -- who asks ---------------------------------------------------------------------------------------------

LISTS = {
    "HTTP_X_FORWARDED_FOR": "6.6.6.6, 192.0.2.9",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "evil.test",
    "HTTP_FORWARDED": 'for=6.6.6.6;host="evil.test", for=192.0.2.9',
}


def test_an_untrusted_client_says_nothing_of_itself() -> None:
    head = sent(asked(**LISTS))
    assert head["X-Forwarded-For"] == "192.0.2.1"
    assert head["X-Forwarded-Proto"] == "http"
    assert head["X-Forwarded-Host"] == "example.test"
    assert head["Forwarded"] == 'for=192.0.2.1;host="example.test";proto=http'


def test_a_trusted_proxys_lists_go_on_with_its_address() -> None:
    believed = {"REMOTE_ADDR": "192.0.2.9", "wsgi.url_scheme": "https", "HTTP_HOST": "shop.test"}
    head = sent(asked(**LISTS, **believed, **{"acme.peer": TRUSTED}))
    assert head["X-Forwarded-For"] == f"6.6.6.6, 192.0.2.9, {TRUSTED}"
    assert head["X-Forwarded-Proto"] == "https"
    assert head["X-Forwarded-Host"] == "shop.test"
    ours = f'for={TRUSTED};host="shop.test";proto=https'
    assert head["Forwarded"] == f'for=6.6.6.6;host="evil.test", for=192.0.2.9, {ours}'


@pytest.mark.parametrize("forwarded", ["for=6.6.6.6;proto=https;host=evil", 'for=192.0.2.9;"', ""])
def test_a_forwarded_that_nobody_believes_of_a_trusted_proxy_goes_no_further(forwarded: str) -> None:
    told = {"HTTP_X_FORWARDED_FOR": "192.0.2.9", "HTTP_FORWARDED": forwarded}
    head = sent(asked(**told, **{"acme.peer": TRUSTED}))
    assert head["X-Forwarded-For"] == f"192.0.2.9, {TRUSTED}"
    assert head["Forwarded"] == f'for={TRUSTED};host="example.test";proto=http'


def test_a_trusted_proxys_fields_get_through_however_many_names_others_have_made_up() -> None:
    def attack() -> None:
        shape = shaper()
        for number in range(3000):
            sent(asked(**{f"HTTP_X_FORWARDED_{number}": "x", f"HTTP_X_{number}": "x"}), shape)
        told = {"HTTP_X_FORWARDED_PREFIX": "/shop", "HTTP_X_FORWARDED_FOR": "192.0.2.7"}
        late = {"HTTP_X_LATE": "here", **told}
        head = sent(asked(**late, **{"acme.peer": TRUSTED}), shape)
        assert head["X-Forwarded-Prefix"] == "/shop"
        assert head["X-Late"] == "here"
        assert head["X-Forwarded-For"] == f"192.0.2.7, {TRUSTED}"
        head = sent(asked(**late), shape)
        assert head["X-Forwarded-Prefix"] is None
        assert head["X-Late"] == "here"
        assert head["X-Forwarded-For"] == "192.0.2.1"

    apart(attack)


def test_a_trusted_proxy_that_says_nothing_is_the_client() -> None:
    head = sent(asked(**{"acme.peer": TRUSTED}, REMOTE_ADDR=TRUSTED))
    assert head["X-Forwarded-For"] == TRUSTED
    assert head["Forwarded"] == f'for={TRUSTED};host="example.test";proto=http'
    empty = asked(**{"acme.peer": TRUSTED}, HTTP_X_FORWARDED_FOR="", HTTP_FORWARDED="", HTTP_VIA="")
    head = sent(empty)
    assert (head["X-Forwarded-For"], head["Via"]) == (TRUSTED, "1.1 acme")


@pytest.mark.parametrize("peer", ["", "unix:"])
def test_a_peer_without_an_address(peer: str) -> None:
    head = sent(asked(REMOTE_ADDR=peer))
    assert head["X-Forwarded-For"] is None
    assert head["Forwarded"] == 'for=unknown;host="example.test";proto=http'
    head = sent(asked(REMOTE_ADDR="192.0.2.9", HTTP_X_FORWARDED_FOR="192.0.2.9", **{"acme.peer": peer}))
    assert head["X-Forwarded-For"] == "192.0.2.9"
    assert head["Forwarded"] == 'for=unknown;host="example.test";proto=http'


def test_ipv6_is_quoted_where_the_grammar_wants_it() -> None:
    head = sent(asked(REMOTE_ADDR="2001:db8::1", HTTP_HOST="[2001:db8::2]:8080"))
    assert head["X-Forwarded-For"] == "2001:db8::1"
    assert head["Forwarded"] == 'for="[2001:db8::1]";host="[2001:db8::2]:8080";proto=http'


def test_via_names_every_version_it_came_by() -> None:
    assert sent(asked(HTTP_VIA="1.0 a, 1.1 b"))["Via"] == "1.0 a, 1.1 b, 1.1 acme"
    assert sent(asked(SERVER_PROTOCOL="HTTP/1.0"))["Via"] == "1.0 acme"


def test_quotes_are_escaped() -> None:
    head = sent(asked(HTTP_HOST='a"b\\c'), shaper(add=(("Host", "a"),)))
    assert head["Forwarded"] == 'for=192.0.2.1;host="a\\"b\\\\c";proto=http'


def test_a_request_has_our_id() -> None:
    assert sent(asked(HTTP_X_REQUEST_ID="theirs"))["X-Request-Id"] == "0123456789abcdef"


def test_what_we_say_can_be_taken_out() -> None:
    names = tuple(name.lower() for name in OURS[1:])
    assert sent(asked(**LISTS, HTTP_VIA="1.1 a"), shaper(remove=names)).names == ["Host"]


# -- Host -------------------------------------------------------------------------------------------------


def test_host_is_the_clients() -> None:
    assert sent(asked(HTTP_HOST="Shop.Test:8080"))["Host"] == "Shop.Test:8080"


@pytest.mark.parametrize("host", [None, ""])
def test_without_one_it_is_the_backends(host: str | None) -> None:
    head = sent(asked(HTTP_HOST=host, SERVER_PROTOCOL="HTTP/1.0"))
    assert head["Host"] == "app1.internal:8000"
    assert head["X-Forwarded-Host"] is None
    assert head["Forwarded"] == "for=192.0.2.1;proto=http"
    local = Target.parse("unix:/run/app.sock")
    assert sent(asked(HTTP_HOST=host, SERVER_PROTOCOL="HTTP/1.0"), target=local)["Host"] == "localhost"


@pytest.mark.parametrize("name", ["Host", "host"])
def test_a_routes_own_wins(name: str) -> None:
    head = sent(asked(HTTP_HOST="shop.test"), shaper(add=((name, "app.internal"),)))
    assert head["Host"] == "app.internal"
    assert head["X-Forwarded-Host"] == "shop.test"
    assert head.names == OURS


def test_a_routes_own_may_be_made_of_the_request() -> None:
    own = shaper(add=(("X-A", "$host"), ("Host", "$host.internal")))
    assert sent(asked(HTTP_HOST="shop"), own)["Host"] == "shop.internal"
    assert (
        sent(asked(REMOTE_ADDR="192.0.2.1"), shaper(add=(("Host", "$remote_addr:80"),)))["Host"]
        == "192.0.2.1:80"
    )
    without = sent(asked(HTTP_HOST=None, SERVER_PROTOCOL="HTTP/1.0"), shaper(add=(("Host", "$host"),)))
    assert without["Host"] == "app1.internal:8000", "as without the route's"


@pytest.mark.parametrize(
    ("value", "environ"),
    [
        ("$host.internal", {"HTTP_HOST": "shop:80"}),
        ("$host:81", {"HTTP_HOST": "shop:80"}),
        ("$remote_addr", {"REMOTE_ADDR": "2001:db8::1"}),
        ("$remote_addr:80", {"REMOTE_ADDR": "unix:"}),
    ],
)
def test_what_is_no_host_never_leaves(value: str, environ: dict[str, str]) -> None:
    with pytest.raises(HTTPError) as caught:
        sent(asked(**environ), shaper(add=(("Host", value),)))
    assert caught.value.status == 400
    assert sent(asked()).names == OURS
