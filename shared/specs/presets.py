"""Named starting points for ``synthesis``, so that a job needs few fields.

A preset fills fields that the client left out and never overrides one that was written. ``fast-N`` are ours and
assume nothing of the teacher. ``paper-fast-N`` are the settings of Fang et al. (AAAI 2022), found for five CIFAR
networks, with the per-teacher weights of their runs; a teacher that is not listed gets those of ``wrn40_2``, the
smallest of them.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast, get_args

from pydantic_core import PydanticCustomError

from shared.specs.architectures import is_vision_transformer

PresetName = Literal[
    "fast-2",
    "fast-5",
    "fast-10",
    "paper-fast-2",
    "paper-fast-5",
    "paper-fast-10",
    "fast-50-imagenet",
    "deepinversion-2k",
    "sre2l-4k",
    "cda-4k",
    "psaq-vit",
    "calibration",
]
DEFAULT_PRESET: Final[PresetName] = "fast-5"

_FAST: Final[Mapping[int, Mapping[str, Any]]] = {
    2: {"method": "fast-meta", "steps": 2, "generator_learning_rate": 5e-3, "latent_learning_rate": 0.015},
    5: {"method": "fast-meta", "steps": 5, "generator_learning_rate": 3e-3, "latent_learning_rate": 0.01},
    10: {"method": "fast-meta", "steps": 10, "generator_learning_rate": 2e-3, "latent_learning_rate": 0.01},
}
_PAPER: Final[Mapping[str, Any]] = {
    "bn": 10.0,
    "bn_distance": "norm",
    "bn_momentum": 0.9,
    "match_targets": False,
    "augmentation": {"crop_padding": 4, "padding": "black", "horizontal_flip": True},
}

PRESETS: Final[Mapping[PresetName, Mapping[str, Any]]] = {
    "fast-2": _FAST[2],
    "fast-5": _FAST[5],
    "fast-10": _FAST[10],
    "paper-fast-2": {**_FAST[2], **_PAPER},
    "paper-fast-5": {**_FAST[5], **_PAPER},
    "paper-fast-10": {**_FAST[10], **_PAPER},
    "fast-50-imagenet": {
        "method": "fast-meta",
        "steps": 50,
        "generator": "deep",
        "bn_distance": "norm",
        "bn_momentum": 0.9,
        "meta_gradient": "reptile",
        "generator_learning_rate": 2e-4,
        "latent_learning_rate": 0.01,
        "outer_generator_learning_rate": 1e-4,
        "outer_latent_learning_rate": 5e-3,
        "reset_every": 50,
        "batch_size": 100,
        "bn": 0.1,
        "one_hot": 0.1,
        "adversarial": 0.1,
        "reset_first_layer_at_batch": None,
        "augmentation": {"crop_padding": 0, "resized_crop_scale": 0.75, "horizontal_flip": True},
    },
    "deepinversion-2k": {"method": "deepinversion", "steps": 2000},
    "sre2l-4k": {"method": "recover", "steps": 4000, "curriculum": "none"},
    "cda-4k": {"method": "recover", "steps": 4000},
    "psaq-vit": {
        "method": "deepinversion",
        "steps": 1000,
        "batch_size": 32,
        "learning_rate": 0.2,
        "learning_rate_schedule": "cosine",
        "warmup_steps": 100,
        "scale": "normalized",
        "jitter": 30,
        "bn": 0.0,
        "one_hot": 1.0,
        "attention": 1.0,
        "adversarial": 0.0,
        "total_variation": 0.05,
        "total_variation_norm": "l2",
        # Between 2,500 and 3,000 for the 32 images of 3×224×224 of the authors.
        "total_variation_goal": (1.139, 1.367),
        "l2": 0.0,
    },
    "calibration": {
        "method": "deepinversion",
        "steps": 500,
        "num_images": 256,
        "batch_size": 64,
        # With 10, the default, a trained EfficientNet-Lite1 sees the class in none of 8 images; with this in 6 of 8.
        "bn": 0.01,
        "adversarial": 0.0,
    },
}
assert set(PRESETS) == set(get_args(PresetName))

_PAPER_DISTILLATION: Final[Mapping[str, Any]] = {
    "temperature": 20.0,
    "learning_rate": 0.2,
    "final_learning_rate": 2e-4,
    "learning_rate_warmup_steps": 0,
    "max_gradient_norm": None,
    "procedural_share": 0.0,
    "augmentation": _PAPER["augmentation"],
}

PRESET_DISTILLATION: Final[Mapping[str, Mapping[str, Any] | None]] = {
    "paper-fast-2": _PAPER_DISTILLATION,
    "paper-fast-5": _PAPER_DISTILLATION,
    "paper-fast-10": _PAPER_DISTILLATION,
    # The authors' logs: 4,000 batches of 100, and 100 steps for each.
    "fast-50-imagenet": {
        "temperature": 5.0,
        "learning_rate": 0.1,
        "final_learning_rate": 0.0,
        "learning_rate_warmup_steps": 0,
        "max_gradient_norm": None,
        "procedural_share": 0.0,
        "batch_size": 100,
        "steps_per_batch": 100,
    },
    "calibration": None,
}
"""What a preset means for ``distillation``, where the client has written nothing else. None: there is no student."""

TEACHER_WEIGHTS: Final[Mapping[str, Mapping[str, float]]] = {
    "resnet34": {"adversarial": 1.33, "one_hot": 0.5},
    "vgg11": {"adversarial": 1.0, "one_hot": 0.5},
    "wrn40_2": {"adversarial": 1.1, "one_hot": 0.4},
}


def default_preset(teacher_arch: object) -> PresetName:
    """What counts where a job names neither preset nor method: transformers have no BatchNorm statistics to match."""
    return "psaq-vit" if isinstance(teacher_arch, str) and is_vision_transformer(teacher_arch) else DEFAULT_PRESET


def fill_from_preset(synthesis: Mapping[str, Any], teacher_arch: object) -> dict[str, Any]:
    """What the client wrote under ``synthesis``, with the preset's values where it wrote nothing.

    An unknown preset is left in place for field validation to refuse by name. Without ``preset`` the
    method's own defaults count, and without ``method`` either the default preset does.

    Raises:
        PydanticCustomError: the written method is not the one whose settings the preset holds.
    """
    written = dict(synthesis)
    name = written.get("preset")
    if name is None and "method" not in written:
        name = written["preset"] = default_preset(teacher_arch)
    if not isinstance(name, str) or name not in PRESETS:
        return {"method": "fast-meta", **written}
    preset: dict[str, Any] = dict(PRESETS[cast(PresetName, name)])
    method = written.get("method", preset["method"])
    is_ablation = method == "fast" and preset["method"] == "fast-meta" and "meta_gradient" not in preset
    if method != preset["method"] and not is_ablation:
        message = f"`{name}` holds settings of `{preset['method']}`, not of `{method}`; leave preset or method out"
        raise PydanticCustomError("invalid_field", "{message}", {"field": "synthesis.preset", "message": message})
    if name.startswith("paper-"):
        preset |= TEACHER_WEIGHTS.get(str(teacher_arch), {})
    steps = written.get("steps")
    if isinstance(steps, int) and "warmup_steps" in preset:
        # Whoever asks for fewer steps does not mean to warm up in all of them.
        preset["warmup_steps"] = min(preset["warmup_steps"], max(0, steps // 10))
    return preset | written
