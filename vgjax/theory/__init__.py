"""Mean-field theory: what the signal and its gradient ought to be. It never looks at a measurement."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
