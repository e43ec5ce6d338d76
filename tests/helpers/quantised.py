"""Compares a Llama with itself in compressed-tensors, and with its weights rounded by hand.

Run with a directory; the last line it prints is both KLs as JSON.
"""

import json
import os
import sys
from pathlib import Path

from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from helpers.model_dirs import save_model
from helpers.small_models import small_model

from noisescope.cli import run

BITS = 4


def make_models(directory: Path) -> None:
    """Writes the original, the packed one, and one that holds the rounded weights."""
    arguments = QuantizationArgs(num_bits=BITS, type="int", strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    packed, rounded = small_model("llama"), small_model("llama")
    apply_quantization_config(packed, config)
    most = 2 ** (BITS - 1) - 1
    for name, module in packed.named_modules():
        if hasattr(module, "weight_scale"):
            scale = module.weight.detach().abs().amax(dim=1, keepdim=True) / most
            module.weight_scale.data.copy_(scale)
            codes = (module.weight.detach() / scale).round().clamp(-most - 1, most)
            rounded.get_submodule(name).weight.data.copy_(codes * scale)
    compressor = ModelCompressor.from_pretrained_model(packed)
    compressor.compress_model(packed)
    save_model(directory / "packed", packed)
    compressor.update_config(str(directory / "packed"))
    save_model(directory / "rounded", rounded)
    save_model(directory / "llama", small_model("llama"))


def main() -> None:
    """Writes the models, compares them, and prints what came out."""
    directory = Path(sys.argv[1])
    make_models(directory)
    os.chdir(directory)
    Path("texts.txt").write_text("\n\n".join(f"{n} plus {n} is {2 * n}." for n in range(60)) + "\n")
    found = []
    for b in ("packed", "rounded"):
        out = f"out-{b}"
        words = ["llama", b, "--data=texts.txt", "--device=cpu", f"--out={out}"]
        status = run(["compare", *words, "--fail-if=kl>0.001"])
        if status != 1:
            sys.exit(f"{b}: status {status}")
        found.append(json.loads(Path(out, "compare.json").read_text())["changes"][0]["b"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
