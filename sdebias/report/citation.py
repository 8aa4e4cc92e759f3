"""How to cite the package and the article whose theory it implements, as in CITATION.cff."""

from __future__ import annotations

from .._version import __version__

AUTHORS = ("N. Aladrah", "E. Ballarin", "M. Biagetti", "A. Ansuini", "A. d'Onofrio", "F. Anselmi")
TITLE = "Understanding and inverse design of implicit bias in stochastic learning: a geometric perspective"
PACKAGE = "sdebias: implicit bias of stochastic gradient descent as geometry"
YEAR = 2026
EPRINT = "2601.06597"


def citations() -> list[str]:
    """Return the article and the package, one line each."""
    return [
        f"{', '.join(AUTHORS)}. {TITLE}. arXiv:{EPRINT} ({YEAR}).",
        f"The sdebias developers. {PACKAGE}. Version {__version__} ({YEAR}).",
    ]


def bibtex() -> str:
    """Return the article and the package as BibTeX."""
    return (
        f"@article{{aladrah{YEAR},\n  title = {{{TITLE}}},\n  author = {{{' and '.join(AUTHORS)}}},\n"
        f"  journal = {{arXiv:{EPRINT}}},\n  year = {{{YEAR}}}\n}}\n"
        f"@software{{sdebias,\n  title = {{{{{PACKAGE}}}}},\n  author = {{{{The sdebias developers}}}},\n"
        f"  version = {{{__version__}}},\n  year = {{{YEAR}}}\n}}"
    )
