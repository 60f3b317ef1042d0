"""Hostile and broken files: each is a clear error with its place, soon, and never a traceback."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from acme_wsgi.config import Config, load, nodes
from acme_wsgi.errors import ConfigError


def refused(path: Path, content: str | bytes | None = None) -> str:
    """The message with which a file of this content is refused."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load([str(path)])
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "acme.yaml"


def accepted(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load([str(file)])


def test_an_alias_bomb(file: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    started = time.monotonic()
    message = refused(file, "\n".join(levels))
    assert "more than 100000 values, aliases counted each time they are used" in message
    assert time.monotonic() - started < 5


def test_a_merge_key_bomb(file: Path) -> None:
    levels = ["a0: &a0 {k: v}"]
    levels += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    assert "more than 100000 values" in refused(file, "\n".join(levels))


def test_an_alias_inside_what_it_names(file: Path) -> None:
    assert refused(file, "server: &a\n  port: *a\n").startswith(
        f"{file}:2:9: alias *a stands inside what it names"
    )


def test_an_unknown_alias(file: Path) -> None:
    assert f"{file}:1:9: unknown alias *nope" in refused(file, "server: *nope\n")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting(file: Path, opening: str) -> None:
    assert "nested deeper than 32 levels" in refused(file, "\n" + opening * 5000)


def test_a_key_that_is_no_text(file: Path) -> None:
    assert f"{file}:1:3: a key must be a text; found a mapping" in refused(file, "? " * 5000)


def test_a_file_of_a_hundred_gigabytes_is_refused_without_reading_it_all(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(100 << 30)
    started = time.monotonic()
    assert refused(file) == f"{file}: larger than 1MB, which no configuration is"
    assert time.monotonic() - started < 10


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert (
        refused(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: can't be read: No such file or directory"
    )


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "can't be read: No such file or directory" in refused(tmp_path / "conf.d")


def test_a_file_that_may_not_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the kernel's answer is given for it.
    real = os.open

    def open_(path: str, *arguments: int) -> int:
        if path == str(file):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments)

    file.write_text("")
    monkeypatch.setattr(os, "open", open_)
    assert refused(file) == f"{file}: can't be read: Permission denied"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert refused(pipe) == f"{pipe}: not a regular file"


def test_a_directory_named_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "sub.yaml").mkdir()
    assert "sub.yaml: can't be read: Is a directory" in refused(tmp_path)


def test_bytes_that_are_not_utf_8(file: Path) -> None:
    message = refused(file, b"server:\n  h\xc3\xb6st: \xff\n")
    assert message == f"{file}:2:9: not UTF-8: byte 0xff (invalid start byte)"


def test_a_utf_16_file(file: Path) -> None:
    assert f"{file}:1:1: not UTF-8" in refused(file, "server: {}".encode("utf-16"))


def test_a_byte_order_mark_is_no_matter(file: Path) -> None:
    assert accepted(file, "\ufeffserver: {port: 81}").server.port == 81


def test_a_nul_byte(file: Path) -> None:
    assert f"{file}:2:8: a character that YAML doesn't allow: U+0000" in refused(
        file, "server:\n  port:\0 1\n"
    )


def test_a_key_written_twice_names_both_lines(file: Path) -> None:
    message = refused(file, "server:\n  port: 1\n  host: a\n  port: 2\n")
    assert message == f"{file}:4:3: port: written twice, in line 2 and in line 4"


def test_several_documents(file: Path) -> None:
    assert f"{file}:2:1: a second document" in refused(file, "server: {}\n---\nserver: {}\n")


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "42\n"])
def test_a_file_that_is_no_mapping(file: Path, text: str) -> None:
    assert "allowed: a mapping of sections" in refused(file, text)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n", "server:\n", "routes:\n"])
def test_files_that_say_nothing(file: Path, text: str) -> None:
    assert accepted(file, text) == Config()


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!binary", "!!set", "!ENV", "!<tag:yaml.org,2002:python/none>"],
)
def test_tags_construct_nothing(file: Path, tag: str) -> None:
    assert "unknown tag" in refused(file, f"server:\n  host: {tag} echo\n")


