"""Drawing mouths: engines behind one interface, chosen once by `make_engine`."""

from musetalk_pipeline.engines.engine import Engine, Listener

__all__ = ["Engine", "Listener"]
