"""From the files below static routes to what is served in their place.

    look -> digests -> bundles -> style sheets, those that are referred to first -> scripts -> pages -> state

Law: reads sources through tree.py and keeps results in home.py; serves nothing, knows no worker and no loop.
What was made once of the same content in the same way is not made again. A file that can't be worked on is
served as it is, and the state says why. That a file can't be read or written now says nothing of what it
would be: it is tried again with the next build.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from acme_wsgi.assets import bundle, css, minify, names, pages, scripts, tree
from acme_wsgi.assets.home import Home, length
from acme_wsgi.assets.order import components
from acme_wsgi.assets.plan import Plan
from acme_wsgi.assets.records import YOUNG, Entry, Key, Stamp, State
from acme_wsgi.assets.tree import Source

SETTLED = 2.0
"""Seconds after which a file's mtime tells versions apart: clocks of file systems tick in milliseconds, and
copies may bring a time of their own."""

SECOND = 1_000_000_000
"""In nanoseconds: dates in HTTP are whole seconds."""

PROGRESS = 5.0
"""Seconds between two words on how far a build is."""

AS_IT_IS = "it is served as it is"

_KINDS = {".css": "css", ".js": "js", ".mjs": "js", ".html": "html", ".htm": "html"}

Say = Callable[[str], None]


@dataclass(slots=True)
class Node:
    """Something that is served: a file, or a bundle.

    :ivar digest: of what it is made from
    :ivar text: gives that, as latin-1 text
    :ivar bundle: of a bundle, the object that it is without references to versions; "" for a file
    :ivar fixed: its content must not change
    :ivar newest: mtime, in nanoseconds, of the newest file that says what is served
    :ivar found: the references in it, and what else there is to know (see `_references`)
    :ivar renamed: reference as written -> as it shall be
    """

    hosts: tuple[str, ...]
    url: str
    kind: str
    sources: tuple[Source, ...]
    stamps: tuple[Stamp, ...]
    digest: str
    size: int
    text: Callable[[], str]
    bundle: str = ""
    fixed: bool = False
    newest: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    content: str = ""
    versioned: str = ""

    def __post_init__(self) -> None:
        self.newest = self.written

    @property
    def key(self) -> Key:
        return self.hosts, self.url

    @property
    def written(self) -> int:
        """The mtime, in nanoseconds, of the newest of its own files."""
        return max((changed for _, changed in self.stamps), default=0)

    @property
    def bundled(self) -> bool:
        """Whether there is no such file."""
        return bool(self.bundle)

    @property
    def tag(self) -> str:
        """Names the content that is served."""
        return self.content or self.digest


def changed(state: State, found: tree.Tree) -> bool:
    """Whether files are other ones than those that the state was built from."""
    return found.roots != state.roots or found.stamps() != {
        path: stamp for path, (stamp, _) in state.known.items()
    }


def build(
    plan: Plan,
    home: Home,
    previous: State | None,
    found: tree.Tree,
    say: Say,
    seconds: float = math.inf,
    elder: Mapping[Key, Entry] | None = None,
) -> State:
    """Build everything; what `previous` holds of the same files is taken from there.

    :param seconds: how long pages may take. Nothing depends on them: those that are left over stay as they
        are, and the state says how many there are
    :param elder: what was last said of URLs under other settings: their dates don't go back from there
    """
    return _Build(plan, home, previous or State(), found, say, seconds, elder or {}).run()


class _Build:
    def __init__(
        self,
        plan: Plan,
        home: Home,
        previous: State,
        found: tree.Tree,
        say: Say,
        seconds: float,
        elder: Mapping[Key, Entry],
    ) -> None:
        self.seconds = seconds
        self.plan, self.home, self.previous, self.found, self.say = plan, home, previous, found, say
        self.state = State(roots=found.roots)
        self.nodes: dict[Key, Node] = {}
        self.unchanged_roots = {
            root for root, identity in found.roots.items() if previous.roots.get(root) == identity
        }
        self.now_ns = time.time_ns()
        self.spoke = time.monotonic()
        self.making = 0
        self.refused = math.inf  # bytes of the smallest object that could not be kept
        self.former = {entry.key: entry for entry in previous.entries}
        self.elder = elder

    def run(self) -> State:
        if self.found.left_out:
            self._complain(
                "", f"more than {tree.MOST_FILES} files below static routes; some are served as they are"
            )
        for source in self.found.sources.values():
            self._add_file(source)
        self._add_bundles()
        self._read_references()
        for node in self._of_kind("file", "js"):
            self._make(node, {})
            self._name(node, node.tag)
        self._make_sheets(self._of_kind("css"))
        nameable = self._of_kind("css", "js") if self.plan.versioning is not None else []
        if nameable and not any(node.versioned for node in nameable):
            self._complain("", "no static route has files for static.versioning.pattern; is its path right?")
        self._make_pages(self._of_kind("html"))
        self.state.entries = [self._entry(node) for node in self.nodes.values() if self._is_worth(node)]
        return self.state

    def _of_kind(self, *kinds: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.kind in kinds]

    # -- what there is -------------------------------------------------------------------------------------

    def _add_file(self, source: Source) -> None:
        kind = _kind(source.url) if source.stamp[0] <= minify.LARGEST else "file"
        digest = self._digest(source) if kind != "file" or self._counts(source.url) else ""
        if not digest:
            self.state.known.setdefault(source.path, (source.stamp, ""))
            return
        node = Node(
            source.mount.hosts,
            source.url,
            kind,
            (source,),
            (source.stamp,),
            digest,
            source.stamp[0],
            lambda: self._text(source),
        )
        self.nodes[node.key] = node

    def _counts(self, url: str) -> bool:
        """Whether anything is done with files that are neither style sheets, scripts nor pages."""
        versioning = self.plan.versioning
        return _is_text(url) or (versioning is not None and bool(versioning.versioned(url, "")))

    def _digest(self, source: Source) -> str:
        """The digest of a file, remembered by its stamp; "" for one that isn't looked into."""
        stamp, path = source.stamp, source.path
        if stamp[0] > tree.LARGEST:
            return ""
        known = self.previous.known.get(path)
        same = known is not None and known[0] == stamp and source.mount.root in self.unchanged_roots
        if known is not None and same and known[1]:
            self.state.known[path] = known
            return known[1]
        try:
            digest, read = tree.digest(source)
        except (OSError, ValueError) as error:
            self._complain(path, f"it can't be read: {_reason(error)}")
            return ""
        young = abs(self.now_ns - stamp[1]) < SETTLED * 1e9
        self.state.known[path] = ((stamp[0], YOUNG) if young or read != stamp else stamp, digest)
        self._progress(f"read {path}")
        return digest

    def _text(self, source: Source) -> str:
        """A file's content. Should it be another one by now, the next look will find out."""
        return tree.read(source, minify.LARGEST)[0].decode("latin-1")

    def _add_bundles(self) -> None:
        groups = {mount.hosts for mount in self.plan.sites.mounts}
        members: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
        targets = {each.target for each in self.plan.bundles}
        for each in self.plan.bundles:
            for hosts in sorted(groups):
                urls = [url for own, url in self.nodes if own == hosts and url not in targets]
                found = [self.nodes[hosts, url] for url in each.members(urls)]
                if found:
                    members[each.target, hosts] = found
            if not any(target == each.target for target, _ in members):
                self._complain(each.target, "no file belongs to this bundle")
        for each in self.plan.bundles:
            for hosts in sorted(groups):
                if (each.target, hosts) in members:
                    self._add_bundle(each, hosts, members[each.target, hosts])

    def _add_bundle(self, each: bundle.Bundle, hosts: tuple[str, ...], members: list[Node]) -> None:
        mount = self.plan.sites.owner(hosts, each.target)
        if mount is None or not mount.serves(each.target):
            self._complain(each.target, "no static route serves the path of this bundle")
            return
        of_kind = [member for member in members if member.kind == each.kind[1:]]
        for member in members:
            if member not in of_kind:
                what = f"it is no {each.kind} file: {each.target} does without it"
                self._complain(member.sources[0].path, what)
        content = [[member.url, member.digest] for member in of_kind]
        recipe = [each.target, content, self._minifies(each.kind[1:])]
        sources = [source for member in of_kind for source in member.sources]
        paths = [each.target, *(source.path for source in sources)]
        name = self._cached(
            recipe, lambda: self._joined(each, of_kind), each.kind, paths, "it can't be built"
        )
        if not name:
            former = self.former.get((mount.hosts, each.target))
            if former is None or not former.joined or not self.home.has(former.joined):
                return
            name = former.joined  # the page that needs it is better off with the one that it had
        if (mount.hosts, each.target) in self.found.sources:
            self._complain(each.target, "the bundle is served instead of the file of this name")
        node = Node(
            mount.hosts,
            each.target,
            each.kind[1:],
            tuple(sources),
            tuple(stamp for member in of_kind for stamp in member.stamps),
            hashlib.sha256(name.encode()).hexdigest(),
            0,
            lambda: self.home.read(name).decode("latin-1"),
            bundle=name,
        )
        self.nodes[node.key] = node

    def _joined(self, each: bundle.Bundle, members: list[Node]) -> str:
        paths = {member.url: member.sources[0].path for member in members}

        def complain(url: str, what: str) -> None:
            self._complain(paths[url], f"in {each.target}: {what}")

        pieces = [bundle.Member(member.url, self._small(member, member.text())) for member in members]
        if each.kind == ".css":
            return bundle.join_css(pieces, each.target, complain)
        return bundle.join_js(pieces, complain)

    # -- references ----------------------------------------------------------------------------------------

    def _read_references(self) -> None:
        """Of style sheets and pages; and which files a page pins by a hash of their content."""
        for node in self.nodes.values():
            if node.kind not in ("css", "html") or (self.plan.versioning is None and node.kind == "css"):
                continue
            node.found = self.previous.references.get(node.digest, {})
            # Of a page only what it pins must be known before style sheets and scripts are made.
            if not node.found and (node.kind == "css" or self._pins(node)):
                node.found = self._references(node)
            if node.found:
                self.state.references[node.digest] = node.found
        for node in list(self.nodes.values()):
            for text in node.found.get("integrity", ()):
                target = self._target(node, text)
                if target is not None and not target.bundled:
                    target.fixed = True

    def _pins(self, node: Node) -> bool:
        """Whether a page may say what the content of others must be. One that can't be read says so later."""
        try:
            return "integrity" in node.text().lower()
        except (OSError, ValueError):
            return True

    def _references(self, node: Node) -> dict[str, Any]:
        """All that is found in a style sheet or page; nothing where it can't be read this time."""
        try:
            text = node.text()
            if node.kind == "css":
                found = css.references(text)
                return {"references": [each.text for each in found if each.clear]}
            page = pages.references(text)
        except OSError as error:
            self._refuse(node.sources[0].path, AS_IT_IS, error)
            return {}
        except ValueError as error:
            return {"broken": _reason(error)}
        self._progress(f"read {node.url}")
        return {
            "references": [each.text for each in page.references if each.clear],
            "integrity": page.integrity,
            "base": page.base,
        }

    def _target(self, node: Node, reference: str) -> Node | None:
        """What a reference means, if that is one of ours and the same for everybody who sees the page."""
        base = node.found.get("base")
        around = node.url
        if base is not None:
            meant = names.resolve(base + "x", node.url)  # a directory, or a file whose directory counts
            if meant is None:
                return None
            around = meant
        url = names.resolve(reference, around)
        if url is None:
            return None
        mount = self.plan.sites.owner(node.hosts, url)
        return None if mount is None else self.nodes.get((mount.hosts, url))

    def _renames(self, node: Node) -> dict[str, str]:
        """Reference as written -> with the hash of what it means, which thereby is part of the node."""
        renames = {}
        for reference in node.found.get("references", ()):
            target = self._target(node, reference)
            if target is not None and target.versioned:
                renames[reference] = names.redirected(reference, target.versioned)
                node.newest = max(node.newest, target.newest)
        return renames

    # -- making --------------------------------------------------------------------------------------------

    def _make_sheets(self, sheets: list[Node]) -> None:
        """A style sheet's hash covers the hashes of what it refers to, so that goes first."""
        by_key = {node.key: node for node in sheets}
        edges = {
            node.key: [
                target.key
                for text in node.found.get("references", ())
                if (target := self._target(node, text)) is not None and target.key in by_key
            ]
            for node in sheets
        }
        for component in components(edges):
            group = [by_key[key] for key in component]
            if len(group) == 1 and group[0].key not in edges[group[0].key]:
                self._make(group[0], self._renames(group[0]))
                self._name(group[0], group[0].tag)
            else:
                self._make_circle(group)

    def _make_circle(self, group: list[Node]) -> None:
        """Style sheets that import each other: their names come of what they are but for those names."""
        whole = hashlib.sha256()
        for node in sorted(group, key=lambda node: node.key):
            renames = sorted(self._renames(node).items())  # nobody in the circle has a name yet
            whole.update(json.dumps([node.url, node.digest, self._minifies("css"), renames]).encode())
        for node in group:
            self._name(node, hashlib.sha256(whole.digest() + node.url.encode()).hexdigest())
        named = {node.key: self._renames(node) for node in group}
        newest = max(node.newest for node in group)
        for node in group:
            node.newest = newest
            self._make(node, named[node.key])

    def _make_pages(self, nodes: list[Node]) -> None:
        until = time.monotonic() + self.seconds
        left = 0
        for node in sorted(nodes, key=lambda node: node.size):  # a huge one doesn't keep many waiting
            self._carry(_small_recipe(node))
            if not node.found:
                if time.monotonic() >= until:
                    self.state.pending += 1
                    continue
                node.found = self._references(node)
                if not node.found:
                    continue
                self.state.references[node.digest] = node.found
            renames = self._renames(node)
            if not self._is_known(node, renames):
                if node.size >= self.refused:
                    left += 1  # to find out for each of them that it has no room would take long, too
                    continue
                if time.monotonic() >= until:
                    self.state.pending += 1
                    continue
            self._make(node, renames)
        if left:
            self.state.failures[""] = f"pages that can't be kept are served as they are: {left}"

    def _name(self, node: Node, digest: str) -> None:
        """Give it a versioned URL, if it can have one that is answered by its own route."""
        if self.plan.versioning is None or node.kind == "html":
            return
        url = self.plan.versioning.versioned(node.url, digest)
        mount = self.plan.sites.owner(node.hosts, url) if url else None
        if mount is not None and mount.hosts == node.hosts and mount.serves(url):
            own = node.bundled or mount is node.sources[0].mount
            if own and (node.hosts, url) not in self.found.sources:
                node.versioned = url

    def _make(self, node: Node, renames: dict[str, str]) -> None:
        """Find out what is served for a node."""
        if node.made or (node.fixed and not node.bundled):
            return
        if not (renames or node.bundled or self._minifies(node.kind)):
            return
        extension = "." + node.url.rpartition(".")[2]
        page = self._small_page(node) if node.kind == "html" and self._minifies("html") else ""
        if page is None:
            return
        paths = [source.path for source in node.sources]
        otherwise = AS_IT_IS
        if node.bundled:
            paths, otherwise = [node.url, *paths], "it refers to URLs without versions"
        recipe = self._recipe(node, renames)
        made = self._cached(
            recipe, lambda: self._transformed(node, renames, page), extension, paths, otherwise
        )
        node.made = made or node.bundle
        if node.made:
            node.content = hashlib.sha256(node.made.encode()).hexdigest()

    def _recipe(self, node: Node, renames: dict[str, str]) -> list[Any]:
        """All that decides what is made of a node."""
        # A bundle's members are small already, or can't be.
        minified = self._minifies(node.kind) and not node.bundled and not _is_small(node.url)
        return [node.kind, node.digest, minified, sorted(renames.items())]

    def _is_known(self, node: Node, renames: dict[str, str]) -> bool:
        """Whether it was made before."""
        return _key(self._recipe(node, renames)) in self.previous.made

    def _small_page(self, node: Node) -> str | None:
        """The object of a page that is minified and not yet rewritten, "" if it can't be; see `_cached`.

        A changed style sheet gives all pages that use it a new name for it, and nothing else.
        """

        def small() -> str | None:
            text = node.text()
            made = self._small(node, text)
            return made if made != text else None

        return self._cached(_small_recipe(node), small, ".html", [node.sources[0].path], AS_IT_IS)

    def _carry(self, recipe: list[Any]) -> None:
        """Remember what was made, even if nobody asks for it this time."""
        key = _key(recipe)
        if key in self.previous.made:
            self.state.made[key] = self.previous.made[key]

    def _transformed(self, node: Node, renames: dict[str, str], page: str) -> str | None:
        """What is served in a node's place, None for the file itself.

        :param page: the object of a page that is minified already
        """
        if node.kind == "html":
            text = self.home.read(page).decode("latin-1") if page else node.text()
            return pages.rewrite(text, _changer(renames)) if renames else (text if page else None)
        text = node.text()
        if not node.bundled and _has_source_map(node.kind, text):
            return None
        if node.kind == "css" and not node.bundled:
            css.references(text)  # a broken file is served as it is
        small = text if node.bundled else self._small(node, text)
        if not renames:
            return small if small != text or node.bundled else None
        return css.rewrite(small, _changer(renames))

    def _small(self, node: Node, text: str) -> str:
        """Minified, if that is wanted and can be done."""
        if not self._minifies(node.kind) or _is_small(node.url) or _has_source_map(node.kind, text):
            return text
        worker = {"css": minify.minify_css, "js": minify.minify_js, "html": minify.minify_html}[node.kind]
        try:
            return worker(text)
        except (ValueError, RuntimeError, TypeError, UnicodeError) as error:
            self._complain(node.sources[0].path, f"it is served as it is: {_reason(error)}")
            return text

    def _minifies(self, kind: str) -> bool:
        settings = self.plan.minification
        return {"css": settings.css, "js": settings.js, "html": settings.html}.get(kind, False)

    def _cached(
        self,
        recipe: list[Any],
        make: Callable[[], str | None],
        extension: str,
        paths: Sequence[str],
        otherwise: str,
    ) -> str | None:
        """The object that a recipe makes, "" where it makes nothing better than the file itself.

        :param paths: whom it is about; the first of them is named when it fails
        :param otherwise: what becomes of that one then
        :returns: None where files could not be read or written: that is no result, and not remembered
        """
        key = _key(recipe)
        name = self.previous.made.get(key)
        if name is None or (name and not self.home.has(name)):
            self.making += 1
            name = self._put(make, extension, paths[0], otherwise)
            self._progress(f"{self.making} files made")
        else:
            for path in paths:
                what = self.previous.complaints.get(path, "")
                if what.startswith((otherwise, AS_IT_IS, "in ")):  # what was said when it was made
                    self._complain(path, what)
        if name is not None:
            self.state.made[key] = name
        return name

    def _put(self, make: Callable[[], str | None], extension: str, path: str, otherwise: str) -> str | None:
        try:
            text = make()
            if text is None:
                return ""
            content = text.encode("latin-1")
        except OSError as error:
            self._refuse(path, otherwise, error)
            return None
        except ValueError as error:
            self._complain(path, f"{otherwise}: {_reason(error)}")
            return ""
        try:
            return self.home.put(content, extension)
        except OSError as error:
            self._refuse(path, otherwise, error, len(content))
            self.refused = min(self.refused, len(content))
            return None

    # -- the result ----------------------------------------------------------------------------------------

    def _is_worth(self, node: Node) -> bool:
        """Whether anything is to be known of it that the file itself doesn't say."""
        return bool(node.made or node.versioned or node.kind in ("css", "js", "html") or _is_text(node.url))

    def _entry(self, node: Node) -> Entry:
        size = length(node.made) if node.made else node.size
        former = self.former.get(node.key)
        coded = former.coded if former is not None and former.tag == node.tag[:32] else {}
        return Entry(
            hosts=node.hosts,
            url=node.url,
            sources=tuple(source.path for source in node.sources),
            stamps=node.stamps,
            tag=node.tag[:32],
            size=size,
            modified=self._modified(node),
            made=node.made,
            bundled=node.bundled,
            joined=node.bundle,
            versioned=node.versioned,
            coded={coding: name for coding, name in coded.items() if not name or self.home.has(name)},
        )

    def _modified(self, node: Node) -> int:
        """When the content became what it is: as it was said before of the same content; never earlier than
        it was said of another, since whoever asks by date would be told that nothing has changed.
        """
        newest = min(node.newest if node.made else node.written, self.now_ns)
        said = [each for each in (self.elder.get(node.key), self.former.get(node.key)) if each is not None]
        if not said:
            return newest
        former = max(said, key=lambda entry: entry.modified)  # of the same date that of other settings
        if former.tag == node.tag[:32]:
            return former.modified
        later = former.modified // SECOND * SECOND + SECOND
        # Until now the file was served as it lies, with its own date. What was made of it is another content.
        return newest if newest >= later and not node.made else max(self.now_ns, later)

    def _complain(self, path: str, what: str) -> None:
        self.state.complaints.setdefault(path, what)

    def _refuse(self, path: str, otherwise: str, error: OSError, room: int = 1) -> None:
        """Note what the file system refused. `room`: bytes that have to be free before it is tried again."""
        self.state.failures.setdefault(path, f"{otherwise}: {_reason(error)}")
        self.state.room = min(self.state.room or room, room)

    def _progress(self, what: str) -> None:
        now = time.monotonic()
        if now - self.spoke >= PROGRESS:
            self.spoke = now
            self.say(f"building assets: {what}; {len(self.found.sources)} files in all")


