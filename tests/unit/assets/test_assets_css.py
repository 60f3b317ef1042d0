"""Style sheets: which references are found and changed, what is broken, and what a minifier may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_wsgi.assets import css, minify


def refs(text: str) -> list[str]:
    return [each.text for each in css.references(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a{background:url(x.png)}", ["x.png"]),
        ("a{background:url( 'x y.png' )}", ["x y.png"]),
        ('a{background:URL("x.png")}', ["x.png"]),
        ("@import 'b.css' screen;", ["b.css"]),
        ("@import url(b.css);", ["b.css"]),
        ("a{b:image-set('x.png' 1x, 'y.png' 2x)}", ["x.png", "y.png"]),
        ("a{b:image-set('x.avif' type('image/avif') 1x)}", ["x.avif"]),
        ("/* url(no.png) */ a{content:'url(no.png)'}", []),
        ("a{background:url(x\\2e png)}", ["x.png"]),
        ("a{b:url()}", [""]),
        ("a{b:url(x 'y.png'{)}", []),
        ("@layer x{a{b:url(in.png)}}", ["in.png"]),
        (".a\\({b:url(x.png)}.c\\{{d:url(y.png)}", ["x.png", "y.png"]),
    ],
)
def test_references_are_found(text: str, found: list[str]) -> None:
    assert refs(text) == found


@pytest.mark.parametrize("text", ["a{--i:url(x.png)}", "@namespace url(x.png);"])
def test_what_is_resolved_elsewhere_is_not_clear(text: str) -> None:
    assert [each.clear for each in css.references(text)] == [False]


def test_only_the_reference_changes() -> None:
    text = "/* a */ a{ background : url( 'x.png' ) no-repeat ;}\n@import \"x.png\" ;"
    assert css.rewrite(text, lambda each: "y.png") == text.replace("x.png", "y.png")


def test_an_unquoted_reference_gets_quotes_where_it_needs_them() -> None:
    assert css.rewrite("a{b:url(x.png)}", lambda each: "x y'.png") == 'a{b:url("x y\\\'.png")}'


@pytest.mark.parametrize("text", ["a{b:c", "a{b:'c}", "/* a", "a}", "a{b:(c}", 'a{b:"\n"}'])
def test_what_does_not_end_is_broken(text: str) -> None:
    with pytest.raises(css.Broken):
        refs(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a > b , c { d : e ; }", "a>b,c{d:e}"),
        ("a :hover{b:c}", "a :hover{b:c}"),
        ("/* x */ a{b: calc(1px + 2px)}", "a{b:calc(1px + 2px)}"),
        ("@media (width >= 6px) and (x){a{b:c}}", "@media (width>=6px) and (x){a{b:c}}"),
    ],
)
def test_minified(before: str, after: str) -> None:
    assert minify.minify_css(before) == after


@pytest.mark.parametrize(
    "text",
    [
        ".a{ .b :hover{c:d} }",  # becomes .b:hover, which is somebody else
        "a{b:url( x y.png )}",
    ],
)
def test_a_changed_meaning_is_noticed(text: str) -> None:
    with pytest.raises(minify.Suspicious):
        minify.minify_css(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b{c:d}", "a>b{c:d}"),
        ("a .b{c:d}", "a.b{c:d}"),
        ("a{b:1px + 2px}", "a{b:1px+2px}"),
        ("a{b:c d}", "a{b:cd}"),
        ("a{b:'c  d'}", "a{b:'c d'}"),
        ("@media x and (y){}", "@media x and(y){}"),
        ("a{b:c;d:e}", "a{b:c}"),
    ],
)
def test_other_meanings_differ(one: str, other: str) -> None:
    assert not css.same(one, other)


@given(st.text(alphabet="ab{}()[]:;,'\"\\/* \n.#@>url-1", max_size=40))
def test_tokens_make_up_the_whole(text: str) -> None:
    try:
        found = list(css.tokens(text))
    except css.Broken:
        return
    assert "".join(token.text for token in found) == text
    assert css.rewrite(text, lambda each: None) == text


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("a{b:c}\n/*# sourceMappingURL=a.css.map */\n", "a{b:c}\n/**/\n"),
        (".a/*@ sourceMappingURL=data:,x*/.b{c:d}", ".a/**/.b{c:d}"),
        ("a{b:'/*# sourceMappingURL=a.css.map */'}", "a{b:'/*# sourceMappingURL=a.css.map */'}"),
        ("a{b:url(/*#)}/* c sourceMappingURL=*/", "a{b:url(/*#)}/* c sourceMappingURL=*/"),
    ],
)
def test_only_the_comment_that_names_a_source_map_goes(text: str, without: str) -> None:
    assert css.has_source_map(text) is (text != without)
    assert css.without_source_map(text) == without


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", ""),
        ("a{b:c} /* d */ @layer e; @media x{f{g:h}}", ""),
        ("a{b:c", "}"),
        ("@media x{a{b:'c", "'}}"),
        ("a{b:c}/* d", "*/"),
        ("/*/", "*/"),
        ("a{b:url(c", ")}"),
        ("a{b:url( c d", ")}"),
        ("a{b:url('c", "')}"),
        ("a{b:c(d[e", "])}"),
        # A rule has begun.
        ("a{b:c}}", "{}"),
        ("a{b:c};", "{}"),
        ("a{b:c} d e", "{}"),
        ("a:not(b", "){}"),
        ("@import 'a.css'", ";"),
        ("@import 'a.css", "';"),
        ("@media (a", ");"),
        ("@import 'a.css';", ""),
        ("@layer a;;", "{}"),
        ("<!-- a{b:c} -->", ""),
        ("a <!-- b", "{}"),
        ("a{b:c}} d{e:f}", ""),
        ("a{b:c}} d{e:f", "}"),
        # What is no closer there closes nothing.
        ("a{b:(c}", ")}"),
        ("a{b:c)]", "}"),
        ("a{b:'c\n}", ""),
        ("a{b:'c\nd", "}"),
        ("a{b:'c\\2014\r\nd'", "}"),
        ("a{b:'c\\a\n", "'}"),
        ("a{b:url(it's) } d{", "}"),
        ("a{b:url(c{d\\)", ")}"),
        ("a{b:'}\\'}", "'}"),
        ("a\\({b:c}", ""),
        ("a\\\\({b:c}", "){}"),
        (".a\\}", "{}"),
        # A backslash in front of the end.
        ("a{b:'c\\", "\n'}"),
        ("a{b:c\\", "\xef\xbf\xbd}"),
        ("a{b:url(c\\", "\xef\xbf\xbd)}"),
    ],
)
def test_the_end_ends_what_is_open(text: str, end: str) -> None:
    assert css.ending(text) == end
    assert css.ending(text + end) == ""


@given(st.text(alphabet="ab{}()[]:;,'\"\\/* \n.#@>url-1", max_size=40))
def test_what_is_ended_leaves_nothing_open(text: str) -> None:
    ended = text + css.ending(text)
    assert css.ending(ended) == ""
    assert css.ending(ended + "\na{b:c}") == ""


def test_imports_at_the_head_are_split_off() -> None:
    assert css.split_imports('@charset "utf-8"; @import "a.css"; b{c:d}') == (
        '@charset "utf-8"; @import "a.css";',
        " b{c:d}",
    )
    assert css.split_imports("b{c:d}") == ("", "b{c:d}")
    assert css.split_imports("@import 'a.css';} b{c:d}") == ("@import 'a.css';", "} b{c:d}")
