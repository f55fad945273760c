"""Is an explanation true? Measures of heat against the model, and against where the thing really is.

Against the model: what becomes of the class when the hottest parts are taken away (`curves`), and whether heat changes at
all when the model forgets what it learned (`randomisation`). Against the picture: whether heat lies on the thing
(`localisation`), which says that an explanation is plausible rather than that it is true. `evaluate` holds methods against
heat that knows nothing (`baselines`): a method that does not beat it explains nothing, however good its pictures look.
"""

__all__: list[str] = []
