"""`vitral`: the commands, their options, and how they end.

Exit codes: 0 all went well; 1 something failed (a picture, a checkpoint, the network, the disk); 2 the command was not
understood; 130 interrupted.

This page imports nothing heavy: each command opens its room when it is called, so that `vitral --help` need not wait for
torch.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from vitral import __version__
from vitral.errors import UsageError, VitralError

__all__ = [
    "app",
    "check_data",
    "compare",
    "data",
    "demo",
    "evaluate",
    "explain",
    "models",
    "predict",
    "probe",
    "recipes",
    "run",
    "start",
    "train",
]

_BROKEN_PIPE = 141  # what a shell reports for a program that a closed pipe ended: 128 + SIGPIPE


class _Commands(TyperGroup):
    """The group of commands. Whatever goes wrong inside one ends as a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()
            return answer
        except KeyboardInterrupt:
            _end("Interrupted.", 130)
        except BrokenPipeError:
            # Whoever read the output has enough. The interpreter flushes once more on its way out: into nothing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None
        except Exception as error:
            if ctx.params["debug"] or hasattr(error, "exit_code"):  # typer's own carry their exit code
                raise
            _end(_sentence(error), 2 if isinstance(error, UsageError) else 1)


def _sentence(error: Exception) -> str:
    """What a user should read about an error."""
    if isinstance(error, VitralError):
        return f"Error: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"Error: {error.strerror}: {error.filename}" if error.filename else f"Error: {error.strerror}."
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"Unexpected {type(error).__name__}: {first}\nFor the traceback: vitral --debug, then the command as before."


def _end(message: str, code: int) -> NoReturn:
    typer.echo("".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in message), err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to draw boxes around the help than everything else together
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """The console script `vitral`."""
    # Importing torch makes half a million objects that all stay. Looking for garbage among them takes 0.15 s on the way
    # in and 0.3 s on the way out, where freezing them spares it.
    gc.set_threshold(200_000, 30, 30)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a file's name may hold what the terminal cannot show
    try:
        app(prog_name="vitral")
    finally:
        gc.freeze()


# Options that several commands have.
_Checkpoint = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint: a folder, a weights file or a Hub id (owner/name).")
]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; a GPU where there is one.")]
_Architecture = Annotated[
    str | None, typer.Option(help="The network, where a bare weights file does not say (see `vitral models`).")
]
_BatchSize = Annotated[int, typer.Option(min=1, help="Pictures the model sees at once.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")]
_MaskThreshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="For masks: a pixel is a segment's own from this probability on; 0.5.")
]
_OverlapThreshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="For masks: a segment needs more than this share of its pixels; 0.8.")
]
_Void = Annotated[list[int] | None, typer.Option(help="A number in label files for what is not known; any number of times.")]
_Offset = Annotated[int | None, typer.Option(min=0, help="The number of the first class in label files; 1 where 0 is void.")]
_Labels = Annotated[str | None, typer.Option(help="The folder of the label files, where several could be it.")]
_Exact = Annotated[
    bool, typer.Option("--exact", help="Decode large JPEGs whole: slower, and equal to the peers to the last bit.")
]


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"vitral {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="VITRAL_DEBUG", help="Show the traceback of an error.")] = False,
) -> None:
    """Transformers in vision.

    \b
    vitral demo                                     train one in a minute, no network
    vitral predict photo.jpg --model facebook/deit-tiny-patch16-224
    vitral explain photo.jpg --model facebook/deit-tiny-patch16-224
    vitral train photos/ --model facebook/deit-tiny-patch16-224 --held-out 0.1
    vitral models                                   what there is to build
    """


