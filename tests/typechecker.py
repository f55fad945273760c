"""The checker of annotations while tests run: beartype, taking a whole number where a float is asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

__all__ = ["checked"]

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
