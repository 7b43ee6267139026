"""`vgjax clinic`: examine an initializer or an activation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vgjax.command.options import Folder, cores_are_devices, plain_name


@dataclass(frozen=True)
class Clinic:
    """Examine an initializer, or an activation, of your own: whom it resembles, and what it does to signals."""

    initializer: Annotated[Positional[str], arg(metavar="INITIALIZER")] = ""
    """module:function or a name from `vgjax list initializers`; none: each --activation is examined."""
    activation: Annotated[tuple[str, ...], arg(metavar="NAME …")] = ()
    """Activations to examine it with, besides tanh, relu and sigmoid; or to be examined themselves [names]."""
    out: Folder = None
    """Folder of the page and its numbers, with a folder each where several are examined; default: clinic/NAME."""

    def run(self) -> None:
        """Examine, write the page and print its table."""
        if not (self.initializer or self.activation):
            raise ValueError("nothing to examine; allowed: an INITIALIZER, or --activation NAME")
        cores_are_devices()
        from vgjax.clinic.examination import ACTIVATIONS, examine_activation, examine_initializer
        from vgjax.clinic.page import write_report
        from vgjax.command.progress import working

        with working() as note:
            if self.initializer:
                activations = tuple(dict.fromkeys((*ACTIVATIONS, *self.activation)))
                reports = [examine_initializer(self.initializer, activations, note)]
            else:
                reports = [examine_activation(name, note) for name in self.activation]
        for report in reports:
            name = plain_name(report.name)
            folder = self.out or Path("clinic", name)
            page = write_report(report, folder / name if self.out and len(reports) > 1 else folder)
            print_report(report, page)


def print_report(report: Any, page: Path) -> None:
    """What the clinic found (`vgjax.clinic.Report`), and where its page is."""
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
