"""`paretopress device`: the profiles of devices, and measuring this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.device_checks import lint_command, validate_command, vela_command
from paretopress.cli.options import common, next_command, print_json, terminal_width
from paretopress.spaces.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from paretopress.hardware_profiles.profile import DeviceProfile

TIERS = {
    "T0": "datasheet: ranks only, no milliseconds",
    "T1": "calibrated on published figures",
    "T2": "measured",
}
VALIDATION = {"set": "on", "n": "n", "mape": "mean error", "within10": "within 10 %", "spearman": "Spearman"}
_VERBS = ("list", "show", "measure", "probe", "import", "validate", "lint", "vela")


class _DeviceVerbs(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _VERBS:
            raise ConfigError(unknown_name("device command", args[0], _VERBS))
        return super().resolve_command(ctx, args)


@click.group("device", cls=_DeviceVerbs)
def device_command() -> None:
    """List, show, measure and check device profiles."""


device_command.add_command(validate_command)
device_command.add_command(lint_command)
device_command.add_command(vela_command)


@device_command.command("list")
@common
def list_command(as_json: bool) -> int:
    """List the devices that --target understands."""
    from paretopress.hardware_profiles.catalogue import list_profiles, load_profile
    from paretopress.hardware_profiles.local import cached_profile
    from paretopress.tables import plain_table, render

    rows = [summary(load_profile(name)) for name in list_profiles()]
    local = cached_profile()
    first = (
        summary(local)
        if local
        else {
            "id": "local",
            "kind": "cpu",
            "tier": None,
            "runtime": "onnxruntime",
            "runs_here": True,
            "notes": "this machine; measured on first use",
        }
    )
    rows.insert(0, first)
    if as_json:
        print_json(rows)
        return 0
    cells = [
        [
            row["id"],
            row["kind"],
            row["tier"] or "–",
            row["runtime"],
            "yes" if row["runs_here"] else "no",
            row["notes"].partition(". ")[0].rstrip("."),
        ]
        for row in rows
    ]
    headings = ("device", "kind", "tier", "runtime", "runs here", "notes")
    click.echo(render([plain_table("", headings, cells)], terminal_width()), nl=False)
    click.echo("; ".join(f"{tier}: {meaning}" for tier, meaning in TIERS.items()))
    next_command("paretopress device show local")
    return 0


@device_command.command("show")
@click.argument("device")
@common
def show_command(device: str, as_json: bool) -> int:
    """Show a profile: what the device can execute, its limits, and how far predictions can be trusted.

    DEVICE is an id of 'paretopress device list', a profile file, or local.
    """
    from paretopress.hardware_profiles.catalogue import load_profile

    profile = measured_here(60.0) if device == "local" else load_profile(device)
    if as_json:
        print_json(profile.plain)
        return 0
    click.echo(profile_text(profile, terminal_width()), nl=False)
    next_command(
        f"paretopress search --target {device} --model PKG.MOD:FUNCTION --data PKG.MOD:FUNCTION --time 5m"
    )
    return 0


def summary(profile: DeviceProfile) -> dict[str, Any]:
    """Return a profile's row of the list."""
    return {
        "id": profile.id,
        "kind": profile.document.kind,
        "tier": profile.tier,
        "runtime": f"{profile.runtime} {profile.runtime_version}".strip(),
        "runs_here": profile.runs_here(),
        "notes": profile.notes,
    }


def profile_text(profile: DeviceProfile, width: int) -> str:
    """Return a profile as tables: facts, formats, and how it did on networks that it was not fitted on."""
    from paretopress.evaluators.budgets import shown
    from paretopress.tables import plain_table, render

    limits, can = profile.limits, profile.capabilities()
    facts = [
        ("tier", f"{profile.tier}, {TIERS.get(profile.tier, '')}"),
        (
            "runtime",
            f"{profile.runtime} {profile.runtime_version}, threads {profile.threads}, batch {profile.batch}",
        ),
        ("runs here", "yes" if profile.runs_here() else "no"),
        ("channel step", str(can.channel_step)),
        ("rank step", str(can.rank_step)),
        ("memory", shown("size", limits.sram_bytes)),
        ("flash", shown("size", limits.flash_bytes)),
        ("notes", profile.notes),
    ]
    formats = [
        (
            f"{one['weights']}/{one['activations']}",
            one["status"],
            one.get("executes") or "–",
            one.get("reason") or "",
        )
        for one in profile.plain["formats"]
    ]
    parts = [
        plain_table(profile.id, ("", ""), facts),
        plain_table("Formats", ("bits weights/activations", "status", "executes as", "reason"), formats),
    ]
    rows = [[_cell(entry, key) for key in VALIDATION] for entry in profile.plain.get("validation") or []]
    if rows:
        headings = tuple(VALIDATION.values())
        parts.append(plain_table("Predicted against measured", headings, rows, right=headings[1:]))
    return render(parts, width)


def _cell(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return "–"
    if key in ("mape", "within10"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def measured_here(seconds: float, *, refresh: bool = False, plain: bool = False) -> DeviceProfile:
    """Return the profile `local`, measured with progress where it is not cached or `refresh` asks for it."""
    from paretopress.measuring import measure_local
    from paretopress.progress import observing

    with observing(plain=plain) as observer:
        return measure_local(observer, seconds, refresh=refresh)


def _add_commands() -> None:
    from paretopress.cli.device_measure import import_command, measure_command, probe_command

    for command in (measure_command, probe_command, import_command):
        device_command.add_command(command)


_add_commands()
