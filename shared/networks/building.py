"""From a ``NetworkSpec`` to a module that is known to map the job's images to the job's classes.

Building is where the user's words meet foreign code, so whatever goes wrong here is a ``UserError`` that
names the field. Nothing is ever downloaded: weights come from the job's checkpoint alone.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from shared.errors import UserError
from shared.specs import InputSpec, JobSpec, NetworkSpec
from shared.specs.architectures import ARCHITECTURES, ZOOS, check_architecture, check_factory_allowed, near_matches
from shared.tasks.base import Task, build_task
from shared.tasks.descriptions import CLASSIFICATION

DOWNLOADING_ARGUMENTS: Final = frozenset(
    {"weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
)
"""Arguments by which torchvision and timm fetch or open weights by themselves."""


def build_network(
    spec: NetworkSpec,
    *,
    num_classes: int,
    input: InputSpec,
    task: str = CLASSIFICATION.name,
    allowed_factories: Sequence[str] = (),
) -> nn.Module:
    """Build the network and try it on two blank images.

    Networks of ``ARCHITECTURES`` get ``num_classes`` and ``in_channels``, timm's ``num_classes`` and
    ``in_chans``, transformers' ``num_labels`` and ``num_channels``, torchvision's and a job's own factory only
    ``num_classes``; ``spec.kwargs`` is added.

    Args:
        spec: which network; a ``checkpoint`` it may name is not loaded here.
        num_classes: that the network must tell apart.
        input: shape of the images that it must take.
        task: what the network must do, and so the shape of its logits.
        allowed_factories: module prefixes that ``package.module:factory`` may name.

    Returns:
        A float32 network on the CPU in training mode, initialized from torch's global random state.

    Raises:
        UserError: ``unknown_architecture``, ``bad_network_arguments``, ``factory_not_allowed``,
            ``factory_failed``, ``scripted_network``, ``timm_not_installed``, ``transformers_not_installed``,
            ``input_not_accepted`` or ``wrong_output_shape``.
    """
    try:
        check_architecture(spec.arch)
    except ValueError as error:
        raise UserError("unknown_architecture", f"arch: {error}") from error
    prefix, colon, name = spec.arch.partition(":")
    if not colon:
        network = _build_own(spec, num_classes, input)
    elif prefix in ZOOS:
        _refuse_downloading_arguments(spec)
        if prefix == "torchvision":
            network = _build_torchvision(spec, name, num_classes, input, task)
        elif prefix == "transformers":
            from shared.networks.transformers_networks import build_from_transformers

            network = build_from_transformers(spec, name, num_classes, input, task)
        else:
            network = _build_timm(spec, name, num_classes, input)
    else:
        network = _build_from_factory(spec, num_classes, allowed_factories)
    network.float()  # networks of half or double precision are as good as any
    check_shapes(network, spec.arch, task=build_task(task, num_classes), input=input)
    return network.train()


def build_network_of(job: JobSpec, network: NetworkSpec, allowed_factories: Sequence[str] = ()) -> nn.Module:
    """``build_network`` for the teacher or the student of a job, which share task, classes and input."""
    teacher = job.teacher
    return build_network(
        network,
        num_classes=teacher.num_classes,
        input=teacher.input,
        task=teacher.task,
        allowed_factories=allowed_factories,
    )


@torch.no_grad()
def check_shapes(network: nn.Module, arch: str, *, task: Task, input: InputSpec) -> None:
    """Run two blank images through the network in eval mode, on the device that it is on.

    The mode is restored afterwards.

    Raises:
        UserError: ``input_not_accepted`` when it raises, ``wrong_output_shape`` unless it returns the task's logits.
    """
    was_training = network.training
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    shape = "×".join(map(str, input.shape))
    network.eval()
    try:
        output = network(torch.zeros(2, *input.shape, device=device))
    except Exception as error:
        remedy = _size_that_fits(network, input, device) or (
            "Check input.channels, input.height and input.width, or choose a network for this size."
        )
        raise UserError(
            "input_not_accepted",
            f"input: `{arch}` does not take images of {shape} (channels × height × width): {_summary(error)}. {remedy}"
            f"{_position_hint(network)}",
        ) from error
    finally:
        network.train(was_training)
    task.logits(output, (2, *input.shape), network=f"arch: `{arch}`")


def _size_that_fits(network: nn.Module, input: InputSpec, device: torch.device) -> str:
    """What to write instead, where height and width only have to be multiples of a power of two."""
    for multiple in (2, 4, 8, 16, 32, 64):
        height, width = (-(-side // multiple) * multiple for side in (input.height, input.width))
        if (height, width) == (input.height, input.width):
            continue
        try:
            network(torch.zeros(2, input.channels, height, width, device=device))
        except Exception:  # noqa: S112  (of any kind, as the network pleases: the next size may fit)
            continue
        return f"It takes multiples of {multiple}: set input.height to {height} and input.width to {width}."
    return ""


def _position_hint(network: nn.Module) -> str:
    """What helps a network with learned positions, which are those of one image size."""
    names = [name for name, _ in network.named_parameters()]
    if any(name.endswith("pos_embed") for name in names):
        return " Its position embedding is for one image size: build it for yours with `kwargs: {img_size: …}`."
    if any(name.endswith("pos_embedding") for name in names):
        return " Its position embedding is for one image size: build it for yours with `kwargs: {image_size: …}`."
    return ""


def _build_own(spec: NetworkSpec, num_classes: int, input: InputSpec) -> nn.Module:
    architecture = ARCHITECTURES[spec.arch]
    fixed = {"num_classes": num_classes, "in_channels": input.channels, **architecture.arguments}
    module, _, name = architecture.constructor.partition(":")
    constructor = getattr(importlib.import_module(module), name)
    return _call(spec, constructor, fixed)


def _build_torchvision(spec: NetworkSpec, name: str, num_classes: int, input: InputSpec, task: str) -> nn.Module:
    from torchvision import models

    # torchvision.models itself has the classifiers; detection, video and quantized networks answer otherwise.
    room = models if task == CLASSIFICATION.name else models.segmentation
    known = models.list_models(module=room)
    if name not in known:
        what = "classifier" if room is models else "segmentation network"
        raise UserError("unknown_architecture", f"arch: torchvision has no {what} `{name}`{near_matches(name, known)}")
    if input.channels != 3:
        raise UserError(
            "input_not_accepted",
            f"input.channels is {input.channels}, but the networks of torchvision take 3; "
            "choose a name of GET /architectures or `timm:NAME`, which take any number",
        )
    fixed: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    kwargs = dict(spec.kwargs)
    if room is models.segmentation:
        fixed["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        # Auxiliary heads would be trained for nothing; initialization is asked for since the default warns.
        kwargs = {"aux_logits": False, "init_weights": True} | kwargs
    return _call(spec.model_copy(update={"kwargs": kwargs}), models.get_model_builder(name), fixed)


def _build_timm(spec: NetworkSpec, name: str, num_classes: int, input: InputSpec) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            "timm_not_installed",
            f"arch: `{spec.arch}` needs timm, which this worker lacks; install the extra `fast-dfkd[timm]`",
        ) from error
    if not timm.is_model(name):
        hint = near_matches(name, timm.list_models())
        raise UserError("unknown_architecture", f"arch: timm has no model `{name}`{hint}")
    fixed = {"model_name": name, "pretrained": False, "num_classes": num_classes, "in_chans": input.channels}
    return _call(spec, timm.create_model, fixed)


def _build_from_factory(spec: NetworkSpec, num_classes: int, allowed: Sequence[str]) -> nn.Module:
    try:
        check_factory_allowed(spec.arch, allowed)
    except ValueError as error:
        raise UserError("factory_not_allowed", f"arch: {error}") from error
    module, _, name = spec.arch.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            "unknown_architecture",
            f"arch: `{spec.arch}` cannot be imported on this worker: {_summary(error)}. Install the package there.",
        ) from error
    except Exception as error:
        raise UserError("factory_failed", f"arch: importing `{module}` failed: {_summary(error)}") from error
    if not callable(factory):
        raise UserError("factory_failed", f"arch: `{spec.arch}` is a {type(factory).__name__}, which cannot be called")
    return _call(spec, factory, {"num_classes": num_classes}, failure="factory_failed")


def _call(
    spec: NetworkSpec,
    constructor: Callable[..., Any],
    fixed: Mapping[str, Any],
    *,
    failure: str = "bad_network_arguments",
) -> nn.Module:
    """Call with the job's arguments beside ours; ``failure`` is the code when the constructor itself raises."""
    taken = sorted(fixed.keys() & spec.kwargs.keys())
    if taken:
        raise UserError(
            "bad_network_arguments",
            f"kwargs.{taken[0]} is set by the job or by the name `{spec.arch}` itself; leave it out",
        )
    arguments = {**fixed, **spec.kwargs}
    try:
        inspect.signature(constructor).bind(**arguments)
    except TypeError as error:
        raise UserError(
            "bad_network_arguments", f"kwargs: `{spec.arch}` cannot be called with {_names(spec.kwargs)}: {error}"
        ) from error
    except ValueError:
        pass  # A builtin without a signature: the call will tell.
    try:
        network = constructor(**arguments)
    except Exception as error:
        raise UserError(failure, f"kwargs: `{spec.arch}` refused {_names(spec.kwargs)}: {_summary(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError("factory_failed", f"arch: `{spec.arch}` made a {type(network).__name__}, not a torch.nn.Module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UserError(
            "scripted_network",
            f"arch: `{spec.arch}` made a TorchScript module, whose layers can be neither observed nor copied; make the "
            "ordinary module, without torch.jit.script or torch.jit.trace",
        )
    return network


def _refuse_downloading_arguments(spec: NetworkSpec) -> None:
    for name in sorted(DOWNLOADING_ARGUMENTS & spec.kwargs.keys()):
        raise UserError(
            "bad_network_arguments", f"kwargs.{name} is refused: nothing is downloaded; put the weights in `checkpoint`"
        )


def _names(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())[:300] or "no arguments"


def _summary(error: Exception) -> str:
    """The kind of the error and the first line of its text, of a length for a message."""
    first = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first[:300].rstrip('.')}" if first else type(error).__name__
