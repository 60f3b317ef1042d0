"""Media types by file name, the same on every machine.

Law: a table and nothing else. The system's mime.types are not read: what a site's files are called in
responses must not depend on the packages installed beside it.
"""

from __future__ import annotations

import mimetypes

UNKNOWN = "application/octet-stream"

# Beyond Python's own table, or instead of what it says.
_OWN = {
    ".js": "text/javascript",  # RFC 9239
    ".mjs": "text/javascript",
    ".cjs": "text/javascript",
    ".jsonld": "application/ld+json",
    ".geojson": "application/geo+json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".xml": "application/xml",  # text/xml with a charset would overrule the document's own declaration
    ".atom": "application/atom+xml",
    ".rss": "application/rss+xml",
    ".xhtml": "application/xhtml+xml",
    ".wasm": "application/wasm",
    ".md": "text/markdown",
    ".rst": "text/x-rst",
    ".log": "text/plain",
    ".ini": "text/plain",
    ".conf": "text/plain",
    ".yaml": "application/yaml",  # RFC 9512
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".ics": "text/calendar",
    ".vcf": "text/vcard",
    ".vtt": "text/vtt",
    ".avif": "image/avif",
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".jxl": "image/jxl",
    ".apng": "image/apng",
    ".ico": "image/vnd.microsoft.icon",
    ".cur": "image/vnd.microsoft.icon",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".ttf": "font/ttf",
    ".otf": "font/otf",
    ".ttc": "font/collection",
    ".eot": "application/vnd.ms-fontobject",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".ogv": "video/ogg",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".mpd": "application/dash+xml",
    ".m4s": "video/iso.segment",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".weba": "audio/webm",
    ".epub": "application/epub+zip",
    ".7z": "application/x-7z-compressed",
    ".gz": "application/gzip",
    ".tgz": "application/gzip",
    ".bz2": "application/x-bzip2",
    ".xz": "application/x-xz",
    ".zst": "application/zstd",
    ".br": UNKNOWN,
    ".rar": "application/vnd.rar",
    ".jar": "application/java-archive",
    ".whl": "application/zip",
    ".apk": "application/vnd.android.package-archive",
    ".deb": "application/vnd.debian.binary-package",
    ".iso": UNKNOWN,
    ".img": UNKNOWN,
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
}

_TABLE = dict(mimetypes.MimeTypes(filenames=()).types_map[1]) | _OWN


def media_type(name: str) -> str:
    """The media type of a file of this name (its last component), without parameters; case doesn't count.

    By the last extension alone: a ``page.html.gz`` asked for by that name is a compressed file.
    """
    dot = name.rfind(".")
    return _TABLE.get(name[dot:].lower(), UNKNOWN) if dot > 0 else UNKNOWN


def is_text(media: str) -> bool:
    """Whether a charset belongs to this media type: text/* alone. JSON has none (RFC 8259 section 11), XML
    says its own.
    """
    return media.startswith("text/")
