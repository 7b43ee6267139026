from . import analysis as analysis
from . import clinic as clinic
from . import config as config
from . import data as data
from . import diagnosis as diagnosis
from . import figures as figures
from . import report as report
from . import theory as theory
from .config import Config as Config
from .config import Hypers as Hypers
from .data.dataset import Dataset as Dataset
from .diagnosis.rules import diagnose as diagnose
from .sweeps.grid import Grid as Grid
from .sweeps.reruns import rerun as rerun
from .sweeps.sweep import sweep as sweep
from .training.history import load as load
from .training.loop import Result as Result
from .training.loop import run as run
from .watching.optimizer import histograms as histograms
from .watching.optimizer import scalars as scalars
from .watching.optimizer import watch as watch
from .watching.optimizer import watched as watched

__version__: str
