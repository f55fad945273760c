"""Seeded augmentation: chance in training pictures that is a pure function of whole numbers, so that a run can be repeated.

- `example`: a picture with all that is known of its places (boxes, masks, class map, points), which move together.
- `geometry`, `colour`, `rand_augment`: what may happen to an example; frozen dataclasses, called with (example, rng).
- `erasing`, `mixing`: what may happen to a model's input, and to a batch of them.
- `crops`: several views of one picture, for learning without labels.
- `chain`: the one configuration of training a classifier, the way from a picture to its input, and the generator that
  belongs to (seed, epoch, index, …).
- `sheet`: one picture that shows what an augmentation does.
"""

__all__: list[str] = []
