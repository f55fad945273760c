"""The methods by the names users know."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from vitral.errors import UnknownNameError
from vitral.explanation.gradients import integrated_gradients, saliency, smoothgrad
from vitral.explanation.lens import logit_lens
from vitral.explanation.maps import attention
from vitral.explanation.perturb import occlusion, rise
from vitral.explanation.question import Heat
from vitral.explanation.relevance import grad_cam, legrad, relevance
from vitral.explanation.rollout import rollout

__all__ = ["DEFAULT", "METHODS", "Method"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to find out what mattered.

    Attributes:
        find: from a question and options to heat.
        needs_target: whether it explains a class (or a score); the others know none.
        signed: whether negative heat speaks against the class.
        paper: where it was published.
    """

    find: Callable[..., Heat]
    needs_target: bool = True
    signed: bool = False
    paper: str

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(inspect.signature(self.find).parameters)[1:]

    def check(self, name: str, options: dict[str, object]) -> None:
        """Refuse an option that the method does not have.

        Raises:
            UnknownNameError: naming the nearest.
        """
        for option in options:
            if option not in self.options:
                raise UnknownNameError(f"option of the {name} method", option, self.options)


METHODS: dict[str, Method] = {
    "attention": Method(find=attention, needs_target=False, paper="Vaswani et al. 2017"),
    "rollout": Method(find=rollout, needs_target=False, paper="Abnar and Zuidema 2020"),
    "relevance": Method(find=relevance, paper="Chefer et al. 2021"),
    "legrad": Method(find=legrad, paper="Bousselham et al. 2024"),
    "grad_cam": Method(find=grad_cam, paper="Selvaraju et al. 2017"),
    "saliency": Method(find=saliency, paper="Simonyan et al. 2014"),
    "smoothgrad": Method(find=smoothgrad, paper="Smilkov et al. 2017"),
    "integrated_gradients": Method(find=integrated_gradients, signed=True, paper="Sundararajan et al. 2017"),
    "occlusion": Method(find=occlusion, signed=True, paper="Zeiler and Fergus 2014"),
    "rise": Method(find=rise, paper="Petsiuk et al. 2018"),
    "logit_lens": Method(find=logit_lens, paper="Vilas et al. 2023"),
}
"""Name → method."""

DEFAULT = "relevance"
"""The method that is used where none is named."""
