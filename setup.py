"""Build of ACME: the Cython modules, the package mapping, the two commands and the man pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import greenlet
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "acme_wsgi/__init__.py").read_text()).group(1)

# One source per module, compiled always: no pure-Python twin to drift from it.
CYTHON_MODULES = [
    "acme_wsgi.http.h1",
    "acme_wsgi.http.chunked",
    "acme_wsgi.http.writer",
    "acme_wsgi.http.environ",
    "acme_wsgi.http.reply",
    "acme_wsgi.files.openfile",
    "acme_wsgi.files.cache",
    "acme_wsgi.scoreboard",
    "acme_wsgi.reactor",
    "acme_wsgi.stream",
    "acme_wsgi.loading",
    "acme_wsgi.sending",
    "acme_wsgi.body",
    "acme_wsgi.service",
    "acme_wsgi.request",
    "acme_wsgi.answer",
    "acme_wsgi.tunnel",
    "acme_wsgi.admission",
    "acme_wsgi.connection",
    "acme_wsgi.engine",
    "acme_wsgi.upstream.board",
    "acme_wsgi.compression.wrapper",
    "acme_wsgi.upstream.link",
    "acme_wsgi.upstream.tls",
    "acme_wsgi.upstream.pool",
    "acme_wsgi.upstream.shape",
    "acme_wsgi.upstream.payload",
    "acme_wsgi.upstream.exchange",
    "acme_wsgi.handlers._exchange",
    "acme_wsgi.handlers._static",
]

SANITIZE = os.environ.get("ACME_SANITIZE") == "1"


def extension(name: str) -> Extension:
    # Greenlets copy their stacks away and back, which a watched stack takes for overflows.
    sanitized = ["-O1", "-g", "-fsanitize=address,undefined", "--param=asan-stack=0"]
    flags = sanitized if SANITIZE else ["-O3", "-fno-plt"]
    return Extension(
        name,
        [name.replace("acme_wsgi.handlers", "handlers").replace(".", "/") + ".pyx"],
        depends=["acme_wsgi/http/grammar.h", *map(str, sorted(Path("acme_wsgi/upstream").glob("*.h")))],
        include_dirs=[str(Path(greenlet.__file__).parent), "acme_wsgi/http", "acme_wsgi/upstream"],
        extra_compile_args=flags,
        extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
    )


setup(
    name="acme-wsgi",
    version=VERSION,
    description="A web server for Python web applications: event-loop scale for plain blocking code",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # `handlers/` stands at the top of the checkout and is installed as acme_wsgi.handlers; the relative
    # symlink acme_wsgi/handlers lets a plain checkout and type checkers find it there too.
    packages=sorted({*find_packages(include=["acme_wsgi", "acme_wsgi.*"]), "acme_wsgi.handlers"}),
    package_dir={"acme_wsgi.handlers": "handlers"},
    package_data={
        "acme_wsgi": [
            "py.typed", "*.pyi", "*.pxd", "http/*.pyi", "http/*.pxd", "http/*.h",
            "files/*.pyi", "files/*.pxd", "compression/*.pyi",
            "upstream/*.pyi", "upstream/*.pxd", "upstream/*.h",
        ],
        "acme_wsgi.handlers": ["*.pyi"],
    },
    ext_modules=cythonize(
        [extension(name) for name in CYTHON_MODULES],
        compiler_directives={"language_level": "3"},
    ),
    # The lowest versions are those of Debian 12.
    install_requires=[
        "gevent>=22.10.2", "greenlet>=2.0.2", "Werkzeug>=2.2.2", "PyYAML>=6.0",
        "brotli>=1.0.9", "rcssmin>=1.1.0", "rjsmin>=1.2.0", "minify-html>=0.15",
    ],
    extras_require={
        "test": [
            # httpbin itself is installed by scripts/test: what it pins would hold greenlet back.
            "Django", "Flask", "brotlicffi", "decorator", "gunicorn", "h11", "httptools", "hypothesis",
            "mypy", "pytest", "pytest-xdist", "ruff", "six", "types-PyYAML", "zlib-ng",
        ],
        # Not in Debian 12; used where it is there.
        "fast": ["zlib-ng"],
        "bench": ["bjoern", "granian", "gunicorn", "waitress"],
    },
    entry_points={
        "console_scripts": [
            "acme-wsgi = acme_wsgi.cli.serve:main",
            "acme-server = acme_wsgi.cli.manage:main",
        ]
    },
)
