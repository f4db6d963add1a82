"""What may be named as an architecture, decided without torch."""

import subprocess
import sys

import pytest

from shared.specs.architectures import ARCHITECTURES, check_architecture, check_factory_allowed


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "torchvision:resnet18", "timm:resnet50.a1_in1k", "my.nets:Small"])
def test_well_formed_names_pass(arch: str) -> None:
    check_architecture(arch)


@pytest.mark.parametrize(
    ("arch", "suggestion"), [("resnet-20", "`resnet20`"), ("WRN40-2", "`wrn40_2`"), ("vgg12", "`vgg1")]
)
def test_a_misspelt_name_brings_near_matches(arch: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match="GET /architectures") as caught:
        check_architecture(arch)
    assert f"did you mean {suggestion}" in str(caught.value)


def test_a_name_like_no_other_brings_no_suggestion() -> None:
    with pytest.raises(ValueError, match=r"^`qqqqq` is not a known architecture; GET /architectures lists them$"):
        check_architecture("qqqqq")


@pytest.mark.parametrize(
    "arch",
    [
        "torchvision:",
        "timm:",
        "timm:hf-hub:someone/model",
        "timm:hf_hub/model",
        "torchvision:res net",
        ":factory",
        "package:",
        "package.:factory",
        "package..module:factory",
        "package.module:a.b",
        "package.module:factory()",
        "package/module:factory",
        "package.module:factory\n",
        "1package:factory",
        "a:b:c",
    ],
)
def test_malformed_names_are_refused(arch: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        check_architecture(arch)


@pytest.mark.parametrize("arch", ["nets:make", "nets.small:make", "resnet20", "timm:x", "torchvision:x"])
def test_allowed_factories_pass(arch: str) -> None:
    check_factory_allowed(arch, ["nets", "other.module"])


@pytest.mark.parametrize("arch", ["nets_old:make", "os:system", "other:make", "other.module2:make", "my.nets:make"])
@pytest.mark.parametrize("allowed", [[], [""], ["nets", "other.module"]])
def test_other_factories_are_refused_with_the_setting(arch: str, allowed: list[str]) -> None:
    with pytest.raises(ValueError, match="DFKD_ALLOWED_FACTORIES"):
        check_factory_allowed(arch, allowed)


def test_the_registry_and_the_specs_import_no_torch() -> None:
    code = "import sys, shared.specs.architectures, shared.specs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