def manifest(entries: Iterable[Entry]) -> bytes:
    """URL -> versioned URL, as they stand in references. Routes without hosts win over those with."""
    urls: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: (entry.url, bool(entry.hosts), entry.hosts)):
        if entry.versioned:
            urls.setdefault(names.escaped(entry.url), names.escaped(entry.versioned))
    return json.dumps(urls, indent=2).encode() + b"\n"


def _key(recipe: list[Any]) -> str:
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:40]


def _small_recipe(node: Node) -> list[Any]:
    return ["page", node.digest]


def _changer(renames: dict[str, str]) -> Callable[[css.Reference], str | None]:
    return lambda each: renames.get(each.text) if each.clear else None


def _kind(url: str) -> str:
    name = url.rpartition("/")[2]
    return _KINDS.get("." + name.rpartition(".")[2].lower() if "." in name else "", "file")


def _is_text(url: str) -> bool:
    return url.lower().endswith((".svg", ".json", ".xml", ".txt", ".webmanifest", ".map"))


def _is_small(url: str) -> bool:
    """Whether a file's name says that it is minified."""
    return ".min." in url.rpartition("/")[2]


def _has_source_map(kind: str, text: str) -> bool:
    return (kind == "css" and css.has_source_map(text)) or (kind == "js" and scripts.has_source_map(text))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
