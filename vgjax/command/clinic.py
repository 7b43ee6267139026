"""`vgjax clinic`: examine an initializer or an activation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from vgjax.command.options import Folder, safe_name, use_cores_as_devices

if TYPE_CHECKING:
    from vgjax.clinic.examination import Report


@dataclass(frozen=True)
class Clinic:
    """Examine an initializer or activation of your own: what it resembles, and what it does to signals."""

    initializer: Annotated[Positional[str], arg(metavar="INITIALIZER")] = ""
    """module:function or a name from `vgjax list initializers`; without it, each --activation is examined."""
    activation: Annotated[tuple[str, ...], arg(metavar="NAME …")] = ()
    """Activations to use besides tanh, relu and sigmoid; without INITIALIZER, the ones to examine [names]."""
    out: Folder = None
    """Folder of the page and its numbers; several activations get a folder each inside it; default: clinic/NAME."""

    def run(self) -> None:
        """Examine, write the pages and print their tables."""
        if not (self.initializer or self.activation):
            raise ValueError("nothing to examine; allowed: an INITIALIZER, or --activation NAME")
        use_cores_as_devices()
        from vgjax.clinic.examination import ACTIVATIONS, examine_activation, examine_initializer
        from vgjax.clinic.page import write_report
        from vgjax.command.progress import status_line

        with status_line() as show:
            if self.initializer:
                activations = tuple(dict.fromkeys((*ACTIVATIONS, *self.activation)))
                reports = [examine_initializer(self.initializer, activations, show)]
            else:
                reports = [examine_activation(name, show) for name in self.activation]
        for report in reports:
            name = safe_name(report.name)
            folder = self.out or Path("clinic", name)
            page = write_report(report, folder / name if self.out and len(reports) > 1 else folder)
            print_report(report, page)


def print_report(report: Report, page: Path) -> None:
    """Print the verdicts of a report, and where its page is."""
    from vgjax.command.printing import print_table
    from vgjax.report import format_number

    signs = {True: "✓", False: "✗", None: "–"}
    rows = [
        (
            signs[v.good],
            v.what,
            v.value if isinstance(v.value, str) else format_number(v.value),
            f"{format_number(v.low)} … {format_number(v.high)}" if format_number(v.low) else None,
            v.judgement,
        )
        for v in report.verdicts
    ]
    print_table(report.sentence, ("", "what", "value", "interval", "judgement"), rows, ("value", "interval"))
    print(f"page     {page}\nnumbers  {page.with_suffix('.json')}")