@app.command()
def predict(
    files: Annotated[list[str], typer.Argument(metavar="FILES", help="Pictures: files, folders, patterns or addresses.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Checkpoint: a folder, a weights file or a Hub id (owner/name); else the one in the box."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="How many to show, best first: 5 classes unless told, or all objects.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="For objects and segments: only those it is surer of than this; 0.5.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per picture to stdout.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for drawings (or features) and predictions.jsonl.")
    ] = None,
    batch_size: _BatchSize = 8,
    device: _Device = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="image-classification, object-detection, image-segmentation or image-feature-extraction; by default what "
            "the model can do."
        ),
    ] = None,
    subtask: Annotated[
        str | None, typer.Option(help="Of a segmenter: semantic, instance or panoptic; by default what it does best.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Of a segmenter: go through large pictures with windows of so many pixels.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="The part of a window that the next one shares; 0.25.")
    ] = None,
    mask_threshold: _MaskThreshold = None,
    overlap_threshold: _OverlapThreshold = None,
    architecture: _Architecture = None,
    class_names: Annotated[
        Path | None, typer.Option(help="A text with a class on each line, where the model has no names for them.")
    ] = None,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Threads that read; one per processor, up to 8.")] = None,
    exact: _Exact = False,
) -> None:
    """Say what pictures show.

    \b
    vitral predict photo.jpg              by the model in the box: ten classes
    vitral predict photo.jpg --model facebook/deit-tiny-patch16-224
    vitral predict holiday/ 'more/*.png' --model checkpoint/ --out answers
    vitral predict holiday/ --model checkpoint/ --json | jq '.classes[0].label'
    vitral predict street.jpg --model facebook/detr-resnet-50 --threshold 0.7
    vitral predict street.jpg --model nvidia/segformer-b0-finetuned-ade-512-512

    Ends with code 1 if a picture could not be read; the others are answered for.
    """
    from vitral.cli.predict import predict as answer

    failed = answer(
        files,
        model,
        top_k=top_k,
        threshold=threshold,
        as_json=as_json,
        out=out,
        batch_size=batch_size,
        workers=num_workers,
        device=_device(device),
        task=task,
        subtask=subtask,
        window=window,
        overlap=overlap,
        mask_threshold=mask_threshold,
        overlap_threshold=overlap_threshold,
        architecture=architecture,
        class_names=class_names,
        decoding="exact" if exact else "fast",
    )
    raise typer.Exit(1 if failed else 0)


def _device(given: str | None) -> int | str | None:
    """A device as typed: a number means that GPU."""
    return int(given) if given and given.removeprefix("-").isdecimal() else given


def _meaning(void: list[int] | None, offset: int | None, labels: str | None) -> dict[str, Any]:
    """What was said of label files; what was not said is not there."""
    said = {"void": void or None, "offset": offset, "labels": labels}
    return {name: value for name, value in said.items() if value is not None}


_HOW = (
    "How: grad_cam (the usual one), relevance, attention, rollout, legrad, saliency, smoothgrad, integrated_gradients, "
    "occlusion, rise or logit_lens; for a detector attention, relevance, grad_cam or gradient_times_input; for a segmenter "
    "attention, relevance, grad_cam, gradient_times_input or rollout."
)


@app.command()
def explain(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A picture: a file or an address.")],
    model: _Checkpoint,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page (.html) or drawing (.png); by default PICTURE.explained.html."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the heat on the picture into this file; then a page only with --out.")
    ] = None,
    method: Annotated[str | None, typer.Option(help=_HOW)] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The class to explain, by name or number; of a detector or segmenter also an object's or segment's number, "
            "and of a segmenter a pixel: 120,80."
        ),
    ] = None,
    layer: Annotated[str | None, typer.Option(help="For methods that look at one layer: its number or name.")] = None,
    head: Annotated[str | None, typer.Option(help="For methods that look at heads: a number, mean or max.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the best classes, objects or segments are explained.")] = 5,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="For objects and segments: only those it is surer of than this; 0.5.")
    ] = None,
    mask_threshold: _MaskThreshold = None,
    overlap_threshold: _OverlapThreshold = None,
    device: _Device = None,
    architecture: _Architecture = None,
) -> None:
    """Show what a model looks at in a picture.

    \b
    vitral explain photo.jpg --model facebook/deit-tiny-patch16-224
    vitral explain photo.jpg --model checkpoint/ --out page.html --target tabby
    vitral explain photo.jpg --model checkpoint/ --png heat.png --method rollout
    vitral explain street.jpg --model segmenter/ --target 120,80

    Leaves a page, one file that needs no network: every attention map of every
    layer and head to play with, and what each of the best classes rests on; of
    a detector the objects to click, and what each of them rests on; of a
    segmenter its segments, and their masks layer by layer.
    """
    from vitral.cli.explain import explain as show

    show(
        picture,
        model,
        out=out,
        png=png,
        method=method,
        target=target,
        layer=layer,
        head=head,
        top_k=top_k,
        threshold=threshold,
        mask_threshold=mask_threshold,
        overlap_threshold=overlap_threshold,
        device=_device(device),
        architecture=architecture,
    )


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Pictures: a folder with a folder per class, an archive, a manifest, or digits; or with objects marked in "
            "them (COCO, Pascal VOC, YOLO), with label files of their pixels, or scenes. With --data: a task or a recipe.",
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[--OPTION VALUE]...", help="Any option of the recipe.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A checkpoint to fine-tune, or a network's name to train from nothing."),
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Which recipe (see `vitral recipes`).")] = None,
    task: Annotated[str | None, typer.Option(help="classification, detection or segmentation; what DATA teaches.")] = None,
    source: Annotated[str | None, typer.Option("--data", help="The pictures, where a task or a recipe comes first.")] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for all that is written; what is there goes on.")] = "run",
    held_out: Annotated[
        str | None, typer.Option(help="What to judge by: a path, or a share such as 0.1; by default the split DATA has.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's quick form, to see the whole way.")] = False,
    void: _Void = None,
    offset: _Offset = None,
    labels: _Labels = None,
    device: _Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor cores to compute on; all of them.")] = None,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Processes of this machine that share each batch: one per GPU, or per core or two."),
    ] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write for TensorBoard as well.")] = False,
) -> None:
    """Train a classifier, a detector or a segmenter on a folder of pictures.

    \b
    vitral train photos/ --model facebook/deit-tiny-patch16-224 --held-out 0.1
    vitral train photos/ --model cct_7_7x2_224 --epochs 50 --learning-rate 1e-3
    vitral train cifar10/ --recipe cifar10_cct --out cifar
    vitral train detection --data coco/ --model PekingU/rtdetr_r18vd
    vitral train scenes --recipe synthetic_scenes --processes 2
    vitral train streets/ --model nvidia/segformer-b0-finetuned-ade-512-512
    vitral train streets/ --model segformer_b0 --backbone nvidia/mit-b0
    accelerate launch -m vitral train imagenet/ --recipe deit_s

    Any option of a recipe can be given as --name value (`vitral recipes NAME`
    shows them): --backbone is a checkpoint that the backbone of a detector or a
    segmenter begins with. An interrupted training goes on when the command is
    given again.
    """
    from vitral.cli.processes import among_several, in_processes

    if processes > 1 and not among_several():
        raise typer.Exit(in_processes(processes, sys.argv[1:]))
    from vitral.cli.train import train as start_training

    raise typer.Exit(
        start_training(
            data,
            recipe,
            model,
            out,
            held_out=held_out,
            quick=quick,
            device=_device(device),
            threads=threads,
            tensorboard=tensorboard,
            extra=options or [],
            task=task,
            source=source,
            **_meaning(void, offset, labels),
        )
    )


