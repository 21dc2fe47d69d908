"""The arguments of timm's models that a setting may give.

Settings come from recipes and from checkpoints of others. timm takes arguments that name files and
addresses of weights beside those that describe a network; only the latter pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

Width = Annotated[int, Field(ge=1, le=16384)]
Count = Annotated[int, Field(ge=1, le=1024)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Rate = Annotated[float, Field(ge=0, le=1)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9_]{0,40}$")]


class BackboneArgs(TypedDict, total=False):
    """What describes a plain ViT of timm, as its setting `backbone_args`.

    What other settings say (img_size, drop_path_rate, ...) is not among them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    embed_dim: Width
    depth: Annotated[int, Field(ge=1, le=256)]
    num_heads: Count
    num_kv_heads: Count
    patch_size: Count
    mlp_ratio: Annotated[float, Field(gt=0, le=64)]
    swiglu_align_to: Annotated[int, Field(ge=0, le=1024)]
    reg_tokens: Annotated[int, Field(ge=0, le=1024)]
    num_reg_tokens: Annotated[int, Field(ge=0, le=1024)]
    ref_feat_shape: Count
    init_values: Number
    rope_temperature: Annotated[float, Field(gt=0, le=1e9)]
    rope_grid_offset: Number
    drop_rate: Rate
    pos_drop_rate: Rate
    patch_drop_rate: Rate
    proj_drop_rate: Rate
    attn_drop_rate: Rate
    qkv_bias: bool
    qkv_fused: bool
    qk_norm: bool
    proj_bias: bool
    scale_attn_norm: bool
    scale_mlp_norm: bool
    scale_mlp: bool
    scale_attn_inner: bool
    swiglu_mlp: bool
    class_token: bool
    no_embed_class: bool
    pre_norm: bool
    final_norm: bool
    fc_norm: bool
    attn_only_layer_scale: bool
    use_abs_pos_emb: bool
    use_rot_pos_emb: bool
    use_post_norm: bool
    use_pre_transformer_norm: bool
    use_post_transformer_norm: bool
    use_fc_norm: bool
    rope_rotate_half: bool
    rope_mixed: bool
    norm_layer: Word
    embed_norm_layer: Word
    act_layer: Word
    pos_embed: Word
    attn_type: Word
    rope_type: Word
    rope_grid_indexing: Word
    weight_init: Word


_ARGUMENTS = TypeAdapter(BackboneArgs)


def check_backbone_args(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a timm model that do not describe the network (`BackboneArgs`).

    None is as good as no argument, to timm too.

    Raises:
        ValueError: names the argument.
    """
    try:
        _ARGUMENTS.validate_python({k: v for k, v in arguments.items() if v is not None})
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = str(wrong["loc"][0])
        if wrong["type"] == "extra_forbidden":
            raise ValueError(
                f"{name!r:.60} does not describe the network: expected some of "
                f"{', '.join(list(BackboneArgs.__annotations__)[:7])} and the like"
            ) from error
        problem = wrong["msg"].removeprefix("Input should be ")
        raise ValueError(f"{name}: expected {problem}") from error
