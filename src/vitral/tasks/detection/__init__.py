"""Object detection: what is where (`result`), how it is read from a network (`decode`), how it is learned (`matching`,
`loss`), and how good it is (`metrics`).
"""

__all__: list[str] = []