@app.command()
def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Pictures: a folder with one per class, an archive, a manifest, or digits; or with objects marked in them "
            "(COCO, Pascal VOC, YOLO), or with label files of their pixels.",
        ),
    ],
    model: _Checkpoint,
    split: Annotated[str | None, typer.Option(help="train, val or test, where DATA has several.")] = None,
    as_json: _AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for evaluation.html, evaluation.json and predictions.csv.")
    ] = None,
    batch_size: _BatchSize = 64,
    device: _Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (autocast); float32.")] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0 reads in this one.")] = 0,
    bad_pictures: Annotated[
        str, typer.Option(help="Pictures that cannot be read: refuse, or skip (and name them).")
    ] = "refuse",
    segments: Annotated[
        str | None, typer.Option(help="Judge a segmenter by semantic, instance or panoptic; else by what DATA says first.")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Judge by the share of the training pictures that train --held-out sets apart.")
    ] = None,
    edges: Annotated[
        bool, typer.Option("--edges", help="Judge classes of pixels near their edges too; takes long.")
    ] = False,
    void: _Void = None,
    offset: _Offset = None,
    labels: _Labels = None,
    architecture: _Architecture = None,
    exact: _Exact = False,
) -> None:
    """Say how good a classifier, a detector or a segmenter is on pictures of which that is known.

    \b
    vitral evaluate photos/ --model facebook/deit-tiny-patch16-224 --split val
    vitral evaluate photos/ --model checkpoint/ --out answers
    vitral evaluate digits --model demo/checkpoint --split test --json | jq .top1
    vitral evaluate coco/ --model facebook/detr-resnet-50 --split val
    vitral evaluate streets/ --model run/best --split val --out answers

    Tells top-1 and top-5 with their intervals, how well calibrated it is, every
    class, and the commonest mistakes; of a detector COCO's average precision; of
    a segmenter mean IoU, average precision of masks, or panoptic quality.
    --out leaves a page of it.
    """
    from vitral.cli.evaluate import evaluate as judge

    judge(
        data,
        model,
        split=split,
        batch_size=batch_size,
        device=_device(device),
        dtype=dtype,
        workers=num_workers,
        bad_pictures=bad_pictures,
        decoding="exact" if exact else "fast",
        architecture=architecture,
        as_json=as_json,
        out=out,
        segments=segments,
        held_out=held_out,
        edges=edges,
        **_meaning(void, offset, labels),
    )


