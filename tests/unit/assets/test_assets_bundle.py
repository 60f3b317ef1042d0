"""Bundles: which files, in which order, and what is said of those that can't mean the same."""

from __future__ import annotations

import pytest

from acme_wsgi.assets import bundle
from acme_wsgi.assets import css as css_tokens
from acme_wsgi.assets.bundle import Member

TARGET = "/static/bundle.css"


def css(*members: Member) -> tuple[str, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    return bundle.join_css(members, TARGET, lambda url, what: said.append((url, what))), said


def js(*texts: str) -> tuple[str, list[str]]:
    said: list[str] = []
    members = [Member(f"/s/{number}.js", text) for number, text in enumerate(texts)]
    return bundle.join_js(members, lambda url, what: said.append(what)), said


def test_members_come_in_the_order_of_patterns_and_names() -> None:
    (made,) = bundle.of([("/s/first.css", "/s/b.css"), ("/s/*.css", "/s/b.css")])
    urls = ["/s/z.css", "/s/first.css", "/s/a.css", "/s/b.css", "/s/deep/c.css", "/s/a.js"]
    assert made.members(urls) == ["/s/first.css", "/s/a.css", "/s/z.css"]


@pytest.mark.parametrize(
    ("source", "target"), [("/s/*.css", "/s/all.txt"), ("/s/**.css", "/s/b.css"), ("/s/*.css", "/s/*.css")]
)
def test_impossible_bundles_are_refused(source: str, target: str) -> None:
    with pytest.raises(ValueError):
        bundle.of([(source, target)])


def test_references_mean_the_same_from_the_bundle() -> None:
    text, said = css(
        Member(
            "/static/css/a.css",
            "a{b:url(../img/x.png?v#f)}b{c:url('y.png') url(/z.png) url(data:x) url(#g) url(//h/i)}",
        )
    )
    assert text == (
        "a{b:url(img/x.png?v#f)}b{c:url('css/y.png') url(/z.png) url(data:x) url(#g) url(//h/i)}\n"
    )
    assert said == []


def test_imports_go_to_the_head() -> None:
    text, said = css(Member("/static/a.css", "a{b:c}"), Member("/static/d.css", "@import 'e.css';f{g:h}"))
    assert text == "@import 'e.css';\na{b:c}\nf{g:h}\n"
    assert [url for url, _ in said] == ["/static/d.css"]


def test_charsets_and_byte_order_marks_go() -> None:
    text, said = css(Member("/static/a.css", '\xef\xbb\xbf@charset "utf-8";a{b:c}'))
    assert (text, said) == ("a{b:c}\n", [])


@pytest.mark.parametrize("broken", ["a{b:c", "a{b:'c", "a{b:c}/* d", "@media x{a{b:c", "a{b:url(c"])
def test_a_broken_file_ends_where_it_ends(broken: str) -> None:
    text, said = css(Member("/static/a.css", broken), Member("/static/b.css", "z{y:x}"))
    assert text.endswith("\nz{y:x}\n")
    assert css_tokens.split_charset(text)[1].count("z{y:x}") == 1
    assert [each.text for each in css_tokens.tokens(text)][-2] == "}"
    assert len(said) == 1


@pytest.mark.parametrize("begun", ["a{b:c}}", "a{b:c}} d{e:f", "a{b:c};", "a{b:c} d", "@layer e"])
def test_a_rule_that_has_begun_takes_nothing_of_the_next_file(begun: str) -> None:
    text, _ = css(Member("/static/a.css", begun), Member("/static/b.css", "z{y:x}"))
    assert text == f"{begun}{css_tokens.ending(begun)}\nz{{y:x}}\n"
    assert css_tokens.ending(begun)


def test_scripts_are_statements_of_their_own() -> None:
    assert js("a // b", "(c)") == ("a // b\n;\n(c)\n;\n", [])


def test_a_directive_does_not_hold_for_others() -> None:
    assert js("'use strict';a", "b")[0].startswith(";\n'use strict'")
    assert js("'use strict';a", "'use strict';b")[0].startswith("'use strict'")
    assert js("'use strict';f(\n//# sourceMappingURL=a.js.map", "b")[0].startswith(";\n'use strict'")


def test_a_script_that_writes_source_maps_keeps_its_strings() -> None:
    text = 'function mapped(code, url) {\n  return code + "\\n//# sourceMappingURL=" + url;\n}'
    assert js(text) == (f"{text}\n;\n", [])


def test_what_a_script_loses_is_told() -> None:
    text, said = js("a\n//# sourceMappingURL=a.js.map", "export default 1", "f(")
    assert "sourceMappingURL" not in text
    assert [what.partition(";")[0] for what in said] == [
        "its source map says nothing about the bundle",
        "it is a module, and a bundle is a classic script",
        ") is missing at the end",
    ]
