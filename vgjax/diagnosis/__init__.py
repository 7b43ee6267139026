"""What is wrong with a network: rules look at a history, and give findings with evidence, cause and advice."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
