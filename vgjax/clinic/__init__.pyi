from .examination import examine_activation as examine_activation
from .examination import examine_initializer as examine_initializer
from .page import Picture as Picture
from .page import Report as Report
from .page import write_report as write_report
from .verdicts import Verdict as Verdict
