"""Scripts: what is broken, what is a module, and what a minifier may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.assets import minify, scripts
from acme_wsgi.assets.css import Broken


@pytest.mark.parametrize(
    "text",
    [
        "var a = `x ${ `y ${ {a: 1}.a } z` } w`;",
        "x = a / b / c; y = /a\\/[/\"']b/g.test(c)",
        "if (a) { /'/.test(b) }",
        "return /[(]/",
        "#!/usr/bin/env node\nx",
        "class A { #p = 1; static { } }",
        "\\u{61}b = 'a\\\nb'",
    ],
)
def test_sound_scripts_can_be_followed(text: str) -> None:
    scripts.check(text)


@pytest.mark.parametrize("text", ["f(", "'a", "`a", "/* a", "a)", "{(})", "`${a`", '"a\nb"'])
def test_what_does_not_end_is_broken(text: str) -> None:
    with pytest.raises(Broken):
        scripts.check(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("function f ( a ) { return a + 1 } // x", "function f(a){return a+1}"),
        ("a = b\nc = d", "a=b\nc=d"),
        ("x = `a  ${ b }  // c`", "x=`a  ${ b }  // c`"),
    ],
)
def test_minified(before: str, after: str) -> None:
    assert minify.minify_js(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "x = `${a + `b  /* c */` }`",  # the inner template would lose its comment
        "class A { x = 1\n *g(){} }",  # would become a product
        "f = a => /x  y/",
        "class A { x\n `y`\n }",
        "a // b\xe2\x80\xa8c()\nd",  # a line separator ends the comment, too
        "return/* a\r */b",
        "return/* a\xe2\x80\xa9 */b",
    ],
)
def test_a_changed_meaning_is_noticed(text: str) -> None:
    with pytest.raises(minify.Suspicious):
        minify.minify_js(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a\nb", "a b"), ("a++\nb", "a++b"), ("return\na", "return a"), ("'a  b'", "'a b'"), ("a\n(b)", "a(b)")],
)
def test_other_meanings_differ(one: str, other: str) -> None:
    assert not scripts.same(one, other)


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("import a from 'b'", True),
        ("export default 1", True),
        ("x(); export {x}", True),
        ("import('a')", False),
        ("a.export = 1; if (b) { c.import(d) }", False),
        ("import.meta.url", False),
    ],
)
def test_modules_are_told_apart(text: str, module: bool) -> None:
    assert scripts.is_module(text) is module


def test_the_directive_counts_at_the_front_alone() -> None:
    assert scripts.is_strict("/* a */ 'use strict'; b")
    assert not scripts.is_strict("b; 'use strict'")


MAPPED = "sourceMappingURL=a.js.map"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        (f"a\n//# {MAPPED}", "a\n"),
        (f"a //@ {MAPPED}\r\nb", "a \r\nb"),
        (f"//# {MAPPED}\na\n//# {MAPPED}\n", "\na\n\n"),
        (f"in/*# {MAPPED} */stanceof", "in/**/stanceof"),
        ("//# sourceMappingURL=data:application/json;base64,e30=", ""),
    ],
)
def test_the_comment_that_names_a_source_map_goes(text: str, without: str) -> None:
    assert scripts.has_source_map(text)
    assert scripts.without_source_map(text) == without


@pytest.mark.parametrize(
    "text",
    [
        f"return a + '\\n//# {MAPPED}'",
        f'x = "//# {MAPPED}" // "',
        f"`//# {MAPPED}\n/*# {MAPPED}*/ ${{ a }}`",
        f"/[//# {MAPPED}]/.test(a)",
        f"// see //# {MAPPED}",
        f"return/*# {MAPPED}\n*/a",
        "// sourceMappingURL",
    ],
)
def test_what_looks_like_such_a_comment_stays(text: str) -> None:
    assert not scripts.has_source_map(text)
    assert scripts.without_source_map(text) == text


def test_a_broken_script_with_such_a_comment_is_not_worked_on() -> None:
    text = f"f('a\n//# {MAPPED}"
    assert scripts.has_source_map(text)
    with pytest.raises(Broken):
        scripts.without_source_map(text)


@given(st.text(alphabet="ab{}()[]'\"`$\\/* \n.+-=;1", max_size=40))
def test_tokens_make_up_the_whole(text: str) -> None:
    try:
        found = list(scripts.tokens(text))
    except Broken:
        return
    assert "".join(piece for _, piece in found) == text
