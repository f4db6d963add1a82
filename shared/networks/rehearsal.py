"""One real step before the work: networks that only pass the dry run fail here, with the field's name, and at once.

Building tries a network in evaluation mode and without gradients. Training and inversion ask for more: a step in
training mode, and a gradient with respect to the images. Both are tried on two images of noise, on the CPU.
"""

from __future__ import annotations

import copy
import io
from contextlib import suppress

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.specs import InputSpec
from shared.tasks.base import Task

IMAGES = 2
"""BatchNorm in training mode needs more than one."""


def rehearse_training(network: nn.Module, *, task: Task, input: InputSpec, field: str) -> None:
    """Trains a copy of the network for one step; the network stays as it is.

    Args:
        network: a student, on the CPU.
        task: what it does.
        input: shape of the images.
        field: of the job that names it, such as ``student.arch``, for messages.

    Raises:
        UserError: ``network_cannot_train``, or ``wrong_output_shape`` where that is so in training mode alone.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise _cannot_train(field, "none of its parameters requires a gradient: it is frozen, or has none. Unfreeze it")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        try:
            learner = copy.deepcopy(network).train()
            parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
            loss = _logits(learner, _noise(input), task, field).square().mean()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
                torch.optim.SGD(parameters, lr=1e-3).step()
        except UserError:
            raise
        except Exception as error:
            raise _cannot_train(
                field, f"a step in training mode on {IMAGES} images fails: {_summary(error)}"
            ) from error
    if all(parameter.grad is None for parameter in parameters):
        reason = "its output does not depend on its parameters, as under torch.no_grad. Take that out of its forward"
        raise _cannot_train(field, reason)
    _check_state(learner, field)


def rehearse_inversion(network: nn.Module, *, task: Task, input: InputSpec, field: str) -> None:
    """Takes the gradient of the network's answers with respect to its images, in evaluation mode and frozen.

    Args:
        network: a teacher, or a student that takes part in synthesis, on the CPU. It stays as it is.
        task, input, field: as for ``rehearse_training``.

    Raises:
        UserError: ``network_hides_gradients``, with the reason.
    """
    was_training = network.training
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    images = _noise(input).requires_grad_()
    try:
        network.eval().requires_grad_(False)
        with torch.enable_grad():
            loss = _logits(network, images, task, field).square().sum()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "network_hides_gradients",
            f"{field}: images are made by following the network's gradient, and taking it fails: {_summary(error)}",
        ) from error
    finally:
        network.train(was_training)
        for parameter in trained:
            parameter.requires_grad_()
    if images.grad is None:
        raise UserError(
            "network_hides_gradients",
            f"{field}: images are made by following the network's gradient, and it gives none: its forward runs under "
            "torch.no_grad, or detaches what it computes. Take that out",
        )


def _noise(input: InputSpec) -> Tensor:
    return torch.randn(IMAGES, *input.shape, generator=torch.Generator().manual_seed(0))


def _logits(network: nn.Module, images: Tensor, task: Task, field: str) -> Tensor:
    return task.logits(network(images), images.shape, network=field).float()


def _check_state(network: nn.Module, field: str) -> None:
    """A worker that goes on where another one was loads the state as data: nothing in it may need code."""
    buffer = io.BytesIO()
    try:
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        extra = [name for name in network.state_dict() if name.endswith("_extra_state")]
        where = f" ({', '.join(extra[:4])})" if extra else ""
        reason = f"its state{where} holds more than tensors, numbers, strings and containers of them: {_summary(error)}"
        raise _cannot_train(field, reason) from error


def _cannot_train(field: str, reason: str) -> UserError:
    return UserError("network_cannot_train", f"{field}: the network cannot be trained: {reason}")


def _summary(error: Exception) -> str:
    text = ""
    with suppress(Exception):  # of a stranger's class
        text = str(error).strip().split("\n", 1)[0][:300].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
