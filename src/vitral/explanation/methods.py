"""The methods by the names users know."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import attention_layers
from vitral.explanation.gradients import integrated_gradients, saliency, smoothgrad
from vitral.explanation.lens import logit_lens
from vitral.explanation.maps import attention
from vitral.explanation.perturb import occlusion, rise
from vitral.explanation.question import Heat
from vitral.explanation.relevance import grad_cam, legrad, relevance
from vitral.explanation.rollout import rollout
from vitral.layers.attention import ScaledDotProduct

__all__ = ["DEFAULT", "METHODS", "Method", "attends", "check_fits", "title_of"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to find out what mattered.

    Attributes:
        title: its name as its authors write it.
        asks: what its heat is, as the end of "Each place's heat is …".
        find: from a question and options to heat.
        needs_target: whether it explains a class (or a score); the others know none.
        signed: whether negative heat speaks against the class.
        attention: whether it follows attention between tokens, which a network has to have.
        paper: where it was published.
    """

    title: str
    asks: str
    find: Callable[..., Heat]
    needs_target: bool = True
    signed: bool = False
    attention: bool = False
    paper: str

    def fits(self, model: nn.Module) -> bool:
        """Whether it finds in a network what it looks at."""
        return not self.attention or attends(model)

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
    "attention": Method(
        title="Attention",
        asks="how much one layer takes from it",
        find=attention,
        needs_target=False,
        attention=True,
        paper="Vaswani et al. 2017",
    ),
    "rollout": Method(
        title="Rollout",
        asks="how much of it attention carries through all layers to the answer",
        find=rollout,
        needs_target=False,
        attention=True,
        paper="Abnar and Zuidema 2020",
    ),
    "relevance": Method(
        title="Relevance",
        asks="how much of it attention carries where the class's score rises with that attention",
        find=relevance,
        attention=True,
        paper="Chefer et al. 2021",
    ),
    "legrad": Method(
        title="LeGrad",
        asks="how much the class, read behind every layer, rises with the attention paid to it",
        find=legrad,
        attention=True,
        paper="Bousselham et al. 2024",
    ),
    "grad_cam": Method(
        title="Grad-CAM",
        asks="how much it has of the channels with which the class's score rises",
        find=grad_cam,
        paper="Selvaraju et al. 2017",
    ),
    "saliency": Method(
        title="Saliency",
        asks="how steeply the class's score changes with it",
        find=saliency,
        paper="Simonyan et al. 2014",
    ),
    "smoothgrad": Method(
        title="SmoothGrad",
        asks="how steeply the class's score changes with it, averaged over noisy copies of the picture",
        find=smoothgrad,
        paper="Smilkov et al. 2017",
    ),
    "integrated_gradients": Method(
        title="Integrated gradients",
        asks="its part in the difference between the scores of the picture and of one that shows nothing",
        find=integrated_gradients,
        signed=True,
        paper="Sundararajan et al. 2017",
    ),
    "occlusion": Method(
        title="Occlusion",
        asks="how far the class's probability falls when a grey square hides it",
        find=occlusion,
        signed=True,
        paper="Zeiler and Fergus 2014",
    ),
    "rise": Method(
        title="RISE",
        asks="the class's mean probability over random masks that leave it seen",
        find=rise,
        paper="Petsiuk et al. 2018",
    ),
    "logit_lens": Method(
        title="Logit lens",
        asks="the class's probability when its own token is read as if it were the picture's",
        find=logit_lens,
        paper="Vilas et al. 2023",
    ),
}
"""Name → method."""

DEFAULT = "grad_cam"
"""The method that is used where none is named: the one that won benchmarks/explain.py (see benchmarks/RESULTS.md).
It works for every network that tells where its last map's cells lie, with attention or without."""


def attends(model: nn.Module) -> bool:
    """Whether tokens attend to each other anywhere in a network, so that there are maps to be looked at."""
    if not any(isinstance(module, ScaledDotProduct) for module in model.modules()):
        return False
    return not all(layer.layout.channels for layer in attention_layers(model))


def check_fits(method: str, model: nn.Module) -> None:
    """Refuse a method that would look at attention where there is none.

    Raises:
        UsageError: naming the methods that work.
    """
    if METHODS[method].fits(model):
        return
    others = ", ".join(repr(name) for name, one in METHODS.items() if not one.attention)
    raise UsageError(
        f"The method {method!r} follows attention between tokens, and this network ({type(model).__name__}) has none. "
        f"These work for it: {others}."
    )


def title_of(method: str) -> str:
    """What a method is called in a caption; heat from elsewhere by its name."""
    return METHODS[method].title if method in METHODS else method.replace("_", " ").capitalize()
