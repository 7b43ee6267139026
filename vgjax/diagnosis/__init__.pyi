from .case import Case as Case
from .case import Finding as Finding
from .reference import Reference as Reference
from .rules import RULES as RULES
from .rules import Diagnosis as Diagnosis
from .rules import Rule as Rule
from .rules import diagnose as diagnose
from .rules import write_diagnosis as write_diagnosis