def test_the_mistakes_of_one_file_do_not_hide_those_of_another(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("server: {port: x\n")
    (tmp_path / "2.yaml").write_bytes(b"\xff")
    (tmp_path / "3.yml").write_text("server: {prot: 1}\n")
    message = refused(tmp_path)
    assert [line.split(":")[0][-6:] for line in message.splitlines()] == ["1.yaml", "2.yaml", "/3.yml"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("server:\n\tport: 1\n", 2),
        ("server:\n  port: 1\n host: a\n", 3),
        ("server: {port: 1\n", 2),
        ("server:\n  host: 'a\n", 3),
        ('server:\n  host: "\\q"\n', 2),
        ("server:\n  port 1\n  host: b\n", 3),
        ('server: "\\UFFFFFFFF"\n', 1),
        ("%YAML 9.1\n---\na: b\n", 1),
    ],
)
def test_broken_syntax_names_its_line(file: Path, text: str, line: int) -> None:
    assert refused(file, text).startswith(f"{file}:{line}")


def test_only_yaml_files_of_a_directory_are_read_in_byte_order(tmp_path: Path) -> None:
    for name in ("B.yaml", "a.yaml", "10.yml", "9.yaml"):
        (tmp_path / name).write_text(f"cache: {{l2: {{password: {name}}}}}\nserver: {{workers: 1}}\n")
    for name in (
        ".h.yaml",
        "z.yaml~",
        "z.yaml.dpkg-old",
        "z.dpkg-new.yaml",
        "z.yaml.rpmsave",
        "z.rpmnew.yaml",
        "z.txt",
        "#z.yaml",
    ):
        (tmp_path / name).write_text("broken: [")
    config = load([str(tmp_path)])
    assert config.cache.l2.password == "a.yaml"
    assert config.origin("cache.l2.password") == f"{tmp_path}/a.yaml:1"


def test_a_directory_with_too_many_files(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number}.yaml").touch()
    assert refused(tmp_path) == f"{tmp_path}: 1001 files; allowed: 1000"


def test_a_file_name_with_control_characters_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\n\x1b[31m.yaml").write_text("prot: 1\n")
    message = refused(tmp_path)
    assert "\x1b" not in message
    assert message.count("\n") == 0
    (tmp_path / "a\n\x1b[31m.yaml").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")).write_text("prot: 1\n")
    assert "\\udcff.yaml:1:1" in refused(tmp_path)


def test_anchors_aliases_and_merge_keys_work(file: Path) -> None:
    config = accepted(
        file,
        "backends:\n- &one {url: 'http://a', weight: 5}\n- {<<: *one, url: 'http://b'}\n"
        "server: {timeout: &t 5s, keep_alive_timeout: *t}\n",
    )
    assert [(each.url, each.weight) for each in config.backends] == [("http://a", 5), ("http://b", 5)]
    assert config.server.keep_alive_timeout == 5


def test_json_is_read_with_its_surrogate_pairs(file: Path) -> None:
    assert (
        accepted(file, r'{"cache": {"l2": {"password": "\ud83d\ude00"}}}').cache.l2.password == "\U0001f600"
    )
    assert "without control characters" in refused(file, r'{"cache": {"l2": {"password": "\ud83d"}}}')


def test_a_file_that_is_all_wrong_is_bounded(file: Path) -> None:
    message = refused(file, "".join(f"key{number}: 1\n" for number in range(3000)))
    assert message.count("\n") == 1000
    assert message.endswith("and 2000 problems more")


def test_keys_with_line_ends_stay_in_their_line(file: Path) -> None:
    text = '"a\\nb": 1\n"a\\nb": 2\nenvironments: {"x\\ny": 5}\nserver: {? "\\e[31m" : 1}\n'
    message = refused(file, text)
    assert message.count("\n") == 3
    assert "\x1b" not in message


def test_the_bounds_are_what_the_manual_says() -> None:
    manual = (Path(__file__).parents[3] / "docs/configuration.md").read_text(encoding="utf-8")
    assert f"at most {nodes.MAX_BYTES >> 20}MB" in manual
    assert f"nest {nodes.MAX_DEPTH} levels" in manual
    assert f"at most {nodes.MAX_NODES} values" in manual