@app.command()
def probe(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled pictures: a folder, an archive or a manifest.")],
    model: _Checkpoint,
    feature: Annotated[
        str, typer.Option(help="Which vector: pooled, class_token, mean_patches, class_and_mean or blocks (of all of them).")
    ] = "pooled",
    neighbours: Annotated[bool, typer.Option("--knn", help="Ask the nearest training pictures as well.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many of them.")] = 20,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps the features for another time.")] = None,
    as_json: _AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the model with the probe as its classifier.")
    ] = None,
    batch_size: _BatchSize = 64,
    device: _Device = None,
    architecture: _Architecture = None,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Threads that read; one per processor, up to 8.")] = None,
) -> None:
    """Say how good a frozen model's features are for pictures of yours.

    \b
    vitral probe photos/ --model facebook/dinov2-small --knn
    vitral probe photos.tar --model checkpoint/ --cache features --out fitted

    Fits a linear classifier to one vector per picture; nothing of the network is
    trained. Judged by the split test, else val, else a fifth of each class.
    """
    from vitral.cli.probe import probe as ask

    ask(
        data,
        model,
        feature=feature,
        neighbours=neighbours,
        k=k,
        cache=cache,
        batch_size=batch_size,
        device=_device(device),
        workers=num_workers,
        architecture=architecture,
        as_json=as_json,
        out=out,
    )


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODELS", help="Networks (vit_ti16, vit_ti16:patch_size=4,depth=6) or checkpoints."),
    ],
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Side of the pictures in pixels; several times for several.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Pictures at once; several times; 1 and 8.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns each network gets; the median counts.")] = 5,
    data: Annotated[str | None, typer.Option(help="Pictures on which all are trained, at the first size.")] = None,
    held_out: Annotated[str | None, typer.Option(help="What to judge by: a path, or a share such as 0.1.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often each sees the pictures; 10.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long each may train, instead.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for compare.html, compare.json and pictures.")
    ] = None,
    as_json: _AsJson = False,
    device: _Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor cores to compute on; all of them.")] = None,
) -> None:
    """Hold networks against each other: size, arithmetic, speed, memory, and what they learn.

    \b
    vitral compare vit_ti16 swin_ti resnet18 --size 224 --size 384 --out compared
    vitral compare vit_ti16:patch_size=4 cct_7_3x1_32 --size 32 --data cifar10/ --epochs 5

    Ends with code 1 if a network could not do something; the others are answered for.
    """
    from vitral.cli.compare import compare as hold

    well = hold(
        names,
        sizes=size or [],
        batches=batch or [],
        rounds=rounds,
        data=data,
        held_out=held_out,
        epochs=epochs,
        minutes=minutes,
        out=out,
        as_json=as_json,
        device=_device(device),
        threads=threads,
    )
    raise typer.Exit(0 if well else 1)


data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at labelled pictures before training on them.")
app.add_typer(data, name="data")


@data.command("check")
def check_data(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help='A folder, a tar archive, a manifest (CSV, JSONL) or "digits".')
    ],
    as_json: _AsJson = False,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Threads that read; one per processor, up to 8.")] = None,
    format: Annotated[
        str | None, typer.Option(help="How boxes lie, where a source has them in several ways: coco, voc or yolo.")
    ] = None,
    segments: Annotated[
        str | None, typer.Option(help="What is read of pixels, of several: semantic, instance or panoptic.")
    ] = None,
    void: _Void = None,
    offset: _Offset = None,
    labels: _Labels = None,
) -> None:
    """Read every picture once and say what is wrong.

    \b
    vitral data check photos/                       photos/<class>/*.jpg, or photos/train/<class>/*.jpg
    vitral data check photos.tar.gz --json | jq .leaks
    vitral data check labels.csv                    columns file,label and perhaps split
    vitral data check coco/                         annotations/instances_*.json; also VOC's and YOLO's
    vitral data check camvid.tar                    images/ and labels/; also ADE20K's, Cityscapes', VOC's

    Finds what cannot be read, odd sizes, classes without pictures, and pictures
    that are there twice: in two splits, or under two labels. Of boxes: what lies
    outside, has no area, or is of no known class. Of label files: numbers that
    are no class, and what they are taken to mean.
    Ends with code 1 if a picture cannot be read, or an annotation is wrong.
    """
    from vitral.cli.data import check_data as look

    kinds = {"format": cast(Any, format), "segments": cast(Any, segments)}
    bad = look(path, as_json=as_json, workers=num_workers, **kinds, **_meaning(void, offset, labels))
    raise typer.Exit(1 if bad else 0)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one with all its options.")] = None,
) -> None:
    """List the recipes for training, or tell one's story."""
    from vitral.cli.train import list_recipes

    list_recipes(name)


@app.command()
def models(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a pattern such as 'dino*16'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per model to stdout.")] = False,
) -> None:
    """List the networks that can be built, with their sizes."""
    from vitral.cli.models import list_networks

    raise typer.Exit(0 if list_networks(pattern, as_json=as_json) else 1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page, the checkpoint and some digits.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another training.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Processor cores to use; in so small a network, more wait for each other.")
    ] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds of training, to try the whole way.")] = False,
) -> None:
    """Train a small transformer on handwritten digits, use it, and make a page of it.

    Takes a minute on two cores and no network: the digits come with scikit-learn.
    """
    from vitral.cli.demo import demo as show

    show(out, seed=seed, threads=threads, quick=quick)
