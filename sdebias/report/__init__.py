"""Reports: what a dataset is and says, in words and as one HTML page."""

from .page import html_report as html_report
from .text import comparison_text as comparison_text
from .text import reproduce_command as reproduce_command
from .text import verdict as verdict
