"""What transformers' layouts share of MaskFormer and Mask2Former: where parts lie, and how files become a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Plan
from vitral.checkpoints.preprocessing import from_transformers, landscape_size
from vitral.checkpoints.table import Row, Tensors
from vitral.checkpoints.trunk.transformers import UNREAD
from vitral.checkpoints.vocabulary import check_described, transformers_record
from vitral.errors import CheckpointError
from vitral.models.segmentation.queries import QueryNetwork

__all__ = ["PIXELS", "QUERIES", "TRUNK", "query_plan"]

PIXELS = "model.pixel_level_module."
"""Before the names of the backbone and of the pixel decoder."""

QUERIES = "model.transformer_module."
"""Before the names of the decoder in which queries ask."""

TRUNK = f"{PIXELS}encoder."
"""Before the names of the backbone."""


def query_plan(
    files: Files,
    build: type[QueryNetwork],
    trained: str,
    spelled: Callable[[Tensors], Tensors],
    config: Callable[[dict[str, Any], Tensors], Any],
    rows: Callable[[Any], list[Row]],
    name: Callable[[Any], str | None],
) -> Plan:
    """How a network is made of files.

    Args:
        files: the files.
        build: the network, whose type in config.json is its name in small letters.
        trained: transformers' class that has all its layers.
        spelled: tensors → the same under their names on disk.
        config: what config.json says and the tensors → the configuration.
        rows: configuration → table.
        name: configuration → the catalogue's name.

    Raises:
        CheckpointError: no config.json, or no layer that reads classes.
    """
    check_described(files)
    tensors, kind = spelled(files.tensors), build.__name__
    if "class_predictor.weight" not in tensors:
        raise CheckpointError(
            f"{files.source} holds a {kind} without the layer that reads classes from its queries. Take the checkpoint of a "
            f"{trained}, which has it."
        )
    found = config(files.config, tensors)
    prepared = from_transformers(files.preprocessor, kind.lower(), found.image_size)
    found = replace(found, image_size=landscape_size(prepared) or found.image_size)
    record = transformers_record(
        files,
        architecture=name(found) or kind.lower(),
        num_classes=found.num_classes,
        preprocessing=prepared if found.channels == 3 else None,
    )
    ignored = (r"criterion\..*", *(re.escape(TRUNK) + pattern for pattern in UNREAD))  # what its losses weigh classes by
    return Plan(build=build, config=found, rows=rows(found), tensors=tensors, record=record, ignored=ignored)
