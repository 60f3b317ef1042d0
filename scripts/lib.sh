# shellcheck shell=bash
# What `serve`, `test` and `bench` share: Debian packages, the private environment, the build. Sourced, never run.
# Its law: everything it makes lies in .venv (and in what setup.py builds in place); everything is skipped when
# it is there already, and nothing needs root unless a Debian package is missing.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PATH=$PATH:/usr/sbin:/sbin # nginx lives there; a plain user's PATH may lack them
export PATH

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# apt_install PACKAGE...: Debian packages, by root only; apt's own output only when it fails.
apt_install() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: $* (there is no apt-get here)"
    [ "$(id -u)" = 0 ] || die "please install, as root: apt-get install $*"
    say "apt-get install $*"
    local log
    log=$(mktemp)
    # RUNLEVEL=1: a package that brings a service must not start it.
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -q --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "apt-get could not install: $*"
    fi
    rm -f "$log"
}

# need COMMAND:PACKAGE...: installs the packages of those commands that aren't there.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    apt_install "${missing[@]}"
}

# What building from source takes: an interpreter with venv and headers, and a C compiler.
need_python() {
    need python3:python3 gcc:gcc
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 must be Python 3.11 or later"
    local missing=()
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    python3 -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        missing+=(python3-dev)
    echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || missing+=(libc6-dev)
    apt_install "${missing[@]}"
}

# fingerprint FILE...: one hash over names and contents.
fingerprint() { (cd "$ROOT" && sha256sum "$@" | sha256sum | cut -d' ' -f1); }

# prepare_environment [EXTRA]: .venv with ACME installed editable, with the dependencies of EXTRA, and compiled.
# Two stamps, so that an edit of a .pyx costs a compile and not a round of pip.
prepare_environment() {
    local extra=${1:-} stamp declared sources
    local target=$ROOT${extra:+[$extra]}
    stamp=$VENV/.acme-installed${extra:+-$extra}
    declared=$(fingerprint setup.py pyproject.toml)
    sources=$(cd "$ROOT" && find acme_wsgi handlers -name '*.py[xd]' -type f -o -name '*.h' -type f | LC_ALL=C sort | xargs sha256sum | sha256sum)
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        need_python
        say "new environment in $VENV"
        rm -rf "$VENV"
        python3 -m venv "$VENV"
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$declared" ]; then
        need_python
        say "installing ACME${extra:+ with what \"$extra\" needs}"
        # The build runs in this environment, not in a throw-away one, so that a rebuild finds its tools.
        "$VENV/bin/pip" install -q --disable-pip-version-check \
            'setuptools>=65' wheel 'Cython>=0.29.32' 'greenlet>=2.0.2' </dev/null
        "$VENV/bin/pip" install -q --disable-pip-version-check --no-build-isolation -e "$target" </dev/null
        # httpbin pins greenlet below 3 for no need of its own: alone, next to what setup.py names of its needs.
        [ "$extra" != test ] ||
            "$VENV/bin/pip" install -q --disable-pip-version-check --no-deps 'httpbin>=0.10.2' </dev/null
        echo "$declared" | tee "$stamp" >"$VENV/.acme-installed" # what an extra installs has the plain one in it
        echo "$sources" >"$VENV/.acme-compiled"
    elif [ "$(cat "$VENV/.acme-compiled" 2>/dev/null)" != "$sources" ]; then
        say "compiling"
        (cd "$ROOT" && "$VENV/bin/python" setup.py -q build_ext --inplace </dev/null)
        echo "$sources" >"$VENV/.acme-compiled"
    fi
}
