"""timm's layout, which is also that of the papers' own PyTorch code: DeiT, MAE, DINO, DINOv2, BEiT.

A folder with config.json and model.safetensors, or a bare state dictionary. Nearly everything is seen from the tensors'
names and shapes; the few facts that no tensor shows (epsilon, activation, sometimes the number of heads or what is
pooled) come from config.json, from the architecture's name, or from the architecture the user names.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from torch import nn

from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import evaluation, from_timm, to_timm
from vitral.checkpoints.table import Row, Tensors, renamed, same, shaped
from vitral.checkpoints.vit.prefix import with_prefix_positions
from vitral.checkpoints.vocabulary import add_timm_record, timm_labels
from vitral.data.transforms import Preprocessing
from vitral.errors import CheckpointError, UnknownNameError, UsageError
from vitral.layers.mlp import Activation
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.record import Record

__all__ = ["LAYOUT"]

# Networks whose heads are not 64 channels wide: two by name, and H, so400m, g and G by width.
_HEADS_BY_NAME = {"giantopt": 16, "vit_base_patch16_gap_224": 16}
_HEADS = {1280: 16, 1152: 16, 1408: 16, 1664: 16}
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_POOLS: dict[str, Literal["class", "mean", "attention"]] = {"token": "class", "avg": "mean", "map": "attention"}
_FOREIGN_BLOCKS = (
    "blocks.0.attn.q_proj.weight",
    "blocks.0.attns.0.qkv.weight",
    "blocks.0.in_proj.weight",
    "blocks.0.mlp.fc1_g.weight",
    "blocks.0.attn.norm.weight",
)
# Names in config.json's model_args that ask for a network we do not have.
_UNSUPPORTED_ARGS = ("attn_layer", "scale_attn_norm", "scale_mlp_norm")


@dataclass(frozen=True)
class _Spelling:
    """The names in which publishers of this layout differ."""

    registers: str
    gains: tuple[str, str]
    gated: tuple[str, str]


def _recognises(files: Files) -> bool:
    return "patch_embed.proj.weight" in files.tensors


def _plan(files: Files, architecture: ViTConfig | None) -> Plan:
    told, tensors = files.config, files.tensors
    name = str(told.get("architecture", ""))
    _refuse_unreadable(name, tensors, files.source)
    notes: list[str] = []
    config = _config(tensors, told, name, architecture, notes)
    spelling = _spelling(tensors)
    pretrained = _pretrained(told)
    record = Record(
        architecture=name,
        layout="timm",
        source=files.source,
        preprocessing=_prepared(pretrained, config),
        labels=timm_labels(told, config.num_classes),
        licence=pretrained.get("license"),
        notes=tuple(notes),
    )
    return Plan(
        build=ViT,
        config=config,
        rows=_rows(config, spelling, tensors),
        tensors=tensors,
        record=usual_labels(record, config.num_classes),
        ignored=_ignored(tensors),
        advice="If the architecture was guessed wrongly, name it: load_model(…, architecture='vit_b16').",
    )


def _refuse_unreadable(name: str, tensors: Tensors, source: str) -> None:
    """Networks that would load and compute something else, for what sets them apart is in no tensor."""
    foreign = next((key for key in _FOREIGN_BLOCKS if key in tensors), None)
    # EVA-02 turns queries and keys without a word in its file; gated, and no bias on the keys, is how to tell it.
    keyless, relative = "blocks.0.attn.q_bias" in tensors, any("relative_position_bias_table" in key for key in tensors)
    eva02 = keyless and not relative and "blocks.0.mlp.fc1.bias" in tensors and "blocks.0.mlp.norm.weight" not in tensors
    gated = eva02 and tensors["blocks.0.mlp.fc1.bias"].shape[0] == 2 * tensors["blocks.0.mlp.fc2.weight"].shape[1]
    rotary = gated or re.search(r"eva02|rope|dinov3|naflex|vit_pe_", name)
    placeless = "pos_embed" not in tensors and not relative
    if foreign or rotary or placeless:
        reason = foreign or ("rotary positions" if rotary else "no positions in its tensors, so it must have others")
        raise CheckpointError(
            f"{source} is {name or 'a network'} with parts that this layout's reader does not know yet ({reason}). "
            "It was refused rather than computed wrongly."
        )


def _prepared(pretrained: dict[str, Any], config: ViTConfig) -> Preprocessing | None:
    """How pictures are prepared: as the file says, else as the papers' own code evaluates.

    That is the shorter side to 256/224 of the cut (to the cut itself from 384 on), bicubic.
    """
    if config.channels not in (1, 3):
        return None
    if pretrained:
        return from_timm(pretrained, config.image_size)
    height = config.image_size[0]
    resize = height if height >= 384 else int(256 / 224 * height)
    return evaluation(config.image_size, resize=resize, inception=config.relative_bias != "none")


def _ignored(tensors: Tensors) -> tuple[str, ...]:
    """What is in published files beside the encoder: indices, MAE's decoder, DINO's and iBOT's projection heads."""
    ignored = [
        r".*relative_position_index",
        r".*attn\.k_bias",
        r"(dino_|ibot_)?head\.(mlp|last_layer)\..*",
        r"lm_head\..*",
    ]
    if any(name.startswith("decoder_") for name in tensors):
        ignored += [r"decoder_.*", "mask_token"]
    return tuple(ignored)


