from .optimizer import Watched as Watched
from .optimizer import WatchState as WatchState
from .optimizer import histograms as histograms
from .optimizer import scalars as scalars
from .optimizer import watch as watch
from .optimizer import watched as watched
