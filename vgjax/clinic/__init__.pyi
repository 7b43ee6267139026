from .examination import Picture as Picture
from .examination import Report as Report
from .examination import examine_activation as examine_activation
from .examination import examine_initializer as examine_initializer
from .examination import write as write
from .verdicts import Verdict as Verdict
