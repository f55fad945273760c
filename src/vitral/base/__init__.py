"""Pictures, frames, drawing and the Hub: what every other room stands on. Nothing here knows a network."""

__all__: list[str] = []
