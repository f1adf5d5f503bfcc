"""An alignment's report as a page: one file without scripts, or a part of a notebook."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from memalign.alignment.proof import UNREAD, chance

if TYPE_CHECKING:
    from jinja2 import Template

    from memalign.alignment.report import AlignReport


def page(report: AlignReport) -> str:
    """A whole HTML document that needs nothing else; every text in it is escaped."""
    head = (
        f'<meta charset="utf-8">\n<title>Alignment, revision {report.revision}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<style>body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; } :root { color-scheme: light dark; }</style>"
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{part(report)}\n</body>\n</html>\n'


def part(report: AlignReport) -> str:
    """The same as an element for a notebook or another page."""
    return _template().render(report=report, proof=report.verification, chance=chance, unread=UNREAD).strip()


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("memalign.alignment", "pages")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    return environment.get_template("report.html.jinja")
