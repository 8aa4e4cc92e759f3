"""Files and run directories: written whole or not at all, opened lazily, data and nothing else."""

from .directory import Manifest as Manifest
from .directory import RunDirectory as RunDirectory
from .directory import check_same as check_same
from .directory import is_run as is_run
from .directory import remove_run as remove_run
from .files import check_outputs as check_outputs
from .files import save_dataset as save_dataset
from .files import save_text as save_text
from .opening import find_run as find_run
from .opening import find_runs as find_runs
from .opening import merge as merge
from .opening import open_dataset as open_dataset
