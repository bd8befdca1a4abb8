"""`kvwatt`: a table of commands, each imported only when it is called, or when its options are completed.

Exit codes of every command: see `commands.exits`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, NoReturn

import typer

from kvwattd.commands.exits import EPILOG
from kvwattd.version import kvwatt_version

ENTRY_POINTS = "kvwatt.commands"
HELP = (
    "Keeps LLM serving inside its latency promises at the least energy.\n\n"
    "To see it: kvwatt demo. The way to a deployment: kvwatt doctor, profile, train, run (in shadow mode), "
    "report, mode active (docs/first-run.md). Every command explains itself: kvwatt COMMAND --help."
)
# What a shell sets while it asks for completions, and where it puts the line: bash, then zsh and fish.
COMPLETING, LINES = "_KVWATT_COMPLETE", ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")


@dataclass(frozen=True, slots=True)
class Command:
    """`target` is module:attribute; None is looked up among the entry points, for what lies above us."""

    help: str
    target: str | None = None


COMMANDS = {
    "demo": Command("Show the savings on a simulated GPU: no GPU, vLLM or configuration needed."),
    "doctor": Command(
        "Check GPU, driver, permissions, vLLM, model and ports; say what to do.",
        "kvwattd.commands.doctor:doctor",
    ),
    "profile": Command(
        "Measure a running server over clocks, batches and contexts.", "kvwattd.commands.profile:profile"
    ),
    "train": Command("Fit the step-time and power model to a profile.", "kvwattd.commands.train:train"),
    "advise": Command(
        "Say how large KV pool, batch and prompt chunks should be, and why.", "kvwattd.commands.advise:advise"
    ),
    "predict": Command("Ask a trained model.", "kvwattd.commands.predict:predict"),
    "run": Command("Run the daemon beside vLLM.", "kvwattd.commands.run:run"),
    "guard": Command("Run the privileged process that alone writes clocks.", "kvwattd.commands.guard:app"),
    "status": Command("Show what a running daemon does.", "kvwattd.commands.status:status"),
    "top": Command("Watch it live.", "kvwattd.commands.top:top"),
    "mode": Command("Show or change what it may do: off, shadow, active.", "kvwattd.commands.mode:mode"),
    "slo": Command("Show or change the promises.", "kvwattd.commands.slo:slo"),
    "override": Command("Hold a clock by hand for a while.", "kvwattd.commands.override:override"),
    "scale": Command("Show or set how many instances run.", "kvwattd.commands.scale:scale"),
    "report": Command(
        "Show what was used and saved, with intervals, from the ledger.", "kvwattd.commands.report:report"
    ),
    "token": Command("Make a token for the daemon's REST interface.", "kvwattd.commands.token:token"),
    "replay": Command("Replay a trace or a recording on a simulated plant under any policy."),
    "sim": Command("Make, show, set and break simulated GPUs."),
}


class CommandMissing(Exception):  # noqa: N818 (reads as the state it tells of)
    """The command is known but its code is not installed."""


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _target(name: str) -> Any:  # noqa: ANN401 (a function or a Typer app)
    command = COMMANDS.get(name)
    try:
        if command is not None and command.target is not None:
            module, _, attribute = command.target.partition(":")
            return getattr(import_module(module), attribute)
        return _plugins()[name].load()
    except KeyError as error:
        raise CommandMissing(f"no entry point {name!r} in {ENTRY_POINTS}: reinstall kvwatt") from error
    except (ImportError, AttributeError) as error:
        raise CommandMissing(f"cannot load the command {name!r}: {error}") from error


def run_command(name: str, args: list[str]) -> NoReturn:
    """Import one command and hand it its arguments. Always exits."""
    try:
        target = _target(name)
    except CommandMissing as error:
        typer.echo(f"kvwatt: {error}", err=True)
        raise SystemExit(1) from error
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(epilog=EPILOG)(target)
        target = app
    target(args=args, prog_name=f"kvwatt {name}")
    raise SystemExit(0)


def _forwarder(name: str) -> Callable[[typer.Context], None]:
    def forward(ctx: typer.Context) -> None:
        run_command(name, ctx.args)

    return forward


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvwatt {kvwatt_version()}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Root of all commands; its help is HELP."""


def build_app() -> typer.Typer:
    """The command line with every known command and every other entry point, none of them imported."""
    app = typer.Typer(
        name="kvwatt", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False
    )
    app.callback(help=HELP, epilog=EPILOG)(_root)
    others = {name: Command("Provided by another package.") for name in _plugins() if name not in COMMANDS}
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    completed = _completed()
    for name, command in (COMMANDS | others).items():
        if name == completed:
            _add_whole(app, name)
            continue
        register = app.command(name, help=command.help, add_help_option=False, context_settings=settings)
        register(_forwarder(name))
    return app


def _completed() -> str | None:
    """The command whose options a shell asks for, if it does."""
    if COMPLETING not in os.environ:
        return None
    line = next((os.environ[name] for name in LINES if name in os.environ), "")
    words = line.split()
    return words[1] if len(words) > 2 or (len(words) == 2 and line.endswith((" ", "\n"))) else None


def _add_whole(app: typer.Typer, name: str) -> None:
    """With its options, so that they can be completed; a command that cannot be loaded has none."""
    try:
        target = _target(name)
    except CommandMissing:
        return
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name)
    else:
        app.command(name)(target)


def main() -> None:
    """Console script."""
    # Help that is piped into a closed pager is no error worth a traceback.
    try:
        build_app()(prog_name="kvwatt")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
