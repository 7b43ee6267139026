"""Mean-field theory: predictions of the signal and its gradient. It never reads a measurement."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
