"""The help of the command line: commands in groups, each with its whole summary."""

from typing import Any

from typer.core import TyperGroup

# The groups of commands in `fbsearch --help`, in this order.
SEARCH, LOOK, USE, MEASURE = "Search", "Look", "Use", "Measure"
MAX_SUMMARY = 200  # characters; a sentence, which is wrapped


class GroupedCommands(TyperGroup):
    """Commands under the name of their group (Typer's `rich_help_panel`), whose summaries are wrapped and not cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands as Typer does, a section for each group."""
        found = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        shown = [command for command in found if command is not None and not command.hidden]
        width = max(len(command.name or "") for command in shown)
        groups: dict[str, list[tuple[str, str]]] = {}
        for command in shown:
            group = getattr(command, "rich_help_panel", None)
            row = ((command.name or "").ljust(width), command.get_short_help_str(limit=MAX_SUMMARY))
            groups.setdefault(group if isinstance(group, str) else "Commands", []).append(row)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)
