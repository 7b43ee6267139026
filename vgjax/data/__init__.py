"""Data sets by name: where they come from, how they are kept, and how they become batches on a device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
