"""The command line of `scripts/bench`: which scenario, which peers, which cores; then the tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import __doc__ as about
from .machine import Cores, MachineError, describe, pin, raise_descriptor_limit
from .peers import PEERS, Peer, PeerUnavailable
from .report import as_json
from .scenarios import SCENARIOS, Context, Scenario


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(about or "").splitlines()[0])
    commands = parser.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    for scenario in SCENARIOS.values():
        command = commands.add_parser(scenario.name, help=scenario.summary, description=scenario.summary)
        command.add_argument(
            "--peers",
            metavar="NAME,...",
            default=",".join(scenario.peers),
            help=f"of {', '.join(PEERS)} (default: {','.join(scenario.peers)})",
        )
        command.add_argument(
            "--server-cores", metavar="LIST", help="default: the first core; `any`: not pinned"
        )
        command.add_argument(
            "--client-cores", metavar="LIST", help="default: the second core; `any`: not pinned"
        )
        command.add_argument(
            "--directory", type=Path, help="where logs and temporary files go (default: $TMPDIR)"
        )
        command.add_argument(
            "--json",
            metavar="FILE",
            nargs="?",
            const="-",
            help="a JSON document to FILE; without FILE to stdout, in place of the tables",
        )
        scenario.arguments(command)
    return parser.parse_args()


def _ready_peers(names: str) -> tuple[list[Peer], dict[str, str]]:
    """The named peers, installed; and why those that are left out can't take part."""
    ready: list[Peer] = []
    left_out: dict[str, str] = {}
    for name in filter(None, names.split(",")):
        if name not in PEERS:
            raise MachineError(f"no peer {name!r}; there are: {', '.join(PEERS)}")
        try:
            PEERS[name].prepare()
        except PeerUnavailable as reason:
            left_out[name] = str(reason)
            print(f"left out: {name}: {reason}", file=sys.stderr)
        else:
            ready.append(PEERS[name])
    if not ready:
        raise MachineError("no peer is left to measure")
    return ready, left_out


def _measure(scenario: Scenario, options: argparse.Namespace) -> bool:
    """Run and report; whether every peer did what the scenario asks."""
    machine = describe()
    cores = Cores.choose(options.server_cores, options.client_cores)
    peers, left_out = _ready_peers(options.peers)
    raise_descriptor_limit()
    pin(cores.client)  # this program too stays off the server's core
    with tempfile.TemporaryDirectory(prefix="acme-bench-", dir=options.directory) as base:
        context = Context(peers, cores, Path(base), options)
        tables = scenario.run(context)
    versions = {peer.name: peer.version() for peer in peers}
    settings: dict[str, Any] = {key: value for key, value in vars(options).items() if key != "json"}
    document = as_json(scenario.name, settings, machine, versions, tables, left_out, context.failures)
    if options.json == "-":
        print(document)
        return not context.failures
    if options.json:
        Path(options.json).write_text(document + "\n")
    print("\n\n".join(table.text() for table in tables))
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in machine.items()))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    for name, reason in context.failures.items():
        print(f"FAILED: {name}: {reason}")
    return not context.failures


def main() -> int:
    """Run the scenario that the command line names; 1 when it can't be measured or a peer failed in it."""
    options = _arguments()
    try:
        return 0 if _measure(SCENARIOS[options.scenario], options) else 1
    except MachineError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