def _config(
    tensors: Tensors, told: dict[str, Any], name: str, architecture: ViTConfig | None, notes: list[str]
) -> ViTConfig:
    """What the tensors show, completed by what the file, the name or the user says."""
    args = told.get("model_args") or {}
    for arg in _UNSUPPORTED_ARGS:
        if args.get(arg) not in (None, False, "", "default"):
            raise CheckpointError(f"config.json asks for {arg}={args[arg]!r}, which is not supported.")
    embedding = tensors["patch_embed.proj.weight"]
    if embedding.ndim != 4:
        raise CheckpointError(f"patch_embed.proj.weight has {embedding.ndim} dimensions; a patch projection has 4.")
    width, channels, *patch = (int(side) for side in embedding.shape)
    depth = 1 + max((int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    if depth == 0:
        raise CheckpointError(
            "The file has a patch projection but no tensors called blocks.0.…; it is no whole transformer."
        )
    block = {key.removeprefix("blocks.0."): tuple(tensors[key].shape) for key in tensors if key.startswith("blocks.0.")}
    gated = "mlp.w12.weight" in block or block.get("mlp.fc1.weight", (0,))[0] == 2 * block.get("mlp.fc2.weight", (0, 1))[1]
    hidden = block.get("mlp.w3.weight") or block.get("mlp.fc2.weight") or (0, 4 * width)
    class_token, distilled = "cls_token" in tensors, "dist_token" in tensors
    registers = next((int(tensors[key].shape[1]) for key in ("reg_token", "register_tokens") if key in tensors), 0)
    keyless = "attn.q_bias" in block
    head = tensors.get("head.weight")
    pooled_norm, final_norm = "fc_norm.weight" in tensors, "norm.weight" in tensors
    relative = "per_block" if "attn.relative_position_bias_table" in block else "none"
    relative = "shared" if "rel_pos_bias.relative_position_bias_table" in tensors else relative
    gain = next((key for key in ("ls1.gamma", "gamma_1") if key in block), None)
    mask_token = "mask_token" in tensors and not any(key.startswith("decoder_") for key in tensors)
    image_size, placed = _positions(tensors, told, architecture, (patch[0], patch[1]), class_token + distilled + registers)
    config = ViTConfig(
        image_size=image_size,
        patch_size=(patch[0], patch[1]),
        channels=channels,
        width=width,
        depth=depth,
        heads=_heads(tensors, block, width, name, args, architecture, notes),
        mlp_width=int(hidden[1]),
        num_classes=int(head.shape[0]) if head is not None else 0,
        class_token=class_token,
        distillation_token=distilled,
        distillation_head=distilled and "head_dist.weight" in tensors,
        registers=registers,
        mask_token=mask_token,
        patch_bias="patch_embed.proj.bias" in tensors,
        position="learned" if "pos_embed" in tensors else "none",
        prefix_positions=placed,
        relative_bias=relative,  # type: ignore[arg-type]
        norm="layer" if "norm1.bias" in block else "rms",
        norm_eps=1e-5
        if re.search(r"^vit_.*_clip_|aimv2|beit3", name) or (not name and "norm_pre.weight" in tensors)
        else 1e-6,
        norm_placement="res_post" if "_rpn_" in name else "pre",
        stem_norm="norm_pre.weight" in tensors,
        final_norm=final_norm,
        layer_scale=1e-5 if gain else None,
        mlp="swiglu" if gated else "plain",
        activation=_activation(name, args),
        qkv_bias="attn.qkv.bias" in block or keyless,
        key_bias=not keyless,
        qk_norm="attn.q_norm.weight" in block,
        pool=_pool(tensors, told, class_token, pooled_norm, architecture),
        pool_prefix=bool(args.get("pool_include_prefix", name == "test_vit3")),
        pool_norm=pooled_norm,
    )
    if architecture is None:
        if not name:
            notes.append(
                f"No tensor shows the activation ({config.activation}), the norms' epsilon ({config.norm_eps:g}), where the "
                "norms stand (before the branches) or whether queries and keys are rotated (no); what is usual was assumed."
            )
        return config
    said = ("norm_eps", "norm_placement", "activation", "pool_prefix")
    return replace(config, **{field: getattr(architecture, field) for field in said})


def _heads(
    tensors: Tensors,
    block: dict[str, tuple[int, ...]],
    width: int,
    name: str,
    args: dict[str, Any],
    architecture: ViTConfig | None,
    notes: list[str],
) -> int:
    """The number of heads; biases and norms of queries show it, else someone must say."""
    table = next((tensors[key] for key in tensors if key.endswith("relative_position_bias_table")), None)
    if table is not None:
        return int(table.shape[1])
    if "attn.q_norm.weight" in block:
        return width // block["attn.q_norm.weight"][0]
    if "num_heads" in args:
        return int(args["num_heads"])
    if architecture is not None:
        return architecture.heads
    if name.startswith("test_vit"):
        return width // 32
    named = next((heads for part, heads in _HEADS_BY_NAME.items() if part in name), None)
    if named is not None:
        return named
    if width in _HEADS:
        return _HEADS[width]
    if width % 64:
        raise CheckpointError(
            f"The number of attention heads cannot be seen from a bare state dictionary of width {width}. "
            "Name the architecture: load_model(…, architecture='vit_b16'), or pass a ViTConfig."
        )
    if not name:
        notes.append(f"{width // 64} heads, as heads of 64 channels are usual; the file does not say.")
    return width // 64


def _activation(name: str, args: dict[str, Any]) -> Activation:
    told = args.get("act_layer")
    if told is None:
        tanh = "siglip" in name and re.search(r"patch32|so400m_patch16|giantopt|large_patch16_siglip(_gap)?_512", name)
        return "quick_gelu" if "quickgelu" in name else "gelu_tanh" if tanh else "gelu"
    if told not in _ACTIVATIONS:
        raise UnknownNameError("activation (act_layer in config.json)", told, _ACTIVATIONS)
    return _ACTIVATIONS[told]


def _pool(
    tensors: Tensors, told: dict[str, Any], class_token: bool, pooled_norm: bool, architecture: ViTConfig | None
) -> Literal["class", "mean", "class_and_mean", "attention"]:
    if "attn_pool.latent" in tensors:
        return "attention"
    pool = (told.get("model_args") or {}).get("global_pool") or told.get("global_pool")
    if pool is not None and pool not in _POOLS:
        raise UnknownNameError("pooling (global_pool in config.json)", pool, _POOLS)
    if pool is not None and not (pool == "map" or (pool == "token" and not class_token)):
        return _POOLS[pool]
    if pooled_norm or not class_token:
        return "mean"
    return "class" if architecture is None or architecture.pool == "attention" else architecture.pool


def _positions(
    tensors: Tensors, told: dict[str, Any], architecture: ViTConfig | None, patch: tuple[int, int], prefix: int
) -> tuple[tuple[int, int], int]:
    """Height and width the positions are made for, and how many of the tokens before the patches have one."""
    said = (told.get("model_args") or {}).get("img_size") or _pretrained(told).get("input_size")
    size = (said, said) if isinstance(said, int) else tuple(said[-2:]) if said else None
    if size is None and architecture is not None:
        size = architecture.image_size
    biases = next((tensors[key] for key in tensors if key.endswith("relative_position_bias_table")), None)
    if "pos_embed" not in tensors:
        if biases is not None:
            side = (math.isqrt(int(biases.shape[0]) - 3) + 1) // 2
            return (side * patch[0], side * patch[1]), 0
        return (int(size[0]), int(size[1])) if size else (14 * patch[0], 14 * patch[1]), 0
    count = int(tensors["pos_embed"].shape[1])
    if size and 0 <= count - (size[0] // patch[0]) * (size[1] // patch[1]) <= prefix:
        return (int(size[0]), int(size[1])), count - (size[0] // patch[0]) * (size[1] // patch[1])
    for placed in range(prefix, -1, -1):
        side = math.isqrt(max(count - placed, 0))
        if side and side * side == count - placed:
            return (side * patch[0], side * patch[1]), placed
    raise CheckpointError(
        f"pos_embed has {count} rows: no square grid of patches, and config.json says no input_size that fits. "
        "Put the config.json it was published with beside the file."
    )


def _pretrained(told: dict[str, Any]) -> dict[str, Any]:
    """What the publisher says of the pictures: under a name of its own, or, in timm's first years, beside the rest."""
    return told.get("pretrained_cfg") or (told if "input_size" in told else {})


def _spelling(tensors: Tensors) -> _Spelling:
    return _Spelling(
        registers="register_tokens" if "register_tokens" in tensors else "reg_token",
        gains=("gamma_1", "gamma_2") if "blocks.0.gamma_1" in tensors else ("ls1.gamma", "ls2.gamma"),
        gated=("mlp.w12", "mlp.w3") if "blocks.0.mlp.w12.weight" in tensors else ("mlp.fc1", "mlp.fc2"),
    )


def _rows(config: ViTConfig, spelling: _Spelling, tensors: Tensors | None = None) -> list[Row]:
    width = config.width
    rows = renamed("patch.projection", "patch_embed.proj", bias=config.patch_bias)
    tokens = {
        "class_token": (config.class_token, "cls_token"),
        "distillation_token": (config.distillation_token, "dist_token"),
        "register_tokens": (config.registers, spelling.registers),
        "position_table": (config.position == "learned", "pos_embed"),
    }
    rows += [same(ours, theirs) for ours, (present, theirs) in tokens.items() if present]
    if config.mask_token:
        flat = (1, width) if tensors is not None and tensors["mask_token"].ndim == 2 else (1, 1, width)
        rows += [shaped("mask_token", "mask_token", (1, 1, width), flat)]
    if config.stem_norm:
        rows += _norm("stem_norm", "norm_pre", config)
    if config.relative_bias == "shared":
        rows += [same("relative_bias.table", "rel_pos_bias.relative_position_bias_table")]
    for index in range(config.depth):
        rows += _block_rows(config, spelling, index)
    rows += _norm("norm", "norm", config) if config.final_norm else []
    rows += _norm("pool_norm", "fc_norm", config) if config.pool_norm else []
    if config.pool == "attention":
        rows += _pool_rows(config)
    rows += renamed("head", "head") if config.num_classes else []
    return rows + (renamed("distillation_head", "head_dist") if config.num_classes and config.distillation_head else [])


def _block_rows(config: ViTConfig, spelling: _Spelling, index: int) -> list[Row]:
    ours, theirs = f"blocks.{index}", f"blocks.{index}"
    rows = _norm(f"{ours}.norm1", f"{theirs}.norm1", config) + _norm(f"{ours}.norm2", f"{theirs}.norm2", config)
    rows += renamed(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", bias=config.qkv_bias and config.key_bias)
    if config.qkv_bias and not config.key_bias:
        rows += [same(f"{ours}.attention.query_bias", f"{theirs}.attn.q_bias")]
        rows += [same(f"{ours}.attention.value_bias", f"{theirs}.attn.v_bias")]
    if config.qk_norm:
        rows += _norm(f"{ours}.attention.query_norm", f"{theirs}.attn.q_norm", config)
        rows += _norm(f"{ours}.attention.key_norm", f"{theirs}.attn.k_norm", config)
    rows += renamed(f"{ours}.attention.projection", f"{theirs}.attn.proj")
    if config.relative_bias == "per_block":
        rows += [same(f"block_biases.{index}.table", f"{theirs}.attn.relative_position_bias_table")]
    if config.layer_scale is not None:
        rows += [same(f"{ours}.scale{number}.gain", f"{theirs}.{gain}") for number, gain in enumerate(spelling.gains, 1)]
    first, second = spelling.gated if config.mlp == "swiglu" else ("mlp.fc1", "mlp.fc2")
    up = "gate_up" if config.mlp == "swiglu" else "up"
    return rows + renamed(f"{ours}.mlp.{up}", f"{theirs}.{first}") + renamed(f"{ours}.mlp.down", f"{theirs}.{second}")


def _pool_rows(config: ViTConfig) -> list[Row]:
    rows = [same("pool.query", "attn_pool.latent")]
    rows += renamed("pool.projection", "attn_pool.proj") + _norm("pool.norm", "attn_pool.norm", config)
    rows += renamed("pool.mlp.up", "attn_pool.mlp.fc1") + renamed("pool.mlp.down", "attn_pool.mlp.fc2")
    rows += renamed("pool.query_projection", "attn_pool.q") + renamed("pool.key_value", "attn_pool.kv")
    return rows


def _norm(ours: str, theirs: str, config: ViTConfig) -> list[Row]:
    return renamed(ours, theirs, bias=config.norm == "layer")


def _compose(model: nn.Module) -> Written:
    """Write the model as an architecture of timm with its arguments spelt out."""
    model = cast(ViT, model)
    if model.config.prefix_positions < model.config.prefix:
        model = with_prefix_positions(model, 0)
    config, record = model.config, model.record
    _refuse_unwritable(config)
    beit = config.relative_bias != "none" or not config.key_bias
    height, width = config.image_size
    args: dict[str, Any] = {
        "img_size": height if height == width else [height, width],
        "patch_size": config.patch_size[0],
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        # timm multiplies and rounds down; half a channel more keeps the product from falling just short.
        "mlp_ratio": (config.mlp_width * (2 if config.mlp == "swiglu" else 1) + 0.5) / config.width,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale,
        "drop_path_rate": config.drop_path,
    }
    pool = next(name for name, ours in _POOLS.items() if ours == config.pool)
    if beit:
        architecture = "beit_base_patch16_224"
        args |= {
            "use_abs_pos_emb": config.position == "learned",
            "use_rel_pos_bias": config.relative_bias == "per_block",
            "use_shared_rel_pos_bias": config.relative_bias == "shared",
        }
    else:
        architecture = _nearest_architecture(config)
        args |= _vit_args(config)
    args["global_pool"] = pool
    described: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": pool,
        "model_args": args,
        "pretrained_cfg": {
            "tag": "vitral",
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.distillation_token else "head",
            **(
                to_timm(record.preprocessing, config.channels)
                if record.preprocessing
                else {"input_size": [config.channels, height, width]}
            ),
        },
    }
    add_timm_record(described, record)
    # timm's networks have no mask token; it plays no part in what they compute.
    rows = _rows(
        replace(config, mask_token=False),
        _Spelling("reg_token", ("gamma_1", "gamma_2") if beit else ("ls1.gamma", "ls2.gamma"), ("mlp.fc1", "mlp.fc2")),
    )
    return Written(model=model, rows=rows, documents={"config.json": described})


def _vit_args(config: ViTConfig) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer that its other classes do not take."""
    args: dict[str, Any] = {"dynamic_img_size": True}
    if config.distillation_token:
        return args
    args |= {
        "act_layer": config.activation if config.mlp == "plain" else "silu",
        "class_token": config.class_token,
        "reg_tokens": config.registers,
        "no_embed_class": config.prefix_positions == 0,
        "pre_norm": config.stem_norm,
        # timm moves its last norm behind the pooling rather than having two.
        "final_norm": config.final_norm or config.pool_norm,
        "fc_norm": config.pool_norm,
        "pool_include_prefix": config.pool_prefix,
        "qk_norm": config.qk_norm,
    }
    if config.norm == "rms":
        args["norm_layer"] = "rmsnorm"
    return args


def _nearest_architecture(config: ViTConfig) -> str:
    """The name of timm's that brings along what no argument in a JSON file can say: classes and an epsilon."""
    if config.distillation_token:
        return "deit_base_distilled_patch16_224"
    if config.mlp == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if config.norm_eps == 1e-5 else "vit_base_patch16_224"


def _refuse_unwritable(config: ViTConfig) -> None:
    """What timm has no argument for, as one sentence."""
    square = config.patch_size[0] == config.patch_size[1]
    reasons = {
        "a representation layer before the classifier": config.representation is not None,
        "rotary positions": config.rotary,
        f"attention of the kind {config.attention!r}": config.attention != "global",
        "a distillation token without a classifier of its own": config.distillation_token
        and config.num_classes > 0
        and not config.distillation_head,
        "a norm before and another after pooling": config.final_norm and config.pool_norm,
        "sinusoidal positions": config.position.startswith("sinusoidal"),
        "the class token and the mean side by side": config.pool == "class_and_mean" and config.num_classes > 0,
        "patches that are not square": not square,
        "norms after the branches": config.norm_placement != "pre",
        # transformers' usual 1e-12 differs from timm's 1e-6 in the seventh digit of a token of variance one.
        f"an epsilon of {config.norm_eps:g}": config.norm_eps > 1e-6
        and not (config.norm_eps == 1e-5 and config.mlp == "plain"),
    }
    found = [reason for reason, present in reasons.items() if present]
    if found:
        raise UsageError(f"timm's layout cannot state {', '.join(found)}. Use layout='vitral' or 'transformers'.")


LAYOUT = Layout(name="timm", network=ViT, recognises=_recognises, plan=_plan, compose=_compose)
